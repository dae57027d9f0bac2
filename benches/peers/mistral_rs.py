"""mistral.rs under comparison: a worker process that answers over pipes, with the rows it can be measured on."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DECODE_TOKENS = 32
"""Fewer than the others decode: it is several times slower and its speed does not change with the number."""


class Worker:
    """One loaded model."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def _read(self) -> dict[str, Any]:
        stdout = self.process.stdout
        while stdout is not None and (line := stdout.readline()):
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"mistral.rs ended with status {self.process.wait()}")

    def ask(self, words: int, max_tokens: int) -> dict[str, Any]:
        """Tokens and seconds of one completion."""
        stdin = self.process.stdin
        if stdin is None:
            raise RuntimeError("mistral.rs has no standard input")
        stdin.write(json.dumps({"words": words, "max_tokens": max_tokens, "salt": time.monotonic_ns()}) + "\n")
        stdin.flush()
        return self._read()

    def measure(self, what: str, size: int) -> float:
        """Tokens a second of a `prefill` of `size` tokens, or of `decode` after a short prompt."""
        if what == "prefill":
            got = self.ask(size, 1)
            return got["prompt_tokens"] / got["seconds"]
        first, all_of_it = self.ask(4, 1), self.ask(4, 1 + DECODE_TOKENS)
        tokens = all_of_it["completion_tokens"] - first["completion_tokens"]
        return tokens / (all_of_it["seconds"] - first["seconds"])

    def wait_ready(self) -> None:
        """Return once the model is loaded."""
        self._read()


@contextmanager
def mistralrs(model: Path, threads: int, peers: Path) -> Iterator[Worker]:
    """A worker, stopped by its own process id at the end."""
    process = subprocess.Popen(
        [str(peers), str(HERE / "mistral_rs_worker.py"), str(model.resolve())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "RAYON_NUM_THREADS": str(threads)},
    )
    try:
        worker = Worker(process)
        worker.wait_ready()
        yield worker
    finally:
        process.kill()
        process.wait()
