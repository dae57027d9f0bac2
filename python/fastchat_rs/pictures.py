"""Pictures in conversations: places for them in a chat template's text, and that text cut where it is literal.

Knows messages, templates and text; not HTTP, and the engine only by what it is handed.
"""

import io
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fastchat_rs.errors import ConfigError, TemplateError

if TYPE_CHECKING:
    from fastchat_rs.template import ChatTemplate

Message = Mapping[str, Any]
Segment = tuple[str, bool]
"""A text, and whether it is literal: somebody's words in which names of control tokens are only words."""

_PROBE = "fastchat-probe"
_IMAGE_TYPES = ("image", "image_url", "image_pil", "input_image")
_MAX_FILE = 64 * 1024 * 1024


class Places:
    """One conversation on its way through a template: what is somebody's words is fenced, pictures get places."""

    def __init__(self, fence: Callable[[str, str], str], marker: str | None) -> None:
        self._fence = fence
        self._marker = marker or ""
        # Nobody can write it by accident or design.
        self._mark = f"\ue000{secrets.token_hex(12)}\ue000"

    def shown(self, messages: Sequence[Message], template: "ChatTemplate") -> list[dict[str, Any]]:
        """What the template is given. Contents are texts or lists of `text` and `image` parts."""
        pictured = any(isinstance(message.get("content"), list) for message in messages)
        parts = takes_parts(template) and (pictured or not takes_text(template))
        return [self._message(message, parts) for message in messages]

    def plain(self, text: str) -> str:
        """The rendered text as the model reads it."""
        return text.replace(self._mark, "")

    def segments(self, text: str) -> list[Segment]:
        """The rendered text, cut where it is literal."""
        pieces = text.split(self._mark)
        return [(piece, bool(number % 2)) for number, piece in enumerate(pieces) if piece]

    def _message(self, message: Message, parts: bool) -> dict[str, Any]:
        shaped = dict(message)
        content = message.get("content")
        if isinstance(content, str):
            text = self._fence(content, self._mark)
            shaped["content"] = [{"type": "text", "text": text}] if parts else text
        elif isinstance(content, list):
            pieces = [self._part(part) for part in cast("list[Message]", content)]
            shaped["content"] = pieces if parts else self._joined(pieces)
        return shaped

    def _part(self, part: Message) -> dict[str, Any]:
        if part.get("type") == "text":
            return {"type": "text", "text": self._fence(str(part.get("text") or ""), self._mark)}
        return {"type": "image"}

    def _joined(self, pieces: list[dict[str, Any]]) -> str:
        # For templates that print contents as they are; pictures stand where they stood.
        return "\n".join(self._marker if piece["type"] == "image" else piece["text"] for piece in pieces)


def takes_parts(template: "ChatTemplate") -> bool:
    """Whether a template prints the parts of a list, and not the list."""
    printed = _printed(template, [{"type": "text", "text": _PROBE}])
    return _PROBE in printed and "'type'" not in printed


def takes_text(template: "ChatTemplate") -> bool:
    """Whether a template prints a content that is a text."""
    return _PROBE in _printed(template, _PROBE)


def _printed(template: "ChatTemplate", content: Any) -> str:
    try:
        return template.render([{"role": "user", "content": content}])
    except TemplateError:
        return ""


def taken(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[tuple[str, Any, str]]]:
    """Takes the pictures out of a conversation: (messages with places, [(place, picture, detail)])."""
    pictures: list[tuple[str, Any, str]] = []
    shaped: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        content: Any = message.get("content")
        if not isinstance(content, list):
            shaped.append(dict(message))
            continue
        parts: list[dict[str, Any]] = []
        for index, part in enumerate(cast("list[Message]", content)):
            place = f"messages.{number}.content.{index}"
            kind = part.get("type")
            if kind == "text":
                parts.append(dict(part))
            elif kind in _IMAGE_TYPES:
                found, detail = _source(part, place)
                pictures.append((place, found, detail))
                parts.append({"type": "image"})
            else:
                raise ConfigError(f"{place}.type: '{kind}' is neither text nor {', '.join(_IMAGE_TYPES)}")
        shaped.append({**message, "content": parts})
    return shaped, pictures


def _source(part: Message, place: str) -> tuple[Any, str]:
    found: Any = next((part[name] for name in _IMAGE_TYPES if part.get(name) is not None), None)
    detail: Any = part.get("detail")
    if isinstance(found, Mapping):
        table = cast("Mapping[str, Any]", found)
        found, detail = table.get("url"), table.get("detail", detail)
    if found is None:
        raise ConfigError(f"{place}: no picture in it; give a path, bytes, a PIL image or an array")
    return found, "auto" if detail is None else str(detail)


def pixels_of(picture: Any, place: str) -> tuple[bytes, int, int, int] | None:
    """(bytes, width, height, channels) of a PIL image or of an array `[height, width(, 1, 3 or 4)]` of uint8."""
    if hasattr(picture, "convert") and hasattr(picture, "tobytes"):
        rgb = picture.convert("RGB")
        return rgb.tobytes(), rgb.size[0], rgb.size[1], 3
    if not hasattr(picture, "__array_interface__"):
        return None
    import numpy as np

    array: Any = np.asarray(picture)
    shape = array.shape
    if array.dtype != np.uint8 or len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise ConfigError(f"{place}: an array of {array.dtype} {shape}; expected uint8 [height, width(, 1, 3 or 4)]")
    return array.tobytes(), shape[1], shape[0], shape[2] if len(shape) == 3 else 1


def file_of(picture: Any, place: str) -> bytes:
    """The bytes of an encoded picture: bytes, a path, a data URL, or a file to read from."""
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(cast("bytes", picture))
    if isinstance(picture, str) and picture.startswith("data:"):
        from fastchat_rs.dataurl import decoded

        return decoded(picture, place)
    if isinstance(picture, str) and "://" in picture:
        raise ConfigError(f"{place}: pictures are not fetched here; give a path, bytes or a data URL")
    if isinstance(picture, str | Path):
        path = Path(picture)
        try:
            size = path.stat().st_size
            if size > _MAX_FILE:
                raise ConfigError(f"{place}: {path} has {size} bytes; at most {_MAX_FILE}")
            return path.read_bytes()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{place}: {path}: {getattr(error, 'strerror', None) or error}") from error
    if isinstance(picture, io.IOBase) and picture.readable():
        data: Any = picture.read(_MAX_FILE + 1)
        if isinstance(data, bytes) and len(data) <= _MAX_FILE:
            return data
    raise ConfigError(f"{place}: a {type(picture).__name__}; expected a path, bytes, a PIL image or an array")
