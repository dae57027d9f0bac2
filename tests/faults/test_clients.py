"""Clients that leave at any point, stall, stay idle, or are too many."""

import asyncio
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from live import Live, serving
from wire import Answer, Pool, Wire, ask, request_bytes

CHAT = "/v1/chat/completions"


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def descriptors(live: Live) -> int:
    """Open files of the server."""
    return len(list(Path(f"/proc/{live.process.pid}/fd").iterdir()))


async def first_token(live: Live) -> float:
    """Seconds."""
    wire = await Wire.open(live.port)
    began = time.monotonic()
    wire.send(request_bytes(CHAT, live.chat(stream=True, max_tokens=2)))
    await wire.head()
    seconds = time.monotonic() - began
    wire.close()
    return seconds


def fill(live: Live) -> None:
    """The cache takes memory from its first use on; after this it has it."""
    blocks = live.metrics()["fastchat_kv_blocks_total"]
    for start in range(int(blocks * 16 / 900) + 1):
        prompt = [1000 + (start * 7919 + place) % 40000 for place in range(900)]
        body = {"model": live.model, "prompt": prompt, "max_tokens": 1}
        assert live.post("/v1/completions", body).status_code == 200


@pytest.mark.timeout(600)
def test_an_answered_request_leaves_nothing(demo_model: Path, scale: int, figure: Any) -> None:
    count = 700 * scale
    with serving(demo_model, "--max-model-len", "1024", "--kv-memory", "24MiB", "--max-num-seqs", "16") as live:
        fill(live)
        bodies = [live.chat(f"Count to {n % 9}.", max_tokens=1, stream=n % 2 == 0) for n in range(count)]

        async def main() -> None:
            room = asyncio.Semaphore(8)

            async def one(body: dict[str, Any]) -> None:
                async with room:
                    assert (await ask(live.port, CHAT, body)).done

            await asyncio.gather(*map(one, bodies))

        # The first batches warm up; what leaks does so in each.
        left: list[float] = []
        for _ in range(4):
            before = live.memory()
            asyncio.run(main())
            live.idle()
            left.append((live.memory() - before) / count)
        assert min(left) < 1024
        figure(f"{count} answers left {min(left):.0f} bytes each, the fewest of {len(left)} batches")


@pytest.mark.timeout(600)
def test_cancel_storm(demo_model: Path, scale: int, figure: Any) -> None:
    count = 150 * scale
    options = ("--max-model-len", "1024", "--kv-memory", "48MiB", "--max-num-seqs", "16", "--heartbeat", "0.5")
    with serving(demo_model, *options) as live:
        fill(live)
        asyncio.run(ask(live.port, CHAT, live.chat()))
        before, memory, files = live.idle(), live.memory(), descriptors(live)

        async def one(seed: int, room: asyncio.Semaphore) -> None:
            mine = random.Random(seed)
            async with room:
                wire = await Wire.open(live.port)
                prompt = " ".join(mine.choices(("red", "green", "blue", "seven"), k=mine.choice((5, 50, 500))))
                body = live.chat(
                    prompt, stream=mine.random() < 0.6, max_tokens=100, ignore_eos=True, n=mine.choice((1, 1, 2))
                )
                request = request_bytes(CHAT, body)
                # Some stop in the middle of the body, some have a second request waiting.
                wire.send(request[: -mine.randrange(1, 100)] if mine.random() < 0.1 else request)
                if body["stream"] and mine.random() < 0.15:
                    wire.send(request)
                try:
                    await asyncio.wait_for(wire.reader.read(200), mine.choice((0.001, 0.02, 0.2, 1.0)))
                except asyncio.TimeoutError:
                    pass
                wire.reset() if mine.random() < 0.5 else wire.close()

        async def storm() -> float:
            room = asyncio.Semaphore(64)
            await asyncio.gather(*(one(seed, room) for seed in range(count)))
            return await first_token(live)

        first = asyncio.run(storm())
        began = time.monotonic()
        # A pipelined request is found by the next write to it; the heartbeat is its bound.
        after = live.idle(60)
        freed = time.monotonic() - began
        assert after["fastchat_kv_blocks_free"] == before["fastchat_kv_blocks_free"]
        assert after["fastchat_requests_open"] <= 1
        grown = live.memory() - memory
        assert grown < 64 << 20
        assert descriptors(live) <= files + 4
        figure(
            f"{count} clients left; next first token {first:.2f} s, free after {freed:.2f} s, {grown >> 20} MiB more"
        )


@pytest.mark.timeout(600)
def test_stalled_readers(demo_model: Path, scale: int, figure: Any) -> None:
    count = min(4 * scale, 64)
    options = ("--max-model-len", "512", "--stall-timeout", "2", "--max-num-seqs", "128")
    with serving(demo_model, *options) as live:
        # 20 log-probabilities a token and four choices: more than the sockets hold.
        fat = live.chat(
            stream=True, n=4, max_tokens=120, ignore_eos=True, logprobs=True, top_logprobs=20, temperature=1
        )
        thin = live.chat(stream=True, max_tokens=40, ignore_eos=True)

        async def crowd(stalled: bool) -> tuple[float, int]:
            others = [await Wire.open(live.port, buffer=4096) for _ in range(count)]
            readers: list[asyncio.Task[Answer]] = []
            for other in others:
                other.send(request_bytes(CHAT, fat))
                if stalled:
                    # asyncio reads ahead only as far as its limit once paused.
                    transport: Any = other.writer.transport
                    transport.pause_reading()
                else:
                    readers.append(asyncio.ensure_future(other.answer()))
            began = time.monotonic()
            answers = await asyncio.gather(*(ask(live.port, CHAT, thin) for _ in range(count)))
            seconds = time.monotonic() - began
            assert all(answer.done for answer in answers)
            assert len({answer.body.count(b"data: ") for answer in answers}) == 1
            for reader in readers:
                assert (await reader).done
            peak = live.memory()
            if stalled:
                until = time.monotonic() + 60
                # Cut: the server holds neither the requests nor the sockets.
                while live.metrics()["fastchat_requests_open"] > 1 or descriptors(live) > files + 4:
                    assert time.monotonic() < until, "stalled readers are still there"
                    await asyncio.sleep(0.1)
            for other in others:
                other.reset()
            return seconds, peak

        asyncio.run(ask(live.port, CHAT, thin))
        live.idle(20)
        files = descriptors(live)
        alone, _ = asyncio.run(crowd(False))
        live.idle(20)
        memory = live.memory()
        beside, peak = asyncio.run(crowd(True))
        live.idle(20)
        grown = peak - memory
        # At most what was written for them is held.
        assert grown < count * (16 << 20)
        figure(
            f"{count} live beside {count} stalled: {alone / beside:.0%} of the pace beside readers that read, "
            f"{grown >> 20} MiB more at the peak"
        )


@pytest.mark.timeout(600)
def test_overload(demo_model: Path, scale: int, figure: Any) -> None:
    options = ("--max-model-len", "512", "--max-num-seqs", "4", "--max-queue", "4")
    with serving(demo_model, *options) as live:
        body = live.chat(stream=True, max_tokens=24, ignore_eos=True)
        request = request_bytes(CHAT, body)

        def pace(answers: list[Answer]) -> float:
            """The median of the streams' mean times between tokens."""
            assert all(answer.done for answer in answers)
            spans = [(answer.times[-1] - answer.times[0]) / (len(answer.times) - 1) for answer in answers]
            return statistics.median(spans)

        async def together(seconds: float) -> list[Answer]:
            """Of as many clients as may run, all at once, over and over."""
            pool, found = Pool(live.port), list[Answer]()
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                found += await asyncio.gather(*(pool.ask(request) for _ in range(4)))
            pool.close()
            return found

        async def following(seconds: float) -> list[Answer]:
            """The same with each client for itself: the prompts of others are read meanwhile."""
            pool, found = Pool(live.port), list[Answer]()
            until = time.monotonic() + seconds

            async def one() -> None:
                while time.monotonic() < until:
                    found.append(await pool.ask(request))

            await asyncio.gather(*(one() for _ in range(4)))
            pool.close()
            return found

        async def flood(rate: float, seconds: float, seed: int) -> list[Answer]:
            """Requests that come when they come, whatever became of the earlier ones."""
            arrivals: list[asyncio.Task[Answer]] = []
            rng, pool = random.Random(seed), Pool(live.port)
            at = time.monotonic()
            until = at + seconds
            while (at := at + rng.expovariate(rate)) < until:
                await asyncio.sleep(max(at - time.monotonic(), 0))
                arrivals.append(asyncio.ensure_future(pool.ask(request)))
            try:
                return await asyncio.gather(*arrivals)
            finally:
                pool.close()

        asyncio.run(together(1))
        began = time.monotonic()
        most = len(asyncio.run(following(2))) / (time.monotonic() - began)
        answers: list[Answer] = []
        ratios: list[tuple[float, float]] = []
        recovered = 0.0
        # In turns, because the machine's own pace changes.
        for turn in range(scale):
            unloaded, followed = pace(asyncio.run(together(1))), pace(asyncio.run(following(1)))
            flooded = asyncio.run(flood(10 * most, 6, turn))
            began = time.monotonic()
            live.idle(20)
            assert asyncio.run(ask(live.port, CHAT, body)).done
            recovered = max(recovered, time.monotonic() - began)
            paced = pace([answer for answer in flooded if answer.status == 200])
            ratios.append((paced / unloaded, paced / followed))
            answers += flooded
        good = [answer for answer in answers if answer.status == 200]
        bad = [answer for answer in answers if answer.status != 200]
        assert good and bad and {answer.status for answer in bad} == {503}
        assert all(answer.headers["retry-after"] and b'"overloaded"' in answer.body for answer in bad)
        times = [answer.seconds for answer in bad]
        to_unloaded, to_followed = zip(*ratios, strict=True)
        figure(
            f"{10 * most:.0f} requests a second, ten times what it can: {len(good)} answered, {len(bad)} refused in "
            f"{6 * scale} s; refusals p50 {percentile(times, 0.5) * 1000:.0f} ms, "
            f"p99 {percentile(times, 0.99) * 1000:.0f} ms; answered ones at {statistics.median(to_unloaded):.2f} "
            f"({min(to_unloaded):.2f} to {max(to_unloaded):.2f}) times the unloaded time between tokens, "
            f"{statistics.median(to_followed):.2f} times that of as many streams which follow one another; "
            f"recovered in {recovered:.1f} s"
        )


def streamed_text(answer: Answer) -> str:
    """What all events of a stream add up to."""
    lines = [line[6:] for line in answer.body.splitlines() if line.startswith(b"data: {")]
    deltas = [choice["delta"] for line in lines for choice in json.loads(line)["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


@pytest.mark.timeout(600)
def test_idle_connections(demo_model: Path, scale: int, figure: Any) -> None:
    count, streams = min(1000 * scale, 10_000), min(10 * scale, 100)
    with serving(demo_model, "--max-model-len", "512", "--max-num-seqs", "128") as live:

        async def main() -> int:
            body = live.chat(stream=True, max_tokens=20)
            whole = json.loads((await ask(live.port, CHAT, live.chat(max_tokens=20))).body)
            expected = whole["choices"][0]["message"]["content"]
            await asyncio.gather(*(ask(live.port, CHAT, body) for _ in range(streams)))
            before = live.memory()
            idle: list[Wire] = []
            for _ in range(count):
                wire = await Wire.open(live.port)
                idle.append(wire)
                if len(idle) % 2:
                    # Half of them have been used; the others never say a word.
                    wire.send(request_bytes("/health", None, method="GET"))
                    assert (await wire.answer()).status == 200
            each = (live.memory() - before) // count
            answers = await asyncio.gather(*(ask(live.port, CHAT, body) for _ in range(streams)))
            assert all(answer.done for answer in answers)
            # Texts, not events: those of a reader that is behind are joined.
            assert {streamed_text(answer) for answer in answers} == {expected}
            for wire in idle:
                wire.close()
            return each

        each = asyncio.run(main())
        assert each <= 32 << 10
        figure(f"{count} idle connections beside {streams} streams: {each / 1024:.1f} KiB each")
