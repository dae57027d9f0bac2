"""HTTP itself made wrong: frames that two readers would take for different requests, sizes that lie, odd lines.

Every answer has to be whole and below 500 (501 and 505 say what is not spoken); what lies in a body is never taken for
a request; and where the end of a request is in doubt, the connection is closed instead of read on.
"""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from live import serving
from wire import Answer, Wire

# Echoed by whoever takes the bytes of a body for a request.
SMUGGLED = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: smuggled\r\n\r\n"
HOST = "Host: localhost"
JSON = "Content-Type: application/json"
SIZE = f"Content-Length: {len(SMUGGLED)}"
CHUNKED = "Transfer-Encoding: chunked"


def frame(first: str, *lines: str, body: bytes = b"") -> bytes:
    """A request of these lines."""
    return "\r\n".join((first, *lines, "", "")).encode("latin-1") + body


def chunks(*sizes: str, end: str = "0\r\n\r\n") -> bytes:
    """SMUGGLED once for each way to write its size."""
    return b"".join(size.encode() + b"\r\n" + SMUGGLED + b"\r\n" for size in sizes) + end.encode()


POST = "POST /v1/completions HTTP/1.1"
GET = "GET /health HTTP/1.1"
HEX = f"{len(SMUGGLED):x}"

# Name: what is sent, and the statuses allowed for its first answer; none at all is as good.
ODD: dict[str, tuple[bytes, set[int]]] = {
    "two lengths": (frame(POST, HOST, JSON, SIZE, "Content-Length: 3", body=SMUGGLED), {400}),
    "a list of lengths": (frame(POST, HOST, JSON, f"{SIZE}, 3", body=SMUGGLED), {400}),
    "a signed length": (frame(POST, HOST, JSON, f"Content-Length: +{len(SMUGGLED)}", body=SMUGGLED), {400}),
    "a negative length": (frame(POST, HOST, JSON, "Content-Length: -1", body=SMUGGLED), {400}),
    "a length beyond 64 bits": (frame(POST, HOST, JSON, f"Content-Length: {2**64 + 5}", body=SMUGGLED), {400, 413}),
    "length and chunks": (frame(POST, HOST, JSON, "Content-Length: 4", CHUNKED, body=chunks(HEX)), {400}),
    "an unknown coding": (frame(POST, HOST, JSON, "Transfer-Encoding: xchunked", body=chunks(HEX)), {400, 501}),
    "chunks not last": (frame(POST, HOST, JSON, "Transfer-Encoding: chunked, identity", body=chunks(HEX)), {400, 501}),
    "a chunk of size -1": (frame(POST, HOST, JSON, CHUNKED, body=chunks("-1")), {400}),
    "a chunk of size 0x5": (frame(POST, HOST, JSON, CHUNKED, body=chunks(f"0x{HEX}")), {400}),
    "a chunk of no size": (frame(POST, HOST, JSON, CHUNKED, body=chunks("")), {400}),
    "a chunk beyond 64 bits": (frame(POST, HOST, JSON, CHUNKED, body=chunks(f"{1 << 64:x}")), {400, 413}),
    "a chunk with an extension": (frame(POST, HOST, JSON, CHUNKED, body=chunks(f"{HEX};a=b")), {400}),
    "an endless extension": (frame(POST, HOST, JSON, CHUNKED, body=chunks(f"{HEX};{'a' * 200_000}")), {400, 413}),
    "trailers": (frame(POST, HOST, JSON, CHUNKED, body=chunks(HEX, end="0\r\nX-Y: z\r\n\r\n")), {400}),
    "endless trailers": (frame(POST, HOST, JSON, CHUNKED, body=chunks(HEX, end="0\r\n" + "X: y\r\n" * 50_000)), {400}),
    "a space before the colon": (frame(GET, "Host : localhost"), {400}),
    "a folded line": (frame(GET, HOST, "X-A: b\r\n c"), {200, 400}),
    "a nameless line": (frame(GET, HOST, ": b"), {400}),
    "a null in a value": (frame(GET, HOST, "X-A: b\x00c"), {400}),
    "bare line feeds": (frame(GET, HOST).replace(b"\r\n", b"\n"), {200, 400}),
    "a bare carriage return": (frame(GET, HOST, "X-A: b\rX-B: c"), {400}),
    "no host": (frame(GET), {200, 400, 403}),
    "two hosts": (frame(GET, HOST, "Host: example.org"), {200, 400, 403}),
    "an absolute target": (frame("GET http://example.org/health HTTP/1.1", HOST), {200, 400, 403, 404}),
    "an asterisk": (frame("OPTIONS * HTTP/1.1", HOST), {400, 404, 405}),
    "no target": (frame("GET HTTP/1.1", HOST), {400}),
    "a target of bytes": (frame("GET /\xff\xfe HTTP/1.1", HOST), {400, 404}),
    "a long target": (frame(f"GET /{'a' * 100_000} HTTP/1.1", HOST), {400, 404, 414, 431}),
    "a long line": (frame(GET, HOST, f"X-A: {'a' * 500_000}"), {400, 431}),
    "many lines": (frame(GET, HOST, *(f"X-{number}: y" for number in range(5000))), {400, 431}),
    "an older version": (frame("GET /health HTTP/1.0", HOST), {200}),
    "an unknown version": (frame("GET /health HTTP/1.9", HOST), {400, 505}),
    "a newer version": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 505}),
    "a line without version": (b"GET /health\r\n\r\n", {400}),
    "a lower-case method": (frame("get /health HTTP/1.1", HOST), {400, 405, 501}),
    "a long method": (frame(f"{'A' * 5000} /health HTTP/1.1", HOST), {400, 405, 431, 501}),
    "TRACE": (frame("TRACE /health HTTP/1.1", HOST), {400, 405, 501}),
    "CONNECT": (frame("CONNECT example.org:443 HTTP/1.1", HOST), {400, 403, 404, 405, 501}),
    "an upgrade to h2c": (frame(GET, HOST, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"), {200, 400}),
    "an upgrade to a socket": (
        frame(GET, HOST, "Connection: Upgrade", "Upgrade: websocket"),
        {200, 400, 403, 404, 426},
    ),
    "an expectation": (frame(POST, HOST, JSON, SIZE, "Expect: 100-continue", body=SMUGGLED), {100, 400}),
    "an unknown expectation": (frame(POST, HOST, JSON, SIZE, "Expect: miracles", body=SMUGGLED), {400, 417}),
    "a body for GET": (frame(GET, HOST, SIZE, body=SMUGGLED), {200, 400}),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300), {400}),
    "nothing but lines": (b"\r\n" * 2000, {400}),
}


async def exchange(port: int, pieces: list[bytes], patience: float, certain: int = 0) -> tuple[list[Answer], bool]:
    """Answers until the server closes, or says nothing for so many seconds once the certain ones are there; and whether
    the connection was reset, which takes answers along that were on their way (RFC 9112, 9.6)."""
    wire = await Wire.open(port)
    answers: list[Answer] = []
    try:
        for piece in pieces:
            wire.send(piece)
            await asyncio.sleep(0)
        while True:
            try:
                found = await asyncio.wait_for(wire.answer(), patience if len(answers) >= certain else 60)
            except (asyncio.TimeoutError, asyncio.IncompleteReadError):
                return answers, False
            except ConnectionError:
                return answers, True
            if found.reset:
                return answers, True
            answers.append(found)
    finally:
        wire.reset()


def check(answers: list[Answer], sent: int, raw: bytes) -> None:
    """What holds for any frame."""
    final = [answer for answer in answers if answer.status >= 200]
    assert len(final) <= sent, (raw[:3000], answers)
    for answer in final:
        assert answer.whole and (answer.status < 500 or answer.status in (501, 505)), (raw[:3000], answer)
        assert len(answer.body) < 32_000
        assert answer.headers.get("x-request-id") != "smuggled", (raw[:3000], answer)


def test_odd_frames(demo_model: Path, figure: Any) -> None:
    with serving(demo_model, "--max-model-len", "64", "--log-format", "json") as live:
        wrong: dict[str, int] = {}
        silent: list[str] = []

        async def send(name: str) -> None:
            raw, allowed = ODD[name]
            answers, _ = await exchange(live.port, [raw], 1.0)
            check(answers, 1, raw)
            if not answers:
                silent.append(name)
            elif answers[0].status not in allowed:
                wrong[name] = answers[0].status

        async def main() -> None:
            await asyncio.gather(*map(send, ODD))

        asyncio.run(main())
        assert not wrong
        assert live.idle(60)["fastchat_engine_alive"] == 1
        assert live.stop() == 0
        assert not any('"level": "error"' in line for line in live.lines)
        figure(f"{len(ODD)} frames; closed without a word: {', '.join(sorted(silent)) or 'none'}")


@dataclass
class Piper:
    """Good requests one after the other on a connection, cut anywhere, an odd one among them."""

    rng: random.Random

    def good(self, number: int) -> bytes:
        """Answered with 200 or, for what lies in its body, 400."""
        name = f"X-Request-Id: good-{number}"
        size = self.rng.randrange(1, len(SMUGGLED))
        parts = [SMUGGLED[:size], SMUGGLED[size:]]
        body = b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in parts if part) + b"0\r\n\r\n"
        return self.rng.choice(
            (
                frame(GET, HOST, name),
                frame(POST, HOST, JSON, name, SIZE, body=SMUGGLED),
                frame(POST, HOST, JSON, name, CHUNKED, body=body),
            )
        )

    def cut(self, raw: bytes) -> list[bytes]:
        """In up to nine pieces."""
        places = sorted(self.rng.randrange(len(raw)) for _ in range(self.rng.randrange(9)))
        return [raw[start:end] for start, end in zip([0, *places], [*places, len(raw)], strict=True) if end > start]


@pytest.mark.timeout(600)
def test_requests_in_a_row(demo_model: Path, scale: int, figure: Any) -> None:
    count, width = 400 * scale, 8
    with serving(demo_model, "--max-model-len", "64", "--log-format", "json") as live:
        seen: Counter[int] = Counter()
        resets: list[bool] = []

        async def client(seed: int) -> None:
            piper = Piper(random.Random(seed))
            for _ in range(count // width):
                row = [piper.good(number) for number in range(piper.rng.randrange(1, 6))]
                odd = piper.rng.randrange(len(row)) if piper.rng.random() < 0.3 else None
                name = piper.rng.choice(sorted(ODD))
                if odd is not None:
                    row[odd] = ODD[name][0]
                raw = b"".join(row)
                expected = len(row) if odd is None else odd
                patience = 0.05 if odd is None else 0.3
                answers, reset = await exchange(live.port, piper.cut(raw), patience, expected)
                answers = [answer for answer in answers if answer.status >= 200]
                check(answers, len(row), raw)
                seen.update(answer.status for answer in answers)
                # Those before the odd one are answered in order, whatever comes after them. It may end the connection
                # while there is something to be read, and that resets it.
                names = [answer.headers.get("x-request-id") for answer in answers[:expected]]
                cut_short = reset and odd is not None
                least = len(names) if cut_short else expected
                assert names == [f"good-{number}" for number in range(least)], (name, odd, raw[:3000], answers)
                resets.append(cut_short and len(names) < expected)

        async def main() -> None:
            await asyncio.gather(*(client(seed) for seed in range(width)))

        asyncio.run(main())
        assert live.idle(60)["fastchat_engine_alive"] == 1
        assert live.stop() == 0
        assert not any('"level": "error"' in line for line in live.lines)
        shown = ", ".join(f"{status}: {number}" for status, number in sorted(seen.items()))
        assert 10 * sum(resets) <= count
        figure(f"{count} rows of requests in pieces, answered {shown}; {sum(resets)} lost some to a reset")
