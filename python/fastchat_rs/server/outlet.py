"""Where the bytes of a stream go: straight to the client, or into a ring that clients follow and may come back to.

A ring keeps the events of one stream, bounded in bytes; it lives on for a while after its last event or its last
follower. Knows no fields of the API.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from fastchat_rs.server.api_error import ApiError
from fastchat_rs.server.http import ProtocolClosed, Request

PING = b": ping\n\n"
RESUME_HEADER = "x-fastchat-resume"
_UNBUFFERED = [("cache-control", "no-cache"), ("x-accel-buffering", "no")]
_END = b"\n\n"


class Outlet(Protocol):
    """What `stream.Answer` writes to."""

    def begin(self) -> None:
        """Status 200 and the headers."""
        ...

    async def send(self, data: bytes) -> None:
        """Whole events. Raises `ProtocolClosed` when nobody will ever read them."""
        ...


class Direct:
    """One client, which is all there is."""

    def __init__(self, request: Request, extra: list[tuple[str, str]] | None = None) -> None:
        self._request = request
        self._extra = extra or []
        self._send: Callable[[bytes], Awaitable[None]] | None = None

    def begin(self) -> None:
        """Opens the response."""
        request = self._request
        request.status = 200
        content_type = ("content-type", request.wording.content_type)
        headers = [*request.headers_out, *self._extra, content_type, *_UNBUFFERED]
        self._send = request.proto.response_stream(200, headers).send_bytes

    async def send(self, data: bytes) -> None:
        """Queues in granian, which never waits."""
        if self._send is None:
            raise RuntimeError("a stream begins before it sends; this is a bug")
        await self._send(data)


class Ring:
    """The last events of one stream."""

    def __init__(self, answer_id: str, tenant: str | None, max_bytes: int) -> None:
        self.id = answer_id
        self.tenant = tenant
        self.abandon: Callable[[], None] = lambda: None
        """Called when nobody came back in time."""
        self.begun = False
        self.done = False
        self.followers = 0
        self.left_at = time.monotonic()
        """When the last follower went, or the stream ended."""
        self.size = 0
        self._max_bytes = max_bytes
        self._events: deque[bytes] = deque()
        self._first = 0
        self._failure: ApiError | None = None
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def count(self) -> int:
        """Events so far, those that are forgotten too."""
        return self._first + len(self._events)

    def begin(self) -> None:
        """Followers may send their headers."""
        self.begun = True
        self._wake()

    async def send(self, data: bytes) -> None:
        """Keeps the events of `data`; comments are for the wire only."""
        for event in data.split(_END):
            if event and not event.startswith(b":"):
                self._events.append(event + _END)
                self.size += len(event) + 2
        while self.size > self._max_bytes and len(self._events) > 1:
            self.size -= len(self._events.popleft())
            self._first += 1
        self._wake()

    def fail(self, error: ApiError) -> None:
        """The stream ended before it began."""
        self._failure = error

    def finish(self) -> None:
        """No more events."""
        self.done = True
        self.left_at = time.monotonic()
        self._wake()

    async def follow(self, request: Request, after: int, heartbeat: float) -> None:
        """Sends the events after number `after` (0 = all), then live ones, to the end or until the client leaves."""
        self.followers += 1
        leaving = asyncio.ensure_future(_left(request))
        try:
            await self._until_begun(leaving)
            if self._failure is not None:
                raise self._failure
            self._check(after)
            await self._replay(request, after, heartbeat, leaving)
        except ProtocolClosed:
            pass
        finally:
            leaving.cancel()
            self.followers -= 1
            self.left_at = time.monotonic()

    def _check(self, after: int) -> None:
        if after < self._first:
            message = f"after: the first {self._first} events are no longer kept"
            raise ApiError(400, message, param="after", code="events_gone")
        if after > self.count:
            message = f"after: {after} is more than the {self.count} events so far"
            raise ApiError(400, message, param="after", code="invalid_value")

    async def _until_begun(self, leaving: "asyncio.Future[None]") -> None:
        while not (self.begun or self.done or leaving.done()):
            await self._news(leaving, 3600)

    async def _replay(self, request: Request, after: int, heartbeat: float, leaving: "asyncio.Future[None]") -> None:
        out = Direct(request, [(RESUME_HEADER, self.id)])
        out.begin()
        place = after
        while not leaving.done():
            place = max(place, self._first)
            data = b"".join(list(self._events)[place - self._first :])
            place = self.count
            if data:
                await out.send(data)
            if self.done and place == self.count:
                return
            if place == self.count and not await self._news(leaving, heartbeat):
                await out.send(PING)

    async def _news(self, leaving: "asyncio.Future[None]", seconds: float) -> bool:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            done, _ = await asyncio.wait({waiter, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return bool(done)
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


async def _left(request: Request) -> None:
    await request.proto.client_disconnect()


class Rings:
    """The rings of one server, by the id of their answers."""

    def __init__(self, seconds: float, max_bytes: int) -> None:
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._rings: dict[str, Ring] = {}

    @property
    def size(self) -> int:
        """Bytes of all events."""
        return sum(ring.size for ring in self._rings.values())

    def open(self, answer_id: str, tenant: str | None) -> Ring | None:
        """A new one; None when there is no room for more."""
        self.sweep()
        if self.size > self._max_bytes:
            self.clear()
        if self.size > self._max_bytes or self._seconds <= 0:
            return None
        # One stream may take a part of the room, so that a few cannot take it all.
        ring = self._rings[answer_id] = Ring(answer_id, tenant, max(self._max_bytes // 16, 1))
        return ring

    def find(self, answer_id: str, tenant: str | None) -> Ring:
        """404 unless it is there and the caller's."""
        self.sweep()
        ring = self._rings.get(answer_id)
        if ring is None or ring.tenant != tenant:
            raise ApiError(404, "No stream with this id can be resumed", code="stream_not_found")
        return ring

    def sweep(self) -> None:
        """Forgets what is over, and ends what nobody came back to."""
        now = time.monotonic()
        for ring in list(self._rings.values()):
            if ring.followers == 0 and now - ring.left_at > self._seconds:
                if ring.done:
                    del self._rings[ring.id]
                else:
                    ring.abandon()

    def clear(self) -> None:
        """Under pressure: forgets the streams that are over and that nobody reads."""
        for ring in list(self._rings.values()):
            if ring.done and ring.followers == 0:
                del self._rings[ring.id]
