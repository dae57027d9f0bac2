"""Requests with anything changed in them: no 5xx, no hang, no large error, and the server goes on."""

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fastchat_rs.server.app import ROUTES
from fastchat_rs.server.operations import OPERATIONS
from live import Live, serving
from wire import Answer, Wire, request_bytes

NUMBERS = [0, 1, -1, 2**31, 2**63, -(2**63), 1e308, 0.5, "NaN", 10**30]
TEXTS = ["", "\u0000", "\ud83d\ude42", "x" * 3000, "{{ 7*7 }}", "<|im_start|>", "../../etc/passwd", "' OR 1=1"]
BYTES = [b"\r\n", b"\x00", b"\xff\xfe", b"{" * 200, b"[" * 200, b'"', b"\\", b"Content-Length: 5\r\n", b"\r\n\r\n"]


def mutated_value(value: Any, rng: random.Random, depth: int = 0) -> Any:
    """The value, or a part of it, changed."""
    roll = rng.random()
    if isinstance(value, dict) and value and roll < 0.8 and depth < 6:
        fields: dict[str, Any] = dict(value)  # pyright: ignore[reportUnknownArgumentType]
        name = rng.choice(sorted(fields))
        if rng.random() < 0.15:
            del fields[name]
        else:
            fields[name] = mutated_value(fields[name], rng, depth + 1)
        return fields
    if isinstance(value, list) and value and roll < 0.8 and depth < 6:
        items: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType]
        place = rng.randrange(len(items))
        items[place] = mutated_value(items[place], rng, depth + 1)
        return items * rng.choice((1, 1, 1, 2, 40))
    odd: list[Any] = [None, True, [], {}, [[]], {"x": 1}, rng.choice(NUMBERS), rng.choice(TEXTS)]
    return rng.choice(odd)


def mutated_bytes(raw: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, taken out, doubled or put in."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(raw))
        kind = rng.randrange(4)
        if kind == 0:
            raw = raw[:place] + bytes([rng.randrange(256)]) + raw[place + 1 :]
        elif kind == 1:
            raw = raw[:place] + raw[place + rng.randrange(1, 20) :]
        elif kind == 2:
            raw = raw[:place] + raw[place : place + 30] + raw[place:]
        else:
            raw = raw[:place] + rng.choice(BYTES) + raw[place:]
        raw = raw or b"x"
    return raw


Seed = tuple[str, str, dict[str, Any] | None]


def seeds_of(model: str) -> list[Seed]:
    """A good request for every operation of the document."""
    found: list[Seed] = []
    for one in OPERATIONS:
        bodies: list[dict[str, Any] | None] = [dict(body) for body in one.examples.values()] or [None]
        for body in bodies:
            if body is not None and "model" in body:
                body["model"] = model
            if body is not None and "max_tokens" in body:
                body["max_tokens"] = 4
            found.append((one.method.upper(), one.path.replace("{id}", "x"), body))
    return found


@dataclass
class Mutator:
    """One client with its own chances."""

    live: Live
    seeds: list[Seed]
    rng: random.Random
    statuses: Counter[int] = field(default_factory=Counter[int])
    silent: int = 0
    slowest: float = 0.0

    def request(self) -> tuple[bytes, bool]:
        """A changed request; whether its frame is broken too."""
        method, path, body = self.rng.choice(self.seeds)
        changed: Any = None
        if body is not None:
            changed = mutated_value(body, self.rng)
            if isinstance(changed, dict) and self.rng.random() < 0.9:
                changed["model"] = self.live.model
        raw = request_bytes(path, None if body is None else json.dumps(changed).encode(), method=method)
        broken = self.rng.random() < 0.25
        return (mutated_bytes(raw, self.rng) if broken else raw), broken

    async def run(self, count: int) -> None:
        """On one connection as long as it lasts."""
        wire: Wire | None = None
        for _ in range(count):
            wire = wire or await Wire.open(self.live.port)
            raw, broken = self.request()
            began = time.monotonic()
            wire.send(raw)
            try:
                # A broken one may lack its end: the server waits for it, as it should, and we leave.
                found = await asyncio.wait_for(wire.answer(), 0.5 if broken else 60)
            except (asyncio.TimeoutError, asyncio.IncompleteReadError, ConnectionError, ValueError):
                assert broken, raw
                self.silent += 1
                wire.reset()
                wire = None
                continue
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.check(found, raw, broken)
            if broken or found.headers.get("connection") == "close":
                # What is left of a broken one would be read as the next.
                wire.reset()
                wire = None
        if wire is not None:
            wire.close()

    def check(self, found: Answer, raw: bytes, broken: bool) -> None:
        """The rules of errors."""
        self.statuses[found.status] += 1
        assert found.status < 500, (raw[:3000], found)
        if found.status >= 400 and found.body:
            assert len(found.body) < 32_000
            if not broken:
                assert "error" in json.loads(found.body)


@pytest.mark.timeout(1800)
def test_mutated_requests(demo_model: Path, scale: int, figure: Any) -> None:
    count = 1500 * scale
    with serving(demo_model, "--max-model-len", "64", "--log-format", "json") as live:
        clients = [Mutator(live, seeds_of(live.model), random.Random(number)) for number in range(8)]
        assert len(clients[0].seeds) >= len(ROUTES)

        async def main() -> None:
            await asyncio.gather(*(client.run(count // len(clients)) for client in clients))

        asyncio.run(main())
        now = live.idle(60)
        assert now["fastchat_kv_blocks_free"] == now["fastchat_kv_blocks_total"]
        assert now["fastchat_engine_alive"] == 1
        assert live.stop() == 0
        assert not any('"level": "error"' in line for line in live.lines)
        statuses = sum((client.statuses for client in clients), Counter[int]())
        shown = ", ".join(f"{status}: {number}" for status, number in sorted(statuses.items()))
        silent, slowest = sum(client.silent for client in clients), max(client.slowest for client in clients)
        figure(f"{count} requests, answered {shown}, {silent} unanswered and left; slowest answer {slowest:.1f} s")
