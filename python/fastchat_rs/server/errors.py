"""The one table from the engine's error classes to HTTP."""

import logging

from fastchat_rs.errors import TemplateError
from fastchat_rs.server import bridge
from fastchat_rs.server.api_error import ApiError

log = logging.getLogger("fastchat_rs")

# class -> status, code. InvalidRequest, ContextLength and Overloaded carry more and are worded below.
HTTP_TABLE: dict[type[bridge.EngineError], tuple[int, str]] = {
    bridge.InvalidRequestError: (400, "invalid_value"),
    bridge.ContextLengthError: (400, "context_length_exceeded"),
    bridge.OverloadedError: (503, "overloaded"),
    bridge.UnsupportedModelError: (500, "unsupported_model"),
    bridge.WeightsError: (500, "weights"),
    bridge.CancelledError: (503, "cancelled"),
    bridge.InternalError: (500, "internal_error"),
}
# Texts of these may speak of files and internals; they go to the log, not to the client.
_HIDDEN = (bridge.UnsupportedModelError, bridge.WeightsError, bridge.InternalError)


def to_api_error(error: BaseException, request_id: str) -> ApiError:
    """Any exception as what the client may see."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, TemplateError):
        return ApiError(400, str(error), param="messages", code="invalid_value")
    if isinstance(error, bridge.ContextLengthError):
        message = (
            f"This model's maximum context length is {error.limit} tokens. "
            f"However, your request has {error.prompt_tokens} tokens. Please shorten it."
        )
        return ApiError(400, message, param="messages", code="context_length_exceeded")
    if isinstance(error, bridge.InvalidRequestError):
        return ApiError(400, str(error), param=error.param, code="invalid_value")
    status, code = next((row for kind, row in HTTP_TABLE.items() if isinstance(error, kind)), (500, "internal_error"))
    if isinstance(error, bridge.EngineError) and not isinstance(error, _HIDDEN):
        return ApiError(status, str(error), code=code, retry_after=1 if status == 503 else 0)
    log.error("request %s failed", request_id, exc_info=error)
    return ApiError(status, "The server failed on this request", code=code)
