"""The ring that a stream is kept in, the cache of answers, and the watch over memory; no server needed."""

import asyncio
import sqlite3
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fastchat_rs.config import ServeConfig
from fastchat_rs.server import guard
from fastchat_rs.server.api_error import ApiError
from fastchat_rs.server.guard import memory_limit, memory_used, pressure
from fastchat_rs.server.http import OPENAI, Request
from fastchat_rs.server.outlet import Ring, Rings
from fastchat_rs.server.responsecache import ResponseCache, cache_key
from fastchat_rs.server.state import Limits, Phase, Pressure, State


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


class Client:
    """Stands for a request and its connection."""

    def __init__(self) -> None:
        self.proto = self
        self.wording = OPENAI
        self.headers_out: list[tuple[str, str]] = []
        self.status = 0
        self.received = b""
        self.gone = asyncio.Event()

    def response_stream(self, status: int, headers: list[tuple[str, str]]) -> "Client":
        self.headers = dict(headers)
        return self

    async def send_bytes(self, data: bytes) -> None:
        self.received += data

    async def client_disconnect(self) -> None:
        await self.gone.wait()


def follow(ring: Ring, client: Client, after: int = 0, heartbeat: float = 5) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(ring.follow(cast(Request, client), after, heartbeat))


def event(number: int) -> bytes:
    return b"data: %d\n\n" % number


def test_a_ring_replays_and_goes_on() -> None:
    async def main() -> None:
        ring = Ring("chatcmpl-1", None, 1000)
        first, late = Client(), Client()
        reading = follow(ring, first)
        await asyncio.sleep(0.01)
        assert not first.status
        ring.begin()
        await ring.send(event(1) + event(2))
        await asyncio.sleep(0.01)
        first.gone.set()
        await reading
        assert first.received == event(1) + event(2) and first.status == 200
        assert first.headers["x-fastchat-resume"] == "chatcmpl-1"
        await ring.send(event(3) + b": ping\n\n")
        again = follow(ring, late, after=1)
        await asyncio.sleep(0.01)
        await ring.send(event(4))
        ring.finish()
        await again
        assert late.received == event(2) + event(3) + event(4)
        assert ring.followers == 0 and ring.count == 4

    run(main())


def test_a_ring_is_bounded() -> None:
    async def main() -> None:
        ring = Ring("x", None, 100)
        ring.begin()
        for number in range(100):
            await ring.send(event(number))
        assert ring.size <= 100 and ring.count == 100
        with pytest.raises(ApiError, match="no longer kept"):
            await ring.follow(cast(Request, Client()), 1, 5)
        with pytest.raises(ApiError, match="more than the 100"):
            await ring.follow(cast(Request, Client()), 101, 5)

    run(main())


def test_a_stream_that_never_began_is_an_error() -> None:
    async def main() -> None:
        ring = Ring("x", None, 100)
        client = Client()
        reading = follow(ring, client)
        await asyncio.sleep(0)
        ring.fail(ApiError(503, "full"))
        ring.finish()
        with pytest.raises(ApiError, match="full"):
            await reading
        assert client.status == 0

    run(main())


def test_a_silent_ring_sends_comments() -> None:
    async def main() -> None:
        ring = Ring("x", None, 100)
        ring.begin()
        client = Client()
        reading = follow(ring, client, heartbeat=0.02)
        await asyncio.sleep(0.1)
        client.gone.set()
        await reading
        assert client.received.count(b": ping\n\n") >= 2

    run(main())


def test_rings_are_the_key_s_own_and_end() -> None:
    async def main() -> None:
        rings = Rings(0.05, 1600)
        ring = rings.open("a", "key-1")
        assert ring and rings.find("a", "key-1") is ring
        for tenant in ("key-2", None):
            with pytest.raises(ApiError) as caught:
                rings.find("a", tenant)
            assert caught.value.status == 404
        ended: list[int] = []
        ring.abandon = lambda: ended.append(1)
        await asyncio.sleep(0.06)
        rings.sweep()
        assert ended
        ring.finish()
        await asyncio.sleep(0.06)
        with pytest.raises(ApiError):
            rings.find("a", "key-1")
        # What is over makes room, what runs does not.
        running = [rings.open(name, None) for name in "bcdefghijklmnopqrs"]
        for one in running:
            assert one
            await one.send(b"data: " + b"x" * 90 + b"\n\n")
        assert rings.size > 1600 and rings.open("z", None) is None
        for one in running[:3]:
            assert one
            one.finish()
        rings.clear()
        assert rings.open("z", None) is not None
        assert Rings(0, 1000).open("a", None) is None

    run(main())


def test_the_cache_is_exact_bounded_and_gives_new_ids(tmp_path: Path) -> None:
    async def main() -> None:
        for place in ("memory", str(tmp_path / "c.db")):
            cache = ResponseCache(place, 16_000)
            one = cache_key(b'{"a": 1, "b": 2}', "tenant", "path")
            assert one == cache_key(b'{"b":2,"a":1}', "tenant", "path")
            for other in (cache_key(b'{"a": 1}', "tenant", "path"), cache_key(b'{"a": 1, "b": 2}', "tenantp", "ath")):
                assert other != one
            assert await cache.get(one, "id-2", 6) is None
            body = b'{"id":"id-1","created":5,"text":"\\"created\\":5"}'
            await cache.put(one, "id-1", 5, body)
            assert await cache.get(one, "id-2", 66) == b'{"id":"id-2","created":66,"text":"\\"created\\":5"}'
            await cache.put(cache_key(b"1"), "x", 1, b"x" * 1001)
            assert await cache.get(cache_key(b"1"), "x", 1) is None
            for number in range(100):
                await cache.put(cache_key(b"%d" % number), "x", 1, b"x" * 900)
                await cache.get(one, "x", 1)
                assert cache.size <= 16_000
            # What was asked for stays.
            assert await cache.get(one, "x", 1) is not None
            await cache.clear()
            assert cache.size == 0 and await cache.get(one, "x", 1) is None

    run(main())


def test_a_cache_survives_and_a_damaged_one_is_made_new(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "c.db"
        await ResponseCache(str(path), 100_000).put(b"k", "a", 1, b"body")
        again = ResponseCache(str(path), 100_000)
        assert again.size == 4 and await again.get(b"k", "a", 1) == b"body"
        bad = tmp_path / "bad.db"
        bad.write_bytes(b"no database" * 1000)
        new = ResponseCache(str(bad), 100_000)
        await new.put(b"k", "a", 1, b"body")
        assert await new.get(b"k", "a", 1) == b"body"
        sqlite3.connect(bad).execute("SELECT 1 FROM answer").close()

    run(main())


def test_pressure_steps_up_at_once_and_down_with_slack() -> None:
    up = [pressure(used, 100, Pressure.NONE) for used in (89, 90, 94, 95)]
    assert up == [Pressure.NONE, Pressure.SOFT, Pressure.SOFT, Pressure.HARD]
    assert pressure(93, 100, Pressure.HARD) is Pressure.HARD
    assert pressure(91, 100, Pressure.HARD) is Pressure.SOFT
    assert pressure(88, 100, Pressure.SOFT) is Pressure.SOFT
    assert pressure(86, 100, Pressure.SOFT) is Pressure.NONE
    assert pressure(10**12, None, Pressure.NONE) is Pressure.NONE


def test_where_the_limit_comes_from(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:       2048 kB\n")
    config = ServeConfig(model="m")
    assert memory_limit(config, tmp_path) == 2 << 20
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert memory_limit(config, tmp_path) == 2 << 20
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("1048576\n")
    assert memory_limit(config, tmp_path) == 1 << 20
    assert memory_limit(ServeConfig(model="m", memory_limit="3MiB"), tmp_path) == 3 << 20
    assert memory_limit(config, tmp_path / "none") is None
    block = bytearray(b"x") * (64 << 20)
    assert memory_used() > len(block)


def test_the_watch_ends_when_the_engine_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(guard, "_DEAD_SECONDS", 0.05)

    async def main() -> None:
        config = ServeConfig(model="m")
        state = State(config, Limits.of(config), phase=Phase.READY)
        stats = SimpleNamespace(alive=True, graph_failure=None)
        model: Any = SimpleNamespace(bridge=SimpleNamespace(engine=SimpleNamespace(stats=lambda: stats)))
        state.models["m"] = model
        context: Any = SimpleNamespace(state=state, rings=Rings(1, 1000), cache=None)
        watching = asyncio.get_running_loop().create_task(guard.Guard(context).watch())
        await asyncio.sleep(0.2)
        assert state.health == "ready" and not watching.done() and state.memory_used > 0
        stats.alive = False
        assert state.health == "dead"
        await watching

    run(main())
