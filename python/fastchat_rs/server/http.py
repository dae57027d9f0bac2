"""What a handler sees of HTTP: the request with its bounds, and the reply. No routes, no models."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from granian._granian import RSGIHTTPProtocol as HTTPProtocol
from granian._granian import RSGIProtocolClosed as ProtocolClosed
from granian._granian import RSGIProtocolError as ProtocolError
from granian.rsgi import Scope

from fastchat_rs.server.api_error import ApiError, bad_field

if TYPE_CHECKING:
    from fastchat_rs.server.accounts import Lease
    from fastchat_rs.server.keys import Caller

__all__ = [
    "OPENAI",
    "BodyLimits",
    "HTTPProtocol",
    "ProtocolClosed",
    "Reply",
    "Request",
    "Scope",
    "Wording",
    "encode_json",
    "event",
    "json_reply",
    "named_event",
]

JSON = "application/json"
# A body up to this size has come by the time that it is refused unread, and the connection can be kept.
_DROPPED_BYTES = 16 << 10
encode_json = msgspec.json.Encoder().encode


def event(value: msgspec.Struct) -> bytes:
    """One server-sent event."""
    return b"data: " + encode_json(value) + b"\n\n"


def named_event(value: msgspec.Struct) -> bytes:
    """One server-sent event with the name that is also in its `type`."""
    return b"event: " + str(value.__struct_config__.tag).encode() + b"\ndata: " + encode_json(value) + b"\n\n"


def _openai_error(error: ApiError) -> msgspec.Struct:
    return error.body


@dataclass(frozen=True)
class Wording:
    """How the clients of a route are spoken to: errors, and the parts of a stream."""

    error: Callable[[ApiError], msgspec.Struct] = _openai_error
    stream_error: Callable[[ApiError], msgspec.Struct] = _openai_error
    """The last chunk of a stream that failed."""
    chunk: Callable[[msgspec.Struct], bytes] = event
    ping: bytes = b": ping\n\n"
    """Sent on a stream that is silent for a while."""
    last: bytes = b"data: [DONE]\n\n"
    content_type: str = "text/event-stream"


OPENAI = Wording()


@dataclass
class Reply:
    """A whole answer."""

    body: bytes
    status: int = 200
    content_type: str = JSON
    headers: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


def json_reply(value: Any, status: int = 200) -> Reply:
    """Encodes with msgspec: structs, dicts and lists; NaN and infinities become null."""
    return Reply(encode_json(value), status)


@dataclass(frozen=True)
class BodyLimits:
    """Bounds of a request body."""

    max_bytes: int
    seconds: float


class Request:
    """One request on its way. `headers_out` go on every reply to it."""

    def __init__(self, scope: Scope, proto: HTTPProtocol, request_id: str) -> None:
        self.scope = scope
        self.proto = proto
        self.id = request_id
        self.started = time.monotonic()
        self.tenant: str | None = None
        self.caller: Caller | None = None
        self.lease: Lease | None = None
        """What the request holds of its key's limits."""
        self.status = 0
        self.tokens: tuple[int, int] = (0, 0)
        """Read and written for it, when it is over."""
        self._read_whole = False
        self.raw = b""
        """The body, where it is needed again."""
        self.unknown_fields: list[str] = []
        """Names in the body that its type does not know."""
        self.headers_out: list[tuple[str, str]] = [("x-request-id", request_id)]
        self.names: Mapping[str, str] = {}
        """Fields of the inner request -> what this client calls them; an empty name is no field of the client's."""
        self.wording = OPENAI

    def may_use(self, model: str) -> bool:
        """Whether the caller's key allows a model, by the name that was asked for."""
        return self.caller is None or self.caller.may_use(model)

    def header(self, name: str) -> str:
        """The first value of a header, or an empty string."""
        return self.scope.headers.get(name, "")

    async def body(self, limits: BodyLimits) -> bytes:
        """The body, checked against its announced length; 408, 413 or 415 when it may not be read."""
        kind = self.header("content-type").partition(";")[0].strip().lower()
        if kind and kind != JSON and not kind.endswith("+json"):
            raise ApiError(415, f"The body must be {JSON}", code="unsupported_media_type")
        if self.header("content-encoding").lower() not in ("", "identity"):
            raise ApiError(415, "Compressed bodies are not accepted", code="unsupported_media_type")
        announced = self.header("content-length")
        if announced.isdecimal() and int(announced) > limits.max_bytes:
            raise _too_large(limits.max_bytes)
        try:
            body = await asyncio.wait_for(self._read(limits.max_bytes), limits.seconds)
        except asyncio.TimeoutError:
            message = f"The body did not arrive within {limits.seconds:g} seconds"
            raise ApiError(408, message, code="body_timeout") from None
        except (ProtocolClosed, ProtocolError):
            raise bad_field(None, "The body ended before its announced length") from None
        if announced.isdecimal() and len(body) != int(announced):
            raise bad_field(None, "The body's length differs from Content-Length")
        return body

    async def _read(self, max_bytes: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in self.proto:
            size += len(part)
            if size > max_bytes:
                raise _too_large(max_bytes)
            parts.append(part)
        self._read_whole = True
        return b"".join(parts)

    @property
    def _leaves_body(self) -> bool:
        """Some of the body may be under way still. The server closes the connection then, and a client that does not
        know loses its next request."""
        if self._read_whole or self.scope.method not in ("POST", "PUT", "PATCH"):
            return False
        announced = self.header("content-length") or ("" if self.header("transfer-encoding") else "0")
        return not announced.isdecimal() or int(announced) > _DROPPED_BYTES

    def send(self, reply: Reply) -> None:
        """Sends a whole answer; HEAD gets its headers only."""
        self.status = reply.status if 200 <= reply.status <= 599 else 500
        headers = [*self.headers_out, *reply.headers]
        if self._leaves_body and ("connection", "close") not in headers:
            headers.append(("connection", "close"))
        if reply.body:
            headers.append(("content-type", reply.content_type))
        if self.scope.method == "HEAD":
            headers.append(("content-length", str(len(reply.body))))
            self.proto.response_empty(self.status, headers)
        else:
            self.proto.response_bytes(self.status, headers, reply.body)

    def send_error(self, error: ApiError) -> None:
        """Sends an error as JSON."""
        self.send(Reply(encode_json(self.wording.error(self.renamed(error))), error.status, headers=error.headers))

    def name_of(self, field: str) -> str:
        """What the client calls a field of the inner request, or a place in it."""
        for ours, theirs in self.names.items():
            if field == ours or field.startswith(f"{ours}."):
                return theirs + field[len(ours) :] if theirs else ""
        return field

    def renamed(self, error: ApiError) -> ApiError:
        """The error in the client's words."""
        if error.param is not None:
            name = self.name_of(error.param)
            if error.message.startswith(f"{error.param}:"):
                error.message = (f"{name}:" if name else "The request:") + error.message[len(error.param) + 1 :]
            error.param = name or None
        return error


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"The body is larger than {max_bytes} bytes", code="body_too_large")
