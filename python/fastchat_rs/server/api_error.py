"""The one kind of error that a client sees. Knows no requests."""

from fastchat_rs.server.protocol import ErrorBody, ErrorReply

_MAX_MESSAGE = 4000


class ApiError(Exception):
    """Becomes `{"error": {message, type, param, code}}` with `status`."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message[:_MAX_MESSAGE]
        self.param = param
        self.code = code
        self.headers: list[tuple[str, str]] = [("retry-after", str(retry_after))] if retry_after else []

    @property
    def body(self) -> ErrorReply:
        """The JSON object of the reply and of an error event in a stream."""
        if self.status == 429 and self.code is not None:
            # OpenAI's clients tell a used up quota from a full minute by the type too.
            kind = self.code
        else:
            kind = "invalid_request_error" if self.status < 500 else "server_error"
        return ErrorReply(ErrorBody(self.message, kind, self.param, self.code))


def bad_field(param: str | None, message: str, code: str | None = "invalid_value") -> ApiError:
    """A 400 that names the field."""
    return ApiError(400, message, param=param, code=code)
