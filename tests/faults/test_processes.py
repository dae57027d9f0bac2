"""Processes that are killed or told to go in the middle of things, and disks that are full."""

import asyncio
import os
import random
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from fastchat_rs import keystore, ledger
from fastchat_rs.keystore import KeyLimits
from live import READY, Live, serving
from wire import Answer, Wire, ask, request_bytes

CHAT = "/v1/chat/completions"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def intact(path: Path) -> None:
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


@pytest.mark.timeout(900)
def test_kill_9(demo_model: Path, tmp_path: Path, scale: int, figure: Any) -> None:
    """The ledger has every answer that a client has whole, and of the others at most what they could have used."""
    rounds = min(4 * scale, 50)
    path, cache, port = tmp_path / "keys.db", tmp_path / "answers.db", free_port()
    record, key = keystore.add(keystore.open_store(path, create=True), "k", KeyLimits(tokens_per_month=10**9))
    options = ("--max-model-len", "512", "--keys", str(path), "--response-cache", str(cache), "--port", str(port))
    rng = random.Random(7)
    seen = requests = open_at_death = 0
    ready: list[float] = []
    headers = {"authorization": f"Bearer {key}"}
    for number in range(rounds):
        began = time.monotonic()
        with serving(demo_model, *options) as live:
            ready.append(time.monotonic() - began)
            book = ledger.Ledger(path, "test")
            # What the dead one had reserved is free, nothing else is lost.
            assert book.held() == 0
            (row,) = book.rows() or [ledger.Row(record.id, "", "", 0, 0, 0, 0)]
            book.close()
            assert seen <= row.prompt + row.completion <= seen + open_at_death
            assert requests <= row.requests
            seen, requests, open_at_death = row.prompt + row.completion, row.requests, 0

            async def one(seed: int, finished: list[int], live: Live = live) -> tuple[int, int, int]:
                mine = random.Random(seed)
                tokens = count = 0
                while True:
                    stream, length = mine.random() < 0.5, mine.randrange(1, 20)
                    body = live.chat(f"{mine.random()}", stream=stream, max_tokens=length, ignore_eos=True)
                    if stream:
                        body["stream_options"] = {"include_usage": True}
                    try:
                        found = await ask(live.port, CHAT, body, **headers)
                    except (OSError, asyncio.IncompleteReadError):
                        found = None
                    if found is None or not found.done:
                        # At most the prompt and all that was asked for.
                        return tokens, count, 100 + length
                    tokens, count = tokens + found.usage()["total_tokens"], count + 1
                    finished.append(count)

            async def main(number: int = number, live: Live = live) -> list[tuple[int, int, int]]:
                finished: list[int] = []
                clients = [asyncio.ensure_future(one(number * 100 + client, finished)) for client in range(4)]
                wanted = rng.randrange(2, 10)
                while len(finished) < wanted:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(rng.uniform(0, 0.2))
                live.process.kill()
                return await asyncio.gather(*clients)

            for tokens, count, unknown in asyncio.run(main()):
                seen, requests, open_at_death = seen + tokens, requests + count, open_at_death + unknown
            live.process.wait(20)
        intact(path)
        intact(cache)
    book = ledger.Ledger(path, "test")
    (row,) = book.rows()
    book.close()
    assert requests >= 2 * rounds
    assert seen <= row.prompt + row.completion <= seen + open_at_death
    assert requests <= row.requests <= requests + 4
    figure(
        f"killed {rounds} times: {row.requests} requests booked, {requests} seen whole at the end, none lost; "
        f"ready again after {max(ready):.1f} s at most"
    )


@pytest.mark.timeout(300)
def test_sigterm_in_every_state(demo_model: Path, figure: Any) -> None:
    options = ("--max-model-len", "1024", "--max-num-seqs", "4", "--drain", "1.5", "--stall-timeout", "60")
    with serving(demo_model, *options) as live:
        long = live.chat(max_tokens=900, ignore_eos=True)
        bodies: dict[str, Any] = {
            "decoding": {**long, "stream": True},
            "whole": long,
            "fat": {**long, "stream": True, "logprobs": True, "top_logprobs": 20},
            "resumable": {**long, "stream": True},
            "queued": {**long, "stream": True},
            "queued, whole": long,
            "short": {**live.chat(max_tokens=3), "stream": True},
        }

        async def main() -> tuple[dict[str, Answer | None], float]:
            wires: dict[str, Wire] = {}
            for name, body in bodies.items():
                wires[name] = await Wire.open(live.port, buffer=4096 if name == "fat" else None)
                headers = {"x-fastchat-resume": "true"} if name == "resumable" else None
                wires[name].send(request_bytes(CHAT, body, headers=headers))
                await asyncio.sleep(0.05)
            wires["half a body"] = await Wire.open(live.port)
            wires["half a body"].send(request_bytes(CHAT, long)[:-10])
            wires["idle"] = await Wire.open(live.port)
            reading = {n: asyncio.ensure_future(w.answer()) for n, w in wires.items() if n not in ("fat", "idle")}
            while not live.metrics()["fastchat_requests_waiting"]:
                await asyncio.sleep(0.02)
            began = time.monotonic()
            live.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.2)
            refused = await ask(live.port, CHAT, long)
            assert refused.status == 503 and b'"draining"' in refused.body
            found: dict[str, Answer | None] = {}
            for name, task in reading.items():
                try:
                    found[name] = await task
                except (OSError, asyncio.IncompleteReadError):
                    found[name] = None
            await asyncio.to_thread(live.process.wait, 30)
            seconds = time.monotonic() - began
            for wire in wires.values():
                wire.reset()
            await asyncio.sleep(0.05)
            return found, seconds

        found, seconds = asyncio.run(main())
        assert live.process.returncode == 0
        for name, answer in found.items():
            # Nobody may think that a piece is the whole.
            if answer is not None and not answer.failed:
                assert answer.done and name == "short", name
        assert (answer := found["short"]) is None or answer.done or answer.failed
        for name in ("decoding", "whole", "resumable", "queued, whole"):
            answer = found[name]
            assert answer is not None and answer.failed and b'"draining"' in answer.body, name
        figure(f"{len(bodies) + 2} states at once, drain 1.5 s: status 0 after {seconds:.1f} s, no truncated success")


def test_a_full_disk_for_the_log(demo_model: Path, figure: Any) -> None:
    command = [sys.executable, "-m", "fastchat_rs", "serve", str(demo_model), "--port", "0", "--access-log"]
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(
            [*command, "--max-model-len", "512"], stdout=subprocess.PIPE, stderr=full, text=True, env=dict(os.environ)
        )
    try:
        assert process.stdout is not None
        port = next(int(found[1]) for line in process.stdout if (found := READY.search(line)))
        for _ in range(20):
            assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=20).status_code == 200
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=20).text
        dropped = next(line for line in text.splitlines() if line.startswith("fastchat_log_lines_dropped_total"))
        assert float(dropped.split()[1]) >= 20
        process.terminate()
        assert process.wait(20) == 0
        figure(f"20 requests answered, {dropped.split()[1]} lines dropped and counted")
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_a_full_disk_for_the_caches(demo_model: Path, tmp_path: Path, figure: Any) -> None:
    place = tmp_path / "answers.db"
    with serving(demo_model, "--max-model-len", "512", "--response-cache", str(place)) as live, live.client() as client:

        def ask_twice(content: str) -> tuple[str, list[str]]:
            answers = [client.post(CHAT, json=live.chat(content)) for _ in range(2)]
            assert {answer.status_code for answer in answers} == {200}
            texts = {answer.json()["choices"][0]["message"]["content"] for answer in answers}
            assert len(texts) == 1
            return texts.pop(), [answer.headers["x-fastchat-cache"] for answer in answers]

        kept, marks = ask_twice("Name a colour.")
        assert marks == ["miss", "hit"]
        # From here on every write of the process past these bytes fails, as on a full disk.
        size = sum(file.stat().st_size for file in tmp_path.iterdir())
        resource.prlimit(live.process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        missed = [ask_twice(f"Name {number} colours.")[1] for number in range(2, 12)]
        assert missed == [["miss", "miss"]] * len(missed)
        assert ask_twice("Name a colour.") == (kept, ["hit", "hit"])
        assert client.get("/health").json()["status"] == "ready"
        # There is room again.
        resource.prlimit(live.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert ask_twice("Name some colours.")[1] == ["miss", "hit"]
        assert live.stop() == 0
    intact(place)
    figure(f"full at {size} bytes: {2 * len(missed)} answers without the cache, then the cache again")
