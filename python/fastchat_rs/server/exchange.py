"""One request to `App` without a socket: what granian calls it with, over queues. For hosts with HTTP of their own."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastchat_rs.server.app import App
from fastchat_rs.server.http import ProtocolClosed

Headers = list[tuple[str, str]]
# Pieces that wait for a slow reader; then the producer waits, as it cannot over RSGI.
_MAX_PIECES = 64


@dataclass(frozen=True)
class Call:
    """A request as plain values, which may travel between processes."""

    method: str
    path: str
    query_string: str
    headers: dict[str, str]
    """Names in lower case; the first of several values."""
    body: bytes
    client: str = ""
    prefix: str = ""
    """Names the beginning of its prompt; equal ones are best served by one replica."""


@dataclass(frozen=True)
class Head:
    """Begins every answer."""

    status: int
    headers: Headers


@dataclass
class _Scope:
    method: str
    path: str
    query_string: str
    headers: Mapping[str, str]
    client: str


@dataclass
class _Proto:
    """Stands for granian's protocol object."""

    body: bytes
    pieces: "asyncio.Queue[Head | bytes | None]" = field(default_factory=lambda: asyncio.Queue(_MAX_PIECES))
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.body

    async def client_disconnect(self) -> None:
        await self.gone.wait()

    def response_empty(self, status: int, headers: Headers) -> None:
        self.pieces.put_nowait(Head(status, headers))

    def response_bytes(self, status: int, headers: Headers, body: bytes) -> None:
        self.pieces.put_nowait(Head(status, headers))
        self.pieces.put_nowait(body)

    def response_stream(self, status: int, headers: Headers) -> "_Proto":
        self.pieces.put_nowait(Head(status, headers))
        return self

    async def send_bytes(self, data: bytes) -> None:
        if self.gone.is_set():
            raise ProtocolClosed
        await self.pieces.put(data)


async def exchange(app: App, call: Call) -> AsyncIterator[Head | bytes]:
    """The head, then the pieces of the body. Closing the iterator early is the client's leaving."""
    proto = _Proto(call.body)
    scope: Any = _Scope(call.method, call.path, call.query_string, call.headers, call.client)
    given: Any = proto

    async def run() -> None:
        try:
            await app.__rsgi__(scope, given)
        finally:
            if not proto.gone.is_set():
                await proto.pieces.put(None)

    task = asyncio.get_running_loop().create_task(run())
    try:
        while (piece := await proto.pieces.get()) is not None:
            yield piece
    finally:
        proto.gone.set()
        # A producer that waits for room is let go; what it still puts nobody reads.
        while not proto.pieces.empty():
            proto.pieces.get_nowait()
        if not task.done():
            await asyncio.wait({task}, timeout=5)
