"""POST /v1/messages and /v1/messages/count_tokens."""

from fastchat_rs.server.anthropic.protocol import PING, CountReply, CountRequest, Error, MessagesRequest
from fastchat_rs.server.anthropic.shape import MessagesShape
from fastchat_rs.server.anthropic.translate import Translated, translated
from fastchat_rs.server.api_error import ApiError
from fastchat_rs.server.chat import Dialect, converse, count_tokens
from fastchat_rs.server.decode import BodyDecoder
from fastchat_rs.server.handle import Context
from fastchat_rs.server.http import Reply, Request, Wording, json_reply, named_event
from fastchat_rs.server.protocol import ErrorBody

_MESSAGES = BodyDecoder(MessagesRequest)
_COUNT = BodyDecoder(CountRequest)
_DIALECT = Dialect("msg_", MessagesShape)
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def _error(error: ApiError) -> Error:
    other = "invalid_request_error" if error.status < 500 else "api_error"
    # A picture is a block here, without the field that the chat route has for it.
    param = None if error.param is None else error.param.partition(".image_url")[0]
    message = error.message if error.param is None else error.message.replace(error.param, str(param), 1)
    return Error(ErrorBody(message, _KINDS.get(error.status, other), param, error.code))


WORDING = Wording(error=_error, stream_error=_error, chunk=named_event, ping=PING, last=b"")


async def messages(context: Context, request: Request) -> Reply | None:
    """An answer, whole or streamed."""
    given = translated(await context.decode(request, _MESSAGES))
    _tell(request, given)
    return await converse(context, request, given.body, _DIALECT)


async def count(context: Context, request: Request) -> Reply:
    """Tokens of what /v1/messages would read."""
    given = translated(await context.decode(request, _COUNT))
    _tell(request, given)
    return json_reply(CountReply(await count_tokens(context, request, given.body)))


def _tell(request: Request, given: Translated) -> None:
    request.names = given.names
    request.unknown_fields += given.unused
    # Where Anthropic's clients look for it.
    request.headers_out.append(("request-id", request.id))
