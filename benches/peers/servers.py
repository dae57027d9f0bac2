"""Starting and stopping the servers under comparison: this engine and llama.cpp, each in its own process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

HERE = Path(__file__).parent
START_LIMIT_S = 120.0


@dataclass(frozen=True)
class Server:
    """A running server: where it listens and its process."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    start_s: float
    """Seconds from process start to the end of its first one-token answer."""

    def resident_mb(self) -> float:
        """Resident memory of the process now, in MB."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024 / 1e6
        raise RuntimeError(f"{self.name}: no VmRSS")


def free_port() -> int:
    """A TCP port nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def read_once(model: Path) -> None:
    """Bring the model's file into the page cache, so that no engine pays for the disk."""
    with model.open("rb") as file:
        while file.read(1 << 24):
            pass


def command(name: str, model: Path, port: int, threads: int, slots: int, peers: Path) -> list[str]:
    """The command line that serves `model` with engine `name` and room for `slots` parallel streams."""
    if name == "fastchat_rs":
        return [
            *(sys.executable, "-m", "fastchat_rs", "serve", str(model)),
            *("--port", str(port), "--threads", str(threads), "--max-model-len", "8192"),
            # The peers do not guess ahead, and random prompts make small models repeat themselves.
            "--no-speculation",
        ]
    if name == "llama.cpp":
        script = [str(peers), str(HERE / "llama_server.py"), str(model)]
        # Many slots get the context that the rows with many streams need, not more: it is allocated at once.
        context = "8192" if slots == 1 else "1024"
        arguments = ["--port", str(port), "--threads", str(threads), "--slots", str(slots), "--context", context]
        return [*script, *arguments]
    raise ValueError(f"unknown engine: {name}")


@contextmanager
def serve(name: str, model: Path, threads: int, slots: int, peers: Path, more: Sequence[str] = ()) -> Iterator[Server]:
    """Start a server, wait for its first token, stop it by its own process id at the end. `more` is for both."""
    port = free_port()
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command(name, model, port, threads, slots, peers), *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RAYON_NUM_THREADS": str(threads)},
    )
    url = f"http://127.0.0.1:{port}"
    # One for all tries: each would read certificates anew, on the processors that the server starts on.
    client = httpx.Client(verify=False, timeout=30, limits=httpx.Limits(max_keepalive_connections=0))
    try:
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended with status {process.returncode} before it answered")
            try:
                body = {"prompt": "one two", "max_tokens": 1, "model": model_id(url, client)}
                if client.post(f"{url}/v1/completions", json=body).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            if time.perf_counter() - began > START_LIMIT_S:
                raise RuntimeError(f"{name} did not answer in {START_LIMIT_S} s")
            time.sleep(0.01)
        yield Server(name, url, process, time.perf_counter() - began)
    finally:
        client.close()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def model_id(url: str, client: httpx.Client | None = None) -> str:
    """The id the server gives its model."""
    get = httpx.get if client is None else client.get
    response = get(f"{url}/v1/models", timeout=10).raise_for_status()
    return str(response.json()["data"][0]["id"])
