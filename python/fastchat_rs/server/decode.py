"""Bytes of a body -> a request Struct, or a 400 that names the field. The only place that reads msgspec's messages."""

import re
from typing import Any, Generic, TypeVar, cast

import msgspec

from fastchat_rs.server.api_error import ApiError, bad_field

T = TypeVar("T")

_NAMED_BY_PLACE = ("messages", "stream_options")

_MISSING = re.compile(r"missing required field `([^`]+)`")
# null is absent, also where a field is needed; not so in a list.
_NULL = re.compile(r"Expected `[^`]*`, got `null` - at `\$[^`]*[^]`]`")
_CHOICE = re.compile(r"Invalid enum value '(.*)'", re.DOTALL)
_MAX_SHOWN = 64
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


class BodyDecoder(Generic[T]):
    """A prebuilt decoder for one type of request."""

    def __init__(self, kind: type[T]) -> None:
        self._decoder = msgspec.json.Decoder(kind)
        self._keys = msgspec.json.Decoder(dict[str, msgspec.Raw])
        self._known = {field.encode_name for field in msgspec.structs.fields(cast("Any", kind))}

    def unknown(self, body: bytes) -> list[str]:
        """Names in a decoded body that the type does not know."""
        return [name for name in self._keys.decode(body) if name not in self._known]

    def decode(self, body: bytes, max_depth: int) -> T:
        """Checks depth, syntax, types and ranges. CPU work: large bodies belong on a worker thread."""
        if body.count(b"{") + body.count(b"[") > max_depth and nesting(body) > max_depth:
            raise bad_field(None, f"The body is nested deeper than {max_depth}")
        try:
            # msgspec looks only at the text it keeps; names and values of unknown fields must be text too.
            _ = body.isascii() or body.decode("utf-8")
            return self._decoder.decode(body)
        except msgspec.ValidationError as error:
            raise _field_error(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise bad_field(None, f"The body is not valid JSON: {error}", code="invalid_json") from None
        except RecursionError:
            raise bad_field(None, "The body is nested too deep") from None


def nesting(body: bytes) -> int:
    """Deepest nesting of brackets outside strings."""
    depth = deepest = 0
    for match in _TOKENS.finditer(body):
        first = match[0][0]
        if first in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif first in b"]}":
            depth -= 1
    return deepest


def _field_error(text: str) -> ApiError:
    reason, _, place = text.partition(" - at `$")
    path = place.rstrip("`").lstrip(".")
    missing = _MISSING.search(reason)
    if missing:
        path = f"{path}.{missing[1]}" if path else missing[1]
    absent = missing is not None or _NULL.fullmatch(text) is not None
    if (choice := _CHOICE.fullmatch(reason)) and len(choice[1]) > _MAX_SHOWN:
        reason = f"Invalid enum value '{choice[1][:_MAX_SHOWN]}...'"
    param = param_of(path)
    inside = f" (at {path})" if path and path != param else ""
    code = "missing_required_parameter" if absent else "invalid_type" if "got" in reason else "invalid_value"
    return bad_field(param, f"{param}: {reason}{inside}" if param else reason, code)


def param_of(path: str) -> str | None:
    """`messages[0].content[1].type` -> `messages.0.content.1.type`; the insides of most others go by the field."""
    if path.startswith(_NAMED_BY_PLACE):
        path = path if path.startswith("messages") else path.partition("[")[0]
    else:
        path = re.split(r"[.\[]", path, maxsplit=1)[0]
    return path.replace("[...]", "").replace("[", ".").replace("]", "") or None
