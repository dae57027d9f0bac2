"""What the handlers share: the loaded models, the limits, and how the server is doing. No requests, no sockets."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

from fastchat_rs.config import ServeConfig, parse_bytes
from fastchat_rs.server.api_error import ApiError, bad_field
from fastchat_rs.server.bridge import Bridge, ChatFormat, Embedder, ModelInfo
from fastchat_rs.server.http import BodyLimits, Request
from fastchat_rs.server.weights import ModelFiles
from fastchat_rs.template import ChatTemplate

# A prefix that one client puts before every model id; replies leave it out.
_CLIENT_PREFIX = "in-memory::"
# Requests for embeddings that are answered at a time; the next ones wait for a thread.
_EMBEDDING_THREADS = 32


class Phase(Enum):
    """The server's life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


class Pressure(Enum):
    """How short memory is."""

    NONE = 0
    SOFT = 1
    """What can be had again is given up, connections end with their reply."""
    HARD = 2
    """New work is refused as well."""


@dataclass(frozen=True)
class Limits:
    """Bounds of requests, from the settings."""

    body: BodyLimits
    json_depth: int
    n: int
    stop: int
    logprobs: int
    tools: int
    request_seconds: float
    first_token_seconds: float
    queue_seconds: float
    heartbeat_seconds: float
    stream_bytes: int
    one_stream_bytes: int
    open_requests: int
    response_bytes: int

    @classmethod
    def of(cls, config: ServeConfig) -> "Limits":
        """Takes them from the settings."""
        return cls(
            body=BodyLimits(parse_bytes(config.max_body, "max_body"), config.body_timeout),
            json_depth=config.max_json_depth,
            n=config.max_n,
            stop=config.max_stop,
            logprobs=config.max_logprobs,
            tools=config.max_tools,
            request_seconds=config.request_timeout,
            first_token_seconds=config.first_token_timeout,
            queue_seconds=config.queue_timeout,
            heartbeat_seconds=config.heartbeat,
            stream_bytes=parse_bytes(config.max_stream_memory, "max_stream_memory"),
            one_stream_bytes=parse_bytes(config.max_stream, "max_stream"),
            open_requests=config.max_queue + config.max_num_seqs,
            response_bytes=parse_bytes(config.max_response_store, "max_response_store"),
        )


class Served:
    """One model that answers."""

    def __init__(
        self,
        name: str,
        bridge: Bridge,
        template: ChatTemplate | None,
        defaults: dict[str, float] | None = None,
        *,
        files: ModelFiles,
    ) -> None:
        self.name = name
        self.files = files
        self.bridge = bridge
        self.template = template
        self.defaults = defaults or {}
        self.created = int(time.time())
        self._pieces: dict[int, tuple[str, list[int]]] = {}

    @cached_property
    def info(self) -> ModelInfo:
        """Constant facts of the model."""
        return self.bridge.engine.info()

    @cached_property
    def format(self) -> ChatFormat | None:
        """How the model writes reasoning and calls; None without a template."""
        return None if self.template is None else self.bridge.engine.chat_format(self.template.source)

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint` of replies."""
        return f"fp_{self.info.fingerprint}"

    def token(self, token_id: int) -> tuple[str, list[int]]:
        """A token as text (invalid UTF-8 replaced) and as bytes."""
        piece = self._pieces.get(token_id)
        if piece is None:
            raw = self.bridge.engine.token_bytes(token_id)
            piece = self._pieces[token_id] = (raw.decode("utf-8", "replace"), list(raw))
        return piece


class Embedding:
    """One encoder that answers."""

    def __init__(self, name: str, embedder: Embedder, files: ModelFiles) -> None:
        self.name = name
        self.files = files
        self.embedder = embedder
        self.created = int(time.time())
        self.pool = ThreadPoolExecutor(_EMBEDDING_THREADS, thread_name_prefix="fastchat-embed-wait")
        """Each request waits on one of its threads; the engine batches across them."""

    @property
    def purpose(self) -> str:
        """What to use it for."""
        if self.embedder.makes_scores:
            return "scores documents only; use /v1/rerank"
        return "makes embeddings only; use /v1/embeddings"


@dataclass
class State:
    """One per server."""

    config: ServeConfig
    limits: Limits
    phase: Phase = Phase.LOADING
    models: dict[str, Served] = field(default_factory=dict[str, Served])
    """By every name they answer to."""
    embeddings: dict[str, Embedding] = field(default_factory=dict[str, Embedding])
    """The same for encoders."""
    port: int = 0
    in_flight: int = 0
    stream_bytes: int = 0
    pressure: Pressure = Pressure.NONE
    memory_used: int = 0
    resume_bytes: int = 0
    cache_bytes: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    log_lines_dropped: Callable[[], int] = int

    def find(self, model: str) -> tuple[str, Served]:
        """The name to answer with and the model, or the right error."""
        self.must_serve()
        name = model.removeprefix(_CLIENT_PREFIX)
        served = self.models.get(name)
        if served is not None:
            return name, served
        encoder = self.embeddings.get(name)
        if encoder is not None:
            raise bad_field("model", f"Model '{name}' {encoder.purpose}", "unsupported_model")
        raise _not_found(name)

    def find_embedding(self, model: str) -> tuple[str, Embedding]:
        """The same for an encoder."""
        self.must_serve()
        name = model.removeprefix(_CLIENT_PREFIX)
        encoder = self.embeddings.get(name)
        if encoder is not None and not encoder.embedder.makes_scores:
            return name, encoder
        raise self._other(name, "generates text and makes no embeddings")

    def find_reranker(self, model: str) -> tuple[str, Embedding]:
        """The same for a cross-encoder."""
        self.must_serve()
        name = model.removeprefix(_CLIENT_PREFIX)
        encoder = self.embeddings.get(name)
        if encoder is not None and encoder.embedder.makes_scores:
            return name, encoder
        raise self._other(name, "generates text and scores no documents")

    def _other(self, name: str, generates: str) -> ApiError:
        if name not in self.models and name not in self.embeddings:
            return _not_found(name)
        purpose = generates if name in self.models else self.embeddings[name].purpose
        return bad_field("model", f"Model '{name}' {purpose}", "unsupported_model")

    def must_allow(self, request: Request, model: str) -> None:
        """404, as for a model that is not there, unless the caller's key allows the name."""
        name = model.removeprefix(_CLIENT_PREFIX)
        if name not in self.models and name not in self.embeddings:
            # Ollama's clients add a tag to names that have none.
            name = name.removesuffix(":latest")
        if not request.may_use(name):
            raise _not_found(name)

    def must_have_room(self) -> None:
        """503 at once, before a body is read, when more requests are open than can run and wait, or memory is short."""
        if self.in_flight > self.limits.open_requests:
            raise _overloaded(f"{self.limits.open_requests} requests are open")
        if self.pressure is Pressure.HARD:
            raise _overloaded("memory is short")

    def must_serve(self) -> None:
        """503 while loading or draining."""
        if self.phase is Phase.LOADING:
            raise ApiError(503, "The model is still loading", code="loading", retry_after=2)
        if self.phase is Phase.DRAINING:
            error = ApiError(503, "The server is shutting down", code="draining", retry_after=5)
            error.headers.append(("connection", "close"))
            raise error

    @property
    def health(self) -> str:
        """ready, loading, draining or dead."""
        if self.phase is Phase.READY:
            alive = [model.bridge.engine.stats().alive for model in self.models.values()]
            alive += [embedding.embedder.alive for embedding in self.embeddings.values()]
            if not all(alive):
                return "dead"
        return self.phase.value


def _overloaded(why: str) -> ApiError:
    return ApiError(503, f"The server is overloaded: {why}", code="overloaded", retry_after=1)


def _not_found(name: str) -> ApiError:
    shown = "".join(char if char.isprintable() else "?" for char in name[:200])
    return ApiError(404, f"Model '{shown}' not found", param="model", code="model_not_found")
