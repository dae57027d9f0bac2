"""HTTP by hand over asyncio, for tests with thousands of connections or rude ones. Loopback only."""

import asyncio
import json
import socket
import struct
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

SECONDS = 150.0


def request_bytes(path: str, body: Any, *, method: str = "POST", headers: dict[str, str] | None = None) -> bytes:
    """A request with a JSON body."""
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"host": "localhost", "content-type": "application/json", "content-length": str(len(content))}
    head = "".join(f"{name}: {value}\r\n" for name, value in {**lines, **(headers or {})}.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + content


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    whole: bool = False
    """The body ended as HTTP says it must."""
    reset: bool = False
    """The connection was reset before that."""
    seconds: float = 0.0
    times: list[float] = field(default_factory=list[float])
    """When each piece of a stream came."""

    @property
    def done(self) -> bool:
        """A stream that ended well, or a whole reply with status 200."""
        if self.headers.get("content-type") == "text/event-stream":
            return self.whole and self.body.endswith(b"data: [DONE]\n\n")
        return self.whole and self.status == 200

    @property
    def failed(self) -> bool:
        """It says that it failed: a status or an error event."""
        return self.status != 200 or b'data: {"error":' in self.body

    def usage(self) -> dict[str, Any]:
        """Of a whole reply, or of the last event before [DONE]."""
        if self.headers.get("content-type") != "text/event-stream":
            return json.loads(self.body)["usage"]
        events = [line[6:] for line in self.body.splitlines() if line.startswith(b"data: {")]
        return json.loads(events[-1])["usage"]


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int, *, buffer: int | None = None) -> "Wire":
        """`buffer` is the size of the receive buffer: a small one stalls the sender soon."""
        connection = socket.socket()
        connection.setblocking(False)
        if buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        # With a small limit asyncio itself stops reading.
        return cls(*await asyncio.open_connection(sock=connection, limit=1 << 16))

    def send(self, data: bytes) -> None:
        """Queues bytes."""
        self.writer.write(data)

    async def head(self) -> Answer:
        """Status and headers."""
        return await asyncio.wait_for(self._head(), SECONDS)

    async def _head(self) -> Answer:
        began = time.monotonic()
        raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines) if name}
        return Answer(int(first.split()[1]), headers, seconds=time.monotonic() - began)

    async def answer(self) -> Answer:
        """A whole response. A connection that ends too soon leaves `whole` False."""
        # One limit for all of it: one for each piece would be a task each, and the client would load the machine.
        return await asyncio.wait_for(self._answer(), SECONDS)

    async def _answer(self) -> Answer:
        found = await self._head()
        try:
            async for piece in self._pieces(found):
                found.body += piece
                found.times.append(time.monotonic())
            found.whole = True
        except asyncio.IncompleteReadError:
            pass
        except ConnectionError:
            found.reset = True
        return found

    async def _pieces(self, answer: Answer) -> AsyncIterator[bytes]:
        """The body as it comes."""
        if answer.headers.get("transfer-encoding") != "chunked":
            yield await self.reader.readexactly(int(answer.headers.get("content-length", "0")))
            return
        while True:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            piece = await self.reader.readexactly(size + 2)
            if size == 0:
                return
            yield piece[:-2]

    def reset(self) -> None:
        """Leaves with RST."""
        connection: Any = self.writer.get_extra_info("socket")
        if connection is not None and connection.fileno() >= 0:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        """Leaves with FIN."""
        self.writer.close()


async def ask(port: int, path: str, body: Any, **headers: str) -> Answer:
    """One request on its own connection."""
    wire = await Wire.open(port)
    try:
        began = time.monotonic()
        wire.send(request_bytes(path, body, headers=headers))
        found = await wire.answer()
        found.seconds = time.monotonic() - began
        return found
    finally:
        wire.close()


class Pool:
    """Requests over connections that are kept, as those of an HTTP library or of a proxy."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Wire] = []

    async def ask(self, request: bytes) -> Answer:
        """One request. A kept connection that the server has closed meanwhile is replaced once."""
        began = time.monotonic()
        kept = bool(self._idle)
        wire = self._idle.pop() if kept else await Wire.open(self._port)
        wire.send(request)
        try:
            found = await wire.answer()
        except (asyncio.IncompleteReadError, ConnectionError):
            if not kept:
                raise
            wire = await Wire.open(self._port)
            wire.send(request)
            found = await wire.answer()
        found.seconds = time.monotonic() - began
        self._idle.append(wire) if found.whole else wire.close()
        return found

    def close(self) -> None:
        """Leaves with FIN."""
        while self._idle:
            self._idle.pop().close()
