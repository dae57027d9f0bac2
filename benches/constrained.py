"""The pace of a constrained stream beside an unconstrained one of the same length, on this engine's server.

Both streams go on to `max_tokens`, in turns; the table shows tokens a second and the median ratio with minimum and
maximum. What a mask alone costs is `cargo bench -p fastchat-benches --bench masks`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import httpx

from compare import ROOT
from peers.servers import model_id, serve

TEXT: dict[str, Any] = {"type": "string", "minLength": 2000}
CONSTRAINTS: dict[str, dict[str, Any]] = {
    "string": {"guided_json": TEXT},
    "objects": {
        "guided_json": {
            "type": "array",
            "minItems": 100,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "minLength": 3},
                    "size": {"type": "integer"},
                    "colour": {"enum": ["red", "green", "blue"]},
                },
                "required": ["name", "size", "colour"],
                "additionalProperties": False,
            },
        }
    },
    "regex": {"regex": "([a-z]{2,9} ){500}"},
}


def pace(client: httpx.Client, model: str, fields: dict[str, Any], tokens: int) -> float:
    """Tokens a second after the first."""
    body = {"model": model, "prompt": "Write a list of things:\n", "max_tokens": tokens, "temperature": 0}
    body |= {"stream": True, "stream_options": {"include_usage": True}, **fields}
    times: list[float] = []
    produced = 0
    with client.stream("POST", "/v1/completions", json=body) as reply:
        if reply.status_code != 200:
            raise RuntimeError(reply.read().decode())
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                if event["choices"]:
                    times.append(time.perf_counter())
                else:
                    produced = event["usage"]["completion_tokens"]
    if produced != tokens:
        raise RuntimeError(f"{produced} tokens instead of {tokens}")
    return (produced - 1) / (times[-1] - times[0])


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CONSTRAINTS}
    with (
        serve("fastchat_rs", options.model, options.threads, 1, Path()) as server,
        httpx.Client(base_url=server.url, timeout=600) as client,
    ):
        model = model_id(server.url)
        for fields in CONSTRAINTS.values():
            pace(client, model, fields, 8)
        for _ in range(options.repeat):
            for name, fields in CONSTRAINTS.items():
                free = pace(client, model, {"ignore_eos": True}, options.tokens)
                found[name].append((free, pace(client, model, fields, options.tokens)))
    print("| constraint | free tok/s | constrained tok/s | ratio (min - max) |\n|---|---|---|---|")
    for name, pairs in found.items():
        ratios = [bound / free for free, bound in pairs]
        free, bound = (statistics.median(pair[at] for pair in pairs) for at in (0, 1))
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
        print(f"| {name} | {free:.1f} | {bound:.1f} | {spread} |")


if __name__ == "__main__":
    main()
