"""A server in its own process, started as a user starts it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

READY = re.compile(r"ready on http://127\.0\.0\.1:(\d+)")


@dataclass
class Live:
    """A running server."""

    process: subprocess.Popen[str]
    port: int
    model: str
    lines: list[str] = field(default_factory=list[str])

    @property
    def url(self) -> str:
        """Without a path."""
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> httpx.Client:
        """Closes its connections when left."""
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def openai(self, key: str = "any", *, strict: bool = True) -> OpenAI:
        """The official client, checking every reply against its own types, never trying again."""
        url = f"{self.url}/v1"
        return OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60, _strict_response_validation=strict)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        """One request on its own connection."""
        with self.client() as client:
            return client.post(path, json=body, **options)

    def chat(self, content: str = "Say hello.", **fields: Any) -> dict[str, Any]:
        """A greedy chat request's body."""
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "temperature": 0}
        return {**body, "max_tokens": 16, **fields}

    def metrics(self) -> dict[str, float]:
        """Samples of /metrics without labels of the model."""
        with self.client() as client:
            text = client.get("/metrics").text
        samples = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {re.sub(r'\{model_name="[^"]*"\}', "", name): float(value) for name, value in samples}

    def metrics_of(self, name: str) -> dict[str, float]:
        """One metric of each model."""
        with self.client() as client:
            found = re.findall(rf'^{name}{{model_name="([^"]*)"}} (.*)$', client.get("/metrics").text, re.MULTILINE)
        return {model: float(value) for model, value in found}

    def idle(self, seconds: float = 5) -> dict[str, float]:
        """Waits until nothing runs; the metrics then."""
        until = time.monotonic() + seconds
        while True:
            now = self.metrics()
            if not now["fastchat_requests_running"] and not now["fastchat_requests_waiting"]:
                return now
            assert time.monotonic() < until, f"still busy after {seconds} s: {now}"
            time.sleep(0.02)

    def memory(self) -> int:
        """Resident bytes."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self, seconds: float = 20) -> int:
        """SIGTERM, then the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextmanager
def serving(model: Path, *options: str, environment: Mapping[str, str] | None = None) -> Generator[Live, None, None]:
    """Starts, waits for the ready line, and always ends the process."""
    command = [sys.executable, "-m", "fastchat_rs", "serve", str(model), "--port", "0", *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    assert process.stdout is not None
    lines: list[str] = []
    port = 0
    drain = threading.Thread(target=lines.extend, args=(process.stdout,))
    try:
        for line in process.stdout:
            lines.append(line)
            if found := READY.search(line):
                port = int(found[1])
                break
        assert port, f"the server did not start: {''.join(lines)}"
        # The rest of the output must not fill the pipe.
        drain.start()
        yield Live(process, port, model.stem, lines)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if port:
            drain.join()
        process.stdout.close()


def events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The JSON of a stream's events. Checks the framing, and that [DONE] comes last and once."""
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    done = False
    for line in response.iter_lines():
        assert line == "" or line.startswith(("data: ", ": ")), line
        if line.startswith("data: "):
            assert not done
            done = line == "data: [DONE]"
            if not done:
                yield json.loads(line[6:])
    assert done


def streamed(live: Live, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """All events of a stream."""
    with live.client() as client, client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        return list(events(response))


def raw(live: Live, request: bytes, seconds: float = 10) -> bytes:
    """What the server sends until it closes, or until it is silent for a while."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=seconds) as connection:
        connection.sendall(request)
        parts: list[bytes] = []
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except TimeoutError:
            pass
        return b"".join(parts)
