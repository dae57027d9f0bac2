"""This engine beside its peers on the same model, threads and client: one table of ratios, interleaved in one run.

A speed on a shared machine is a ratio: every repetition measures all engines one after the other, and the table shows
the median with minimum and maximum. `make bench` runs it on the three models of the golden tests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
import venv
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from peers.servers import Server, model_id, serve

ROOT = Path(__file__).resolve().parent.parent
PEERS = ["xllamacpp==2026.10.11549"]
MODELS = [
    "smollm2-135m-instruct-q4_1.gguf",
    "gemma-3-270m-q4_k_m.gguf",
    "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
]
VOCABULARY = (1000, 40000)
"""Range of random prompt tokens: ordinary words in all three vocabularies."""


@dataclass
class Stream:
    """Times of one streamed answer, seconds."""

    first: float
    """From sending to the first token."""
    total: float
    gaps: list[float] = field(default_factory=list[float])
    """Between chunks."""
    tokens: int = 0


def prompt(rng: random.Random, length: int) -> list[int]:
    """A prompt no cache has seen."""
    return [rng.randrange(*VOCABULARY) for _ in range(length)]


async def stream(client: httpx.AsyncClient, server: Server, model: str, ids: list[int], tokens: int) -> Stream:
    """Send one completion and time its chunks."""
    body = {
        "model": model,
        "prompt": ids,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = time.perf_counter()
    times: list[float] = []
    produced = 0
    async with client.stream("POST", f"{server.url}/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{server.name}: {response.status_code} {await response.aread()!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("usage"):
                produced = int(event["usage"]["completion_tokens"])
            if event.get("choices"):
                times.append(time.perf_counter())
    ended = time.perf_counter()
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
    return Stream(times[0] - began, ended - began, gaps, produced)


async def measure(server: Server, what: str, size: int, rng: random.Random) -> float:
    """One figure of one server: tokens a second, or seconds for the ttft rows."""
    limits = httpx.Limits(max_connections=256)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:
        model = model_id(server.url)
        if what == "prefill":
            return size / (await stream(client, server, model, prompt(rng, size), 1)).first
        if what == "decode":
            got = await stream(client, server, model, prompt(rng, max(size, 8)), 128)
            return (got.tokens - 1) / (got.total - got.first)
        if what == "turns":
            history = prompt(rng, 200)
            got = await stream(client, server, model, history, 16)
            for _ in range(size - 1):
                history = history + prompt(rng, 120)
                got = await stream(client, server, model, history, 16)
            return got.first
        began = time.perf_counter()
        got = await asyncio.gather(*(stream(client, server, model, prompt(rng, 64), 64) for _ in range(size)))
        if what == "streams":
            return sum(one.tokens for one in got) / (time.perf_counter() - began)
        gaps = sorted(gap for one in got for gap in one.gaps)
        return gaps[int(len(gaps) * 0.99)]


ROWS = [
    ("prefill", 512),
    ("prefill", 2048),
    ("decode", 0),
    ("decode", 4096),
    ("turns", 6),
    ("streams", 1),
    ("streams", 4),
    ("streams", 16),
    ("streams", 64),
    ("p99 gap", 64),
]
LOWER_IS_BETTER = {"turns", "p99 gap", "cold start", "resident"}
UNITS = {"turns": "s", "p99 gap": "s", "cold start": "s", "resident": "MB"}


def spread(values: list[float]) -> dict[str, float]:
    """Median with minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def compare(model: Path, options: argparse.Namespace, peers: Path) -> dict[str, object]:
    """All rows for one model; servers run side by side, measured in turns."""
    samples: dict[str, dict[str, list[float]]] = {}
    engines = ["fastchat_rs", "llama.cpp"]
    rows = [row for row in ROWS if options.rows is None or f"{row[0]} {row[1]}" in options.rows]
    with ExitStack() as stack:
        single = {name: stack.enter_context(serve(name, model, options.threads, 1, peers)) for name in engines}
        many = {**single}
        if any(size > 1 for what, size in rows if what in ("streams", "p99 gap")):
            many["llama.cpp"] = stack.enter_context(serve("llama.cpp", model, options.threads, 64, peers))
        for server in single.values():
            samples.setdefault("cold start", {})[server.name] = [server.start_s]
            samples.setdefault("resident", {})[server.name] = [server.resident_mb()]
        for repetition in range(options.repeat):
            for what, size in rows:
                parallel = what in ("streams", "p99 gap") and size > 1
                for name, server in (many if parallel else single).items():
                    rng = random.Random(f"{repetition} {what} {size}")
                    value = asyncio.run(measure(server, what, size, rng))
                    samples.setdefault(f"{what} {size}", {}).setdefault(name, []).append(value)
                    print(f"  {what} {size} {name}: {value:.4g}", file=sys.stderr, flush=True)
    table: dict[str, object] = {}
    for row, by_engine in samples.items():
        ours, theirs = by_engine["fastchat_rs"], by_engine["llama.cpp"]
        lower = row.rsplit(" ", 1)[0] in LOWER_IS_BETTER or row in LOWER_IS_BETTER
        ratios = [(b / a) if lower else (a / b) for a, b in zip(ours, theirs, strict=True)]
        table[row] = {name: spread(values) for name, values in by_engine.items()} | {"ratio": spread(ratios)}
    return table


def show(model: str, table: dict[str, object]) -> str:
    """A Markdown table; a ratio above 1 means this engine is better."""
    lines = [f"**{model}**", "", "| | fastchat_rs | llama.cpp | ratio (min - max) |", "|---|---|---|---|"]
    for row, raw in table.items():
        entry: dict[str, dict[str, float]] = raw  # type: ignore[assignment]
        what = row.rsplit(" ", 1)[0] if row[-1].isdigit() else row
        unit = UNITS.get(what, "tok/s")
        ours, theirs, ratio = entry["fastchat_rs"], entry["llama.cpp"], entry["ratio"]
        values = f"{ours['median']:.3g} {unit} | {theirs['median']:.3g} {unit}"
        lines.append(f"| {row} | {values} | {ratio['median']:.2f} ({ratio['min']:.2f} - {ratio['max']:.2f}) |")
    return "\n".join(lines)


def peers_python() -> Path:
    """The peers' own environment, made on first use so that their packages never meet ours."""
    folder = ROOT / ".venv-peers"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS], check=True)
    return python


def cpu_name() -> str:
    """The processor, as the kernel names it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def main() -> None:
    """Measure, print the tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="folder with the GGUF files")
    parser.add_argument("--only", nargs="*", help="parts of file names to measure")
    parser.add_argument("--rows", nargs="*", help='rows to measure, such as "decode 0"')
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, default=ROOT / "benches" / "results.json")
    options = parser.parse_args()
    peers = peers_python()
    results: dict[str, object] = {"cpu": cpu_name(), "threads": options.threads, "peers": PEERS}
    for name in MODELS:
        if options.only and not any(part in name for part in options.only):
            continue
        if not (options.models / name).exists():
            print(f"SKIPPED: {name} is not in {options.models}; `make models` fetches it", file=sys.stderr)
            continue
        table = compare(options.models / name, options, peers)
        results[name] = table
        print(show(name, table), end="\n\n", flush=True)
    options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
