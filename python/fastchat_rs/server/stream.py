"""From a submitted generation to bytes on the socket: whole, or as server-sent events. Knows no fields of the API.

granian queues without bound, so the rules that keep memory small are here: one write per engine step, bytes of all
open streams counted, a deadline per request. A vanished client is found by the watcher, a stalled one by the timeout of
its socket.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from fastchat_rs.server.api_error import ApiError
from fastchat_rs.server.bridge import Delta, Generation
from fastchat_rs.server.http import HTTPProtocol, ProtocolClosed, Request, json_reply
from fastchat_rs.server.metrics import Observation
from fastchat_rs.server.outlet import Outlet
from fastchat_rs.server.state import Limits, State
from fastchat_rs.server.usage import UsageCounter


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


class Leaver:
    """Aborts a generation when nobody wants it any more, also before there is one."""

    def __init__(self) -> None:
        self.gone = False
        self._generation: Generation | None = None

    def leave(self) -> None:
        """Nobody does."""
        self.gone = True
        if self._generation is not None:
            self._generation.abort()

    def guard(self, generation: Generation) -> None:
        """From now on this is what leaving aborts."""
        self._generation = generation
        if self.gone:
            generation.abort()


class Watcher(Leaver):
    """Leaves with its client."""

    def __init__(self, proto: HTTPProtocol) -> None:
        super().__init__()
        self._task = asyncio.get_running_loop().create_task(self._watch(proto))

    async def _watch(self, proto: HTTPProtocol) -> None:
        # Granian's future has no name here: it holds this task and Python's collector cannot look into it, so that a
        # frame of the cancelled task which holds it too would keep both for ever.
        await proto.client_disconnect()
        self.leave()

    def cancel(self) -> None:
        """Must be called: a watcher left alone is never freed by granian."""
        self._task.cancel()


class Answer:
    """Sends one generation to one client."""

    def __init__(
        self,
        request: Request,
        state: State,
        observed: Observation,
        generation: Generation,
        shape: Shape,
        worded: Callable[[Exception], ApiError],
    ) -> None:
        self._request = request
        self._worded = worded
        self._state = state
        self._generation = generation
        self._shape = shape
        self._deadlines = Deadlines(request.started, state.limits)
        self._observed = observed

    async def whole(self) -> bytes | None:
        """Waits for everything, then replies. The bytes of the reply; None when the client left."""
        while not self._generation.finished:
            await self._collect()
            if self._generation.aborted:
                return None
        reply = json_reply(self._shape.whole())
        await self._settle()
        self._request.send(reply)
        self._observed.done(self._shape.usage)
        return reply.body

    async def _settle(self) -> None:
        """Before the last byte leaves: what a client has whole is booked."""
        if self._request.lease is not None:
            usage = self._shape.usage
            await self._request.lease.settle(usage.prompt_tokens, usage.completion_tokens)

    async def _collect(self) -> None:
        for prompt, delta in await self._news(self._state.limits.heartbeat_seconds):
            self._shape.collect(prompt, delta)

    async def _news(self, patience: float) -> list[tuple[int, Delta]]:
        left = self._deadlines.left(self._generation.started, self._shape.usage.begun)
        news = await self._generation.news(min(left, patience))
        for prompt, delta in news:
            self._shape.usage.add(prompt, delta)
            self._observed.delta(delta)
        return news

    async def stream(self, out: Outlet, keep: Callable[[bytes], None]) -> bool:
        """Events, and a copy of them to `keep`. Whether all were sent.

        Until the first news (or heartbeat) an error is still a status.
        """
        limits = self._state.limits
        if self._state.stream_bytes > limits.stream_bytes:
            raise ApiError(503, "Too much is queued for slow readers", code="overloaded", retry_after=2)
        news = await self._news(limits.heartbeat_seconds)
        if self._generation.aborted:
            return False
        wording = self._request.wording
        out.begin()
        sent = 0
        try:
            data = b"".join(map(wording.chunk, self._shape.opening()))
            while True:
                data += self._events(news)
                keep(data)
                if self._generation.finished:
                    break
                data = data or wording.ping
                if data:
                    await out.send(data)
                sent += len(data)
                self._state.stream_bytes += len(data)
                if sent > limits.one_stream_bytes:
                    message = f"The stream is longer than {limits.one_stream_bytes} bytes"
                    raise ApiError(503, message, code="stream_too_large")
                # granian's send does not yield; other tasks get their turn by our own decision.
                await asyncio.sleep(0)
                news = await self._news(limits.heartbeat_seconds)
                data = b""
                if self._generation.aborted:
                    return False
            last = b"".join(map(wording.chunk, self._shape.closing())) + wording.last
            keep(last)
            await self._settle()
            await out.send(data + last)
            self._observed.done(self._shape.usage)
            return True
        except ProtocolClosed:
            self._generation.abort()
        except Exception as error:
            await self._fail(out, error)
        finally:
            self._state.stream_bytes -= sent
        return False

    def _events(self, news: list[tuple[int, Delta]]) -> bytes:
        chunks = (chunk for prompt, delta in news for chunk in self._shape.chunks(prompt, delta))
        return b"".join(map(self._request.wording.chunk, chunks))

    async def _fail(self, out: Outlet, error: Exception) -> None:
        failure = self._request.renamed(self._worded(error))
        self._request.status = failure.status
        try:
            await out.send(self._request.wording.chunk(self._request.wording.stream_error(failure)))
        except ProtocolClosed:
            self._generation.abort()


class Deadlines:
    """Of one request, on the monotonic clock: to leave the queue, to write something, to end."""

    def __init__(self, started: float, limits: Limits) -> None:
        self._whole = (started + limits.request_seconds, f"took longer than {limits.request_seconds:g} s")
        self._first = (started + limits.first_token_seconds, f"wrote nothing for {limits.first_token_seconds:g} s")
        self._queue = (started + limits.queue_seconds, f"waited longer than {limits.queue_seconds:g} s to begin")

    def left(self, started: bool, begun: bool) -> float:
        """Seconds until the next one; 504 when it has passed."""
        ahead = [self._whole]
        if not begun:
            ahead.append(self._first)
        if not started:
            ahead.append(self._queue)
        at, what = min(ahead)
        left = at - time.monotonic()
        if left <= 0:
            raise ApiError(504, f"The request {what}, the server's limit", code="deadline_exceeded")
        return left
