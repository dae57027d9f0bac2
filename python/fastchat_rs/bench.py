"""The figures of `fastchat-rs bench`, measured through `LLM` on prompts that no cache has seen. Prints nothing."""

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from fastchat_rs.llm import LLM, SamplingParams
from fastchat_rs.outputs import RequestOutput

_CONCURRENCY = (1, 4, 16, 64)


def measure(llm: LLM, repeat: int, *, quick: bool, log: Callable[[str], None]) -> dict[str, Any]:
    """All figures, each `repeat` times in turns, as median with minimum and maximum."""
    bench = _Bench(llm, random.Random(0))  # noqa: S311 - prompts, not secrets
    prefill, decode = (128, 32) if quick else (512, 128)
    room = llm.info.max_model_len
    prefill, decode = min(prefill, room // 2), min(decode, room // 2)
    figures: list[tuple[str, str, Callable[[], float]]] = [
        (f"prefill {prefill} tokens", "tok/s", lambda: prefill / bench.run(1, prefill, 1)[0].timings.first_token),
        (f"decode {decode} tokens", "tok/s", lambda: _decode_speed(bench.run(1, 8, decode)[0])),
        ("time to first token, 64 tokens", "s", lambda: bench.run(1, min(64, prefill), 1)[0].timings.first_token),
    ]
    for count in _CONCURRENCY:
        figures.append((f"{count} at once", "tok/s", lambda count=count: bench.throughput(count, decode // 2)))
    bench.run(1, 8, 8)
    samples: dict[str, list[float]] = {name: [] for name, _, _ in figures}
    for turn in range(repeat):
        for name, unit, figure in figures:
            value = figure()
            samples[name].append(value)
            log(f"{turn + 1}/{repeat} {name}: {value:.4g} {unit}")
    return {
        "model": llm.model,
        "kernels": llm.info.kernels,
        "fingerprint": llm.info.fingerprint,
        "figures": [
            {
                "name": name,
                "unit": unit,
                "median": statistics.median(samples[name]),
                "min": min(samples[name]),
                "max": max(samples[name]),
            }
            for name, unit, _ in figures
        ],
    }


class _Bench:
    def __init__(self, llm: LLM, rng: random.Random) -> None:
        self._llm = llm
        self._rng = rng
        # Ordinary words lie between the bytes and special tokens and the tail of rare ones.
        vocabulary = llm.info.vocab_size
        self._tokens = range(min(1000, vocabulary // 4), min(40_000, max(vocabulary - vocabulary // 8, 2)))

    def run(self, count: int, prompt: int, tokens: int) -> list[RequestOutput]:
        prompts = [self._rng.choices(self._tokens, k=prompt) for _ in range(count)]
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        return self._llm.generate(prompts, params, use_tqdm=False)

    def throughput(self, count: int, tokens: int) -> float:
        began = time.perf_counter()
        outputs = self.run(count, 64, max(tokens, 1))
        return sum(output.usage.completion_tokens for output in outputs) / (time.perf_counter() - began)


def _decode_speed(output: RequestOutput) -> float:
    return (output.usage.completion_tokens - 1) / (output.timings.total - output.timings.first_token)
