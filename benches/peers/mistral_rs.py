"""mistral.rs under comparison: a worker process that answers over pipes, with the rows it can be measured on."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DECODE_TOKENS = 32
"""Fewer than the others decode: it is several times slower and its speed does not change with the number."""


ANSWER_LIMIT_S = 240.0
"""For loading, and for one answer. Prompts go through its CPU path token by token."""


class PeerError(Exception):
    """Why a row could not be measured."""


class Worker:
    """One loaded model."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def _read(self) -> dict[str, Any]:
        stdout = self.process.stdout
        if stdout is None:
            raise PeerError("it has no standard output")
        until = time.monotonic() + ANSWER_LIMIT_S
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while selector.select(max(0.0, until - time.monotonic())):
                # Unbuffered, so that a line is never both read and waited for.
                line = stdout.readline()
                if not line:
                    raise PeerError(f"it ended with status {self.process.wait()}")
                if line.startswith(b"{"):
                    return json.loads(line)
        raise PeerError(f"no answer within {ANSWER_LIMIT_S:.0f} s")

    def ask(self, words: int, max_tokens: int) -> dict[str, Any]:
        """Tokens and seconds of one completion."""
        stdin = self.process.stdin
        if stdin is None:
            raise PeerError("it has no standard input")
        asked = {"words": words, "max_tokens": max_tokens, "salt": time.monotonic_ns()}
        try:
            stdin.write(json.dumps(asked).encode() + b"\n")
        except OSError as error:
            raise PeerError(f"it ended with status {self.process.wait()}") from error
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
    """A worker for one row, so that it takes nothing from the others; stopped by its own process id at the end."""
    process = subprocess.Popen(
        [str(peers), str(HERE / "mistral_rs_worker.py"), str(model.resolve())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env={**os.environ, "RAYON_NUM_THREADS": str(threads)},
    )
    try:
        worker = Worker(process)
        worker.wait_ready()
        yield worker
    finally:
        process.kill()
        process.wait()
