"""From a submitted generation to bytes on the socket: whole, or as server-sent events. Knows no fields of the API.

granian queues without bound, so the rules that keep memory small are here: one write per engine step, bytes of all
open streams counted, a deadline per request. A vanished client is found by the watcher, a stalled one by the timeout of
its socket.
"""

import asyncio
import time
from collections.abc import Awaitable
from typing import Protocol

from msgspec import Struct

from fastchat_rs.server.bridge import Delta, Generation
from fastchat_rs.server.errors import to_api_error
from fastchat_rs.server.http import (
    ApiError,
    HTTPProtocol,
    ProtocolClosed,
    Request,
    json_reply,
)
from fastchat_rs.server.metrics import Metrics
from fastchat_rs.server.state import State
from fastchat_rs.server.usage import UsageCounter

_UNBUFFERED = [("cache-control", "no-cache"), ("x-accel-buffering", "no")]


class Shape(Protocol):
    """How a route words its answer: streams call `opening`, `chunks`, `closing`; others `collect`, `whole`."""

    usage: UsageCounter

    def opening(self) -> list[Struct]:
        """Chunks that go out with the headers."""
        ...

    def chunks(self, prompt: int, delta: Delta) -> list[Struct]:
        """What a delta becomes; nothing when there is nothing to tell yet."""
        ...

    def closing(self) -> list[Struct]:
        """What comes when every choice has ended."""
        ...

    def collect(self, prompt: int, delta: Delta) -> None:
        """Keeps a delta for `whole`."""
        ...

    def whole(self) -> Struct:
        """The reply."""
        ...


class Watcher:
    """Aborts a generation when its client leaves, also before there is one."""

    def __init__(self, proto: HTTPProtocol) -> None:
        self.gone = False
        self._generation: Generation | None = None
        self._task = asyncio.get_running_loop().create_task(self._watch(proto.client_disconnect()))

    async def _watch(self, disconnect: Awaitable[None]) -> None:
        await disconnect
        self.gone = True
        if self._generation is not None:
            self._generation.abort()

    def guard(self, generation: Generation) -> None:
        """From now on this is what leaving aborts."""
        self._generation = generation
        if self.gone:
            generation.abort()

    def cancel(self) -> None:
        """Must be called: a watcher left alone is never freed by granian."""
        self._task.cancel()


class Answer:
    """Sends one generation to one client."""

    def __init__(self, request: Request, state: State, metrics: Metrics, generation: Generation, shape: Shape) -> None:
        self._request = request
        self._state = state
        self._generation = generation
        self._shape = shape
        self._deadline = request.started + state.limits.request_seconds
        self._observed = metrics.observe(generation.submitted_at)

    async def whole(self) -> None:
        """Waits for everything, then replies."""
        while not self._generation.finished:
            await self._collect()
            if self._generation.aborted:
                return
        self._request.send(json_reply(self._shape.whole()))
        self._observed.done(self._shape.usage)

    async def _collect(self) -> None:
        for prompt, delta in await self._news(self._state.limits.heartbeat_seconds):
            self._shape.collect(prompt, delta)

    async def _news(self, patience: float) -> list[tuple[int, Delta]]:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise ApiError(504, "The request took longer than the server's deadline", code="deadline_exceeded")
        news = await self._generation.news(min(left, patience))
        for prompt, delta in news:
            self._shape.usage.add(prompt, delta)
            self._observed.delta(delta)
        return news

    async def stream(self) -> None:
        """Server-sent events. Until the first news (or heartbeat) an error is still a status."""
        limits = self._state.limits
        if self._state.stream_bytes > limits.stream_bytes:
            raise ApiError(503, "Too much is queued for slow readers", code="overloaded", retry_after=2)
        news = await self._news(limits.heartbeat_seconds)
        if self._generation.aborted:
            return
        request = self._request
        request.status = 200
        wording = request.wording
        headers = [*request.headers_out, ("content-type", wording.content_type), *_UNBUFFERED]
        transport = request.proto.response_stream(200, headers)
        sent = 0
        try:
            data = b"".join(map(wording.chunk, self._shape.opening()))
            while True:
                data += self._events(news)
                if self._generation.finished:
                    break
                data = data or wording.ping
                if data:
                    await transport.send_bytes(data)
                sent += len(data)
                self._state.stream_bytes += len(data)
                # granian's send does not yield; other tasks get their turn by our own decision.
                await asyncio.sleep(0)
                news = await self._news(limits.heartbeat_seconds)
                data = b""
                if self._generation.aborted:
                    return
            data += b"".join(map(wording.chunk, self._shape.closing()))
            await transport.send_bytes(data + wording.last)
            self._observed.done(self._shape.usage)
        except ProtocolClosed:
            self._generation.abort()
        except Exception as error:
            await self._fail(transport.send_bytes, error)
        finally:
            self._state.stream_bytes -= sent

    def _events(self, news: list[tuple[int, Delta]]) -> bytes:
        chunks = (chunk for prompt, delta in news for chunk in self._shape.chunks(prompt, delta))
        return b"".join(map(self._request.wording.chunk, chunks))

    async def _fail(self, send: "Send", error: Exception) -> None:
        failure = self._request.renamed(to_api_error(error, self._request.id))
        self._request.status = failure.status
        try:
            await send(self._request.wording.chunk(self._request.wording.stream_error(failure)))
        except ProtocolClosed:
            self._generation.abort()


class Send(Protocol):
    """`send_bytes` of a stream."""

    def __call__(self, data: bytes) -> Awaitable[None]: ...
