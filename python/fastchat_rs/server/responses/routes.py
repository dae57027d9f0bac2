"""POST /v1/responses; GET and DELETE of one, and its cancellation."""

import asyncio
from dataclasses import replace

from fastchat_rs.server.api_error import ApiError, bad_field
from fastchat_rs.server.chat import Dialect, Turn, converse
from fastchat_rs.server.decode import BodyDecoder
from fastchat_rs.server.errors import to_api_error
from fastchat_rs.server.handle import Context
from fastchat_rs.server.http import Reply, Request, Wording, json_reply, named_event
from fastchat_rs.server.protocol import Message
from fastchat_rs.server.responses.background import unattended
from fastchat_rs.server.responses.protocol import Deleted, Failure, Response, ResponsesRequest, Status
from fastchat_rs.server.responses.shape import ResponseShape
from fastchat_rs.server.responses.store import Stored
from fastchat_rs.server.responses.translate import Translated, as_history, translated

_DECODER = BodyDecoder(ResponsesRequest)
WORDING = Wording(chunk=named_event, last=b"")
_PREFIX = "/responses/"


async def create(context: Context, request: Request) -> Reply | None:
    """An answer: whole, streamed, or made in the background."""
    body = await context.decode(request, _DECODER)
    given = translated(body, _earlier(context, request, body))
    request.names = given.names
    request.unknown_fields += given.unused
    if body.background:
        return await _in_background(context, request, body, given)

    def shape(turn: Turn) -> ResponseShape:
        made = ResponseShape(turn, body, lambda done: _keep(context, request, body, given, done))
        request.wording = replace(request.wording, stream_error=made.error)
        return made

    return await converse(context, request, given.body, Dialect("resp_", shape))


def _earlier(context: Context, request: Request, body: ResponsesRequest) -> list[Message]:
    id = body.previous_response_id
    if id is None:
        return []
    stored = context.responses.get(request.tenant, id)
    if stored is None:
        field = "previous_response_id"
        raise bad_field(field, f"{field}: there is no stored response '{_shown(id)}'", "previous_response_not_found")
    if stored.response.status not in ("completed", "incomplete"):
        raise bad_field("previous_response_id", f"previous_response_id: that response is {stored.response.status}")
    return stored.messages


def _keep(context: Context, request: Request, body: ResponsesRequest, given: Translated, done: Response) -> None:
    if body.store is not False:
        context.responses.put(request.tenant, Stored(done, [*given.history, *as_history(done.output)]))


async def _in_background(context: Context, request: Request, body: ResponsesRequest, given: Translated) -> Reply:
    """Replies once the request was admitted, so that what is wrong with it is still a status."""
    own, nobody = unattended(request)
    admitted: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

    def shape(turn: Turn) -> ResponseShape:
        made = ResponseShape(turn, body, lambda done: _keep(context, own, body, given, done))
        begun = made.response("in_progress")
        context.responses.put(own.tenant, Stored(begun, given.history, nobody.leave))
        admitted.set_result(begun)
        return made

    async def run() -> None:
        context.state.in_flight += 1
        if own.lease is not None:
            own.lease.hold()
        try:
            await converse(context, own, given.body, Dialect("resp_", shape))
        except Exception as error:
            if not admitted.done():
                raise
            failed = own.renamed(to_api_error(error, own.id))
            _finish(context, own, admitted.result().id, "failed", Failure("server_error", failed.message))
        else:
            # What has left has no answer; what has one is not changed by this.
            _finish(context, own, admitted.result().id, "cancelled", None)
        finally:
            context.state.in_flight -= 1
            if own.lease is not None:
                own.lease.close()

    task = asyncio.get_running_loop().create_task(run())
    context.background.add(task)
    task.add_done_callback(context.background.discard)
    await asyncio.wait({task, admitted}, return_when=asyncio.FIRST_COMPLETED)
    if not admitted.done():
        await task
    return json_reply(admitted.result())


def _finish(context: Context, request: Request, id: str, status: Status, error: Failure | None) -> None:
    stored = context.responses.get(request.tenant, id)
    if stored is not None and stored.leave is not None:
        stored.response.status, stored.response.error = status, error
        context.responses.put(request.tenant, Stored(stored.response, stored.messages))


async def retrieve(context: Context, request: Request) -> Reply:
    """As it is now."""
    if "stream=true" in request.scope.query_string.lower():
        raise bad_field("stream", "stream: a stored response is not streamed", "unsupported")
    return json_reply(_stored(context, request).response)


async def delete(context: Context, request: Request) -> Reply:
    """Forgets it, and ends what still runs."""
    stored = _stored(context, request)
    if stored.leave is not None:
        stored.leave()
    context.responses.drop(request.tenant, stored.response.id)
    return json_reply(Deleted(stored.response.id))


async def cancel(context: Context, request: Request) -> Reply:
    """Ends one that is made in the background; to cancel it twice is no mistake."""
    stored = _stored(context, request)
    if not stored.response.background:
        raise bad_field("id", "Only responses made in the background can be cancelled")
    if stored.leave is not None:
        stored.leave()
        _finish(context, request, stored.response.id, "cancelled", None)
    elif stored.response.status != "cancelled":
        raise bad_field("id", f"This response is {stored.response.status}; it cannot be cancelled")
    return json_reply(stored.response)


def _stored(context: Context, request: Request) -> Stored:
    context.state.must_serve()
    id = request.scope.path.partition(_PREFIX)[2].partition("/")[0]
    stored = context.responses.get(request.tenant, id)
    if stored is None:
        raise ApiError(404, f"There is no stored response '{_shown(id)}'", param="id", code="not_found")
    return stored


def _shown(id: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in id[:200])
