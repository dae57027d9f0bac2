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

import aiohttp

from fastchat_rs.llm import machine_limits
from peers.mistral_rs import PeerError, mistralrs
from peers.servers import Server, model_id, read_once, serve

ROOT = Path(__file__).resolve().parent.parent
PEERS = ["xllamacpp==2026.10.11549", "mistralrs==0.9.5"]
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


async def stream(client: aiohttp.ClientSession, server: Server, model: str, ids: list[int], tokens: int) -> Stream:
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
    async with client.post(f"{server.url}/v1/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"{server.name}: {response.status} {await response.read()!r}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            # The client shares the processor with the server: it looks into the event with the usage only.
            if b'"choices":[]' in line or b'"prompt_tokens"' in line:
                produced = int(json.loads(line[6:])["usage"]["completion_tokens"])
            else:
                times.append(time.perf_counter())
    ended = time.perf_counter()
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
    return Stream(times[0] - began, ended - began, gaps, produced)


async def measure(server: Server, what: str, size: int, rng: random.Random) -> dict[str, float]:
    """The figures of one row of one server: tokens a second, or seconds."""
    # A new connection each time: llama.cpp's server closes idle ones without notice.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
        model = model_id(server.url)
        if what == "prefill":
            return {f"{what} {size}": size / (await stream(client, server, model, prompt(rng, size), 1)).first}
        if what == "decode":
            got = await stream(client, server, model, prompt(rng, max(size, 8)), 128)
            return {f"{what} {size}": (got.tokens - 1) / (got.total - got.first)}
        if what == "turns":
            history = prompt(rng, 200)
            got = await stream(client, server, model, history, 16)
            for _ in range(size - 1):
                history = history + prompt(rng, 120)
                got = await stream(client, server, model, history, 16)
            return {f"{what} {size}": got.first}
        began = time.perf_counter()
        streams = await asyncio.gather(*(stream(client, server, model, prompt(rng, 64), 64) for _ in range(size)))
        elapsed = time.perf_counter() - began
        gaps = sorted(gap for one in streams for gap in one.gaps)
        return {
            f"streams {size}": sum(one.tokens for one in streams) / elapsed,
            f"p99 gap {size}": gaps[int(len(gaps) * 0.99)],
        }


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
]
ENGINES = ["fastchat_rs", "llama.cpp"]
Table = dict[str, dict[str, dict[str, float]]]
"""By row: each engine and the ratio, each with median, min and max."""
LOWER_IS_BETTER = {"turns", "p99 gap", "cold start", "resident"}
UNITS = {"turns": "s", "p99 gap": "s", "cold start": "s", "resident": "MB"}
MISTRALRS_ROWS = [("prefill", 512), ("decode", 0)]
"""One stream at a time: its wheel has no server, so there are no rows over HTTP; and its CPU path takes minutes
for long prompts, so there is none with thousands of tokens."""


def spread(values: list[float]) -> dict[str, float]:
    """Median with minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def compare(model: Path, options: argparse.Namespace, peers: Path) -> tuple[Table, dict[str, str]]:
    """All rows for one model, servers side by side and in turns; and why mistral.rs has no figure in some."""
    samples: dict[str, dict[str, list[float]]] = {}

    def note(row: str, engine: str, value: float) -> None:
        samples.setdefault(row, {}).setdefault(engine, []).append(value)
        print(f"  {row} {engine}: {value:.4g}", file=sys.stderr, flush=True)

    rows = [row for row in ROWS if options.rows is None or f"{row[0]} {row[1]}" in options.rows]
    read_once(model)
    for _ in range(options.repeat):
        for name in ENGINES:
            with serve(name, model, options.threads, 1, peers) as server:
                note("cold start", name, server.start_s)
                note("resident", name, server.resident_mb())
    with ExitStack() as stack:
        single = {name: stack.enter_context(serve(name, model, options.threads, 1, peers)) for name in ENGINES}
        many = {**single}
        if any(what == "streams" and size > 1 for what, size in rows):
            many["llama.cpp"] = stack.enter_context(serve("llama.cpp", model, options.threads, 64, peers))
        missing: dict[str, str] = {}
        for repetition in range(options.repeat):
            for what, size in rows:
                read, int8, _ = machine_limits(options.threads)
                note("probe: read", "machine", read / 1e9)
                note("probe: int8", "machine", int8 / 1e9)
                parallel = what == "streams" and size > 1
                for name, server in (many if parallel else single).items():
                    rng = random.Random(f"{repetition} {what} {size}")
                    for row, value in asyncio.run(measure(server, what, size, rng)).items():
                        note(row, name, value)
                row = f"{what} {size}"
                if options.no_mistralrs or (what, size) not in MISTRALRS_ROWS or row in missing:
                    continue
                try:
                    with mistralrs(model, options.threads, peers) as other:
                        note(row, "mistral.rs", other.measure(what, size))
                except PeerError as error:
                    missing[row] = str(error)
                    print(f"MISSING: mistral.rs, {row}: {error}", file=sys.stderr, flush=True)
    return {row: summary(row, by_engine) for row, by_engine in samples.items()}, missing


def summary(row: str, by_engine: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Spreads of each engine, and of the ratios to llama.cpp."""
    entry = {name: spread(values) for name, values in by_engine.items()}
    if ENGINES[0] in by_engine:
        ours, theirs = (by_engine[name] for name in ENGINES)
        lower = row.rsplit(" ", 1)[0] in LOWER_IS_BETTER or row in LOWER_IS_BETTER
        entry["ratio"] = spread([(b / a) if lower else (a / b) for a, b in zip(ours, theirs, strict=True)])
    return entry


def show(model: str, table: Table, missing: dict[str, str]) -> str:
    """A Markdown table; a ratio above 1 means this engine is better."""
    header = ["| | fastchat_rs | llama.cpp | ratio (min - max) | mistral.rs |", "|---|---|---|---|---|"]
    lines = [f"**{model}**", "", *header]
    for row, entry in table.items():
        if "machine" in entry:
            continue
        what = row.rsplit(" ", 1)[0] if row[-1].isdigit() else row
        unit = UNITS.get(what, "tok/s")
        values = [f"{entry[name]['median']:.3g} {unit}" if name in entry else "" for name in (*ENGINES, "mistral.rs")]
        ratio = entry["ratio"]
        ratios = f"{ratio['median']:.2f} ({ratio['min']:.2f} - {ratio['max']:.2f})"
        lines.append(f"| {row} | {values[0]} | {values[1]} | {ratios} | {values[2]} |")
    read, int8 = table["probe: read"]["machine"], table["probe: int8"]["machine"]
    lines += [
        "",
        f"Between the rows the machine read {read['median']:.3g} ({read['min']:.3g} - {read['max']:.3g}) GB/s and did "
        f"{int8['median']:.3g} ({int8['min']:.3g} - {int8['max']:.3g}) billion 8-bit operations a second.",
    ]
    lines += [f"mistral.rs, {row}: not measured, {why}." for row, why in missing.items()]
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
    rows = [f"{what} {size}" for what, size in ROWS]
    parser.add_argument("--rows", nargs="*", choices=rows, metavar="ROW", help='rows to measure, such as "decode 0"')
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--no-mistralrs", action="store_true", help="leave out mistral.rs, which is slow")
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
        table, missing = compare(options.models / name, options, peers)
        results[name] = {**table, "missing": missing} if missing else table
        print(show(name, table, missing), end="\n\n", flush=True)
    options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
