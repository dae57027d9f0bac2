"""Prometheus text: `fastchat_*`, and the same numbers under the `vllm:*` names that existing dashboards read."""

import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from fastchat_rs.server.bridge import Delta, EngineStats
from fastchat_rs.server.state import Served, State
from fastchat_rs.server.usage import UsageCounter

# fastchat_<left> is also vllm:<right>.
_ALIASES = {
    "requests_running": "num_requests_running",
    "requests_waiting": "num_requests_waiting",
    "kv_cache_usage": "kv_cache_usage_perc",
    "prompt_tokens": "prompt_tokens",
    "generation_tokens": "generation_tokens",
    "prefix_cache_queries": "prefix_cache_queries",
    "prefix_cache_hits": "prefix_cache_hits",
    "preemptions": "num_preemptions",
    "spec_decode_num_draft_tokens": "spec_decode_num_draft_tokens",
    "spec_decode_num_accepted_tokens": "spec_decode_num_accepted_tokens",
    "time_to_first_token_seconds": "time_to_first_token_seconds",
    "inter_token_seconds": "inter_token_latency_seconds",
    "request_seconds": "e2e_request_latency_seconds",
    "request_prompt_tokens": "request_prompt_tokens",
    "request_generation_tokens": "request_generation_tokens",
    "finished": "request_success",
}
_FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_TOKENS = tuple(float(mark * 10**power) for power in range(6) for mark in (1, 2, 5))
_WHOLE = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


def _gauges(stats: EngineStats) -> Iterator[tuple[str, str, float]]:
    yield "requests_running", "Sequences in the running batch", stats.running
    yield "requests_waiting", "Requests in the queue", stats.waiting
    yield "kv_cache_usage", "Share of cache blocks in use, 0 to 1", 1 - stats.free_blocks / max(stats.total_blocks, 1)
    yield "kv_blocks_free", "Cache blocks free or reclaimable", stats.free_blocks
    yield "kv_blocks_total", "Cache blocks", stats.total_blocks
    yield "prefix_disk_bytes", "Bytes that the prefix cache on disk holds", stats.disk_bytes
    yield "engine_alive", "1 while the engine thread runs", stats.alive


def _counters(stats: EngineStats) -> Iterator[tuple[str, str, float]]:
    yield "prompt_tokens", "Prompt tokens read", stats.prompt_tokens
    yield "generation_tokens", "Tokens written", stats.generation_tokens
    yield "prefix_cache_queries", "Prompt tokens looked up in the prefix cache", stats.prompt_tokens
    yield "prefix_cache_hits", "Prompt tokens found in the prefix cache", stats.cached_tokens
    yield "preemptions", "Sequences put back for lack of cache", stats.preemptions
    yield "spec_decode_num_draft_tokens", "Tokens that prompt lookup proposed", stats.draft_tokens
    yield "spec_decode_num_accepted_tokens", "Proposed tokens that were chosen", stats.accepted_tokens
    yield "forced_tokens", "Tokens appended without a step", stats.forced_tokens
    yield "prefix_disk_hits", "Blocks read from the prefix cache on disk", stats.disk_hits
    yield "prefix_disk_written", "Blocks written to it", stats.disk_written
    yield "prefix_disk_damaged", "Files of it that were damaged, and are deleted", stats.disk_damaged
    yield "prefix_disk_dropped", "Blocks that could not be written, or not in time", stats.disk_dropped
    yield "engine_steps", "Steps of the engine", stats.steps
    yield "graph_steps", "Steps that were replayed as graphs", stats.graph_steps
    yield "overlapped_steps", "Steps that a GPU computed while the host was at the one before", stats.overlapped_steps


class _EngineCollector(Collector):
    """Reads the engines when scraped."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterable[Metric]:
        served: dict[str, Served] = {model.name: model for model in self._state.models.values()}
        stats = {name: model.bridge.engine.stats() for name, model in served.items()}
        families: dict[str, Metric] = {}
        for model, now in stats.items():
            for name, text, value in _gauges(now):
                family = families.setdefault(name, GaugeMetricFamily(f"fastchat_{name}", text, labels=["model_name"]))
                family.add_sample(f"fastchat_{name}", {"model_name": model}, value)
            for name, text, value in _counters(now):
                family = families.setdefault(name, CounterMetricFamily(f"fastchat_{name}", text, labels=["model_name"]))
                family.add_sample(f"fastchat_{name}_total", {"model_name": model}, value)
        for name, text, value in (
            ("stream_bytes_open", "Bytes that open streams have sent", self._state.stream_bytes),
            ("resume_bytes", "Events kept for clients that come back", self._state.resume_bytes),
            ("response_cache_bytes", "Answers kept", self._state.cache_bytes),
            ("memory_used_bytes", "Memory that only the end of the process gives back", self._state.memory_used),
            ("memory_pressure", "0 none, 1 soft, 2 hard: new work is refused", self._state.pressure.value),
        ):
            families[name] = GaugeMetricFamily(f"fastchat_{name}", text, value)
        for name, text, value in (
            ("response_cache_hits", "Requests answered with kept answers", self._state.cache_hits),
            ("response_cache_misses", "Requests whose answer was not kept", self._state.cache_misses),
        ):
            family = families[name] = CounterMetricFamily(f"fastchat_{name}", text)
            family.add_metric([], value)
        dropped = CounterMetricFamily("fastchat_log_lines_dropped", "Lines that could not be written")
        dropped.add_metric([], self._state.log_lines_dropped())
        families["log_lines_dropped"] = dropped
        streams = GaugeMetricFamily("fastchat_requests_open", "HTTP requests being answered", self._state.in_flight)
        return [*families.values(), streams]


class _AliasCollector(Collector):
    """The metrics of another registry under vLLM's names."""

    def __init__(self, source: CollectorRegistry) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        for family in self._source.collect():
            alias = _ALIASES.get(family.name.removeprefix("fastchat_"))
            if alias is None:
                continue
            copy = Metric(f"vllm:{alias}", family.documentation, family.type)
            for sample in family.samples:
                copy.add_sample(f"vllm:{alias}{sample.name[len(family.name) :]}", sample.labels, sample.value)
            yield copy


class Observation:
    """Times of one generation of a model."""

    def __init__(self, metrics: "Metrics", model: str, started: float) -> None:
        self._metrics = metrics
        self._model = model
        self._first_token = metrics.first_token.labels(model_name=model)
        self._between_tokens = metrics.between_tokens.labels(model_name=model)
        self._started = started
        self._last: float | None = None

    def delta(self, delta: Delta) -> None:
        """Called for every delta."""
        now = time.monotonic()
        count = len(delta.token_ids)
        if count:
            if self._last is None:
                self._first_token.observe(now - self._started)
            else:
                for _ in range(count):
                    self._between_tokens.observe((now - self._last) / count)
            self._last = now
        if delta.finish_reason is not None:
            self._metrics.finished.labels(finished_reason=delta.finish_reason, model_name=self._model).inc()

    def done(self, usage: UsageCounter) -> None:
        """Called when the whole answer is out."""
        self._metrics.whole.labels(model_name=self._model).observe(time.monotonic() - self._started)
        self._metrics.read.labels(model_name=self._model).observe(usage.prompt_tokens)
        self._metrics.written.labels(model_name=self._model).observe(usage.completion_tokens)


class Metrics:
    """Counters of the server, and the text of /metrics."""

    def __init__(self, state: State) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"fastchat_{name}", text, ["model_name"], buckets=buckets, registry=registry)

        self.requests = Counter("fastchat_http_requests", "Answered requests", ["path", "status"], registry=registry)
        self.first_token = histogram("time_to_first_token_seconds", "Submit to first token", _FIRST)
        self.between_tokens = histogram("inter_token_seconds", "Between tokens", _BETWEEN)
        self.whole = histogram("request_seconds", "Submit to last token", _WHOLE)
        self.read = histogram("request_prompt_tokens", "Tokens that a request's prompts have", _TOKENS)
        self.written = histogram("request_generation_tokens", "Tokens that a request's choices have", _TOKENS)
        labels = ["finished_reason", "model_name"]
        self.finished = Counter("fastchat_finished", "Choices that ended", labels, registry=registry)
        refused = "Requests that got 401, 408, 413, 429, 503 or 504"
        self.refused = Counter("fastchat_refused", refused, ["code"], registry=registry)
        self._registry.register(_EngineCollector(state))
        self._aliases = CollectorRegistry()
        self._aliases.register(_AliasCollector(self._registry))

    def observe(self, model: str, started: float) -> Observation:
        """Starts timing a generation of `model` that was submitted at `started` (monotonic)."""
        return Observation(self, model, started)

    def text(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry) + generate_latest(self._aliases)
