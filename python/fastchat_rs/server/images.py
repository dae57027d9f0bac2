"""Pictures of chat requests: `image_url` parts to the engine's images, and its complaints back to the parts."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

from fastchat_rs.dataurl import decoded
from fastchat_rs.errors import ConfigError
from fastchat_rs.pictures import Places
from fastchat_rs.server.api_error import ApiError, bad_field
from fastchat_rs.server.bridge import Image, MediaPrompt
from fastchat_rs.server.fetch import FetchRefusedError, ImageFetcher
from fastchat_rs.server.protocol import ContentPart
from fastchat_rs.server.state import Served
from fastchat_rs.template import ChatTemplate

_DETAILS = ("auto", "low", "high")
# Base64 of a few kilobytes is decoded at once, more on a thread.
_INLINE = 64 * 1024


class Pictures:
    """The pictures of one request, collected while its messages are checked."""

    def __init__(self, served: Served, fetcher: ImageFetcher) -> None:
        info = served.info
        self._served = served
        self._fetcher = fetcher
        self._found: list[tuple[str, str, str]] = []
        self._places = Places(served.bridge.engine.fence, info.image_marker) if info.takes_images else None

    def part(self, place: str, part: ContentPart) -> dict[str, Any]:
        """Takes an `image_url` part; what the template gets in its place."""
        if self._places is None:
            message = f"{place}: the model '{self._served.name}' does not support image input"
            raise bad_field(place, message, "unsupported")
        field = f"{place}.image_url"
        given: Any = part.image_url
        detail: Any = None
        if isinstance(given, dict):
            table = cast("dict[str, Any]", given)
            given, detail = table.get("url"), table.get("detail")
            field = f"{field}.url"
        if not isinstance(given, str) or not given:
            raise bad_field(field, f"{field}: is needed, as a data URL or a URL")
        if detail is not None and detail not in _DETAILS:
            raise bad_field(f"{place}.image_url.detail", f"{place}.image_url.detail: must be {', '.join(_DETAILS)}")
        self._found.append((place, given, detail or "auto"))
        return {"type": "image"}

    def shown(self, messages: list[dict[str, Any]], template: ChatTemplate) -> list[dict[str, Any]]:
        """The messages as the template takes them."""
        return messages if self._places is None else self._places.shown(messages, template)

    def plain(self, text: str) -> str:
        """The rendered prompt as the model reads it."""
        return text if self._places is None else self._places.plain(text)

    async def submitted(self, text: str) -> "str | MediaPrompt":
        """The rendered prompt as the engine takes it, its pictures fetched."""
        if self._places is None:
            return text
        segments = self._places.segments(text)
        if not self._found and not any(literal for _, literal in segments):
            return text
        data = await asyncio.gather(*(self._data(place, url) for place, url, _ in self._found))
        images = [Image.encoded(one, detail=detail) for one, (_, _, detail) in zip(data, self._found, strict=True)]
        return MediaPrompt(segments, images)

    async def _data(self, place: str, url: str) -> bytes:
        field = f"{place}.image_url.url"
        try:
            if not url[:5].lower().startswith("data:"):
                return await self._fetcher.fetch(url, field)
            work: Callable[[], bytes] = lambda: decoded("data:" + url[5:], field)  # noqa: E731
            return work() if len(url) < _INLINE else await asyncio.to_thread(work)
        except (ConfigError, FetchRefusedError) as error:
            raise bad_field(field, str(error)) from error

    def placed(self, error: ApiError) -> ApiError:
        """An error of the engine about picture `images.<i>`, about the part it came from."""
        head, _, number = (error.param or "").partition(".")
        if head != "images" or not number.isdigit() or int(number) >= len(self._found):
            return error
        place = f"{self._found[int(number)][0]}.image_url"
        message = error.message.removeprefix(f"images.{number}: ").removeprefix("image = ")
        return ApiError(error.status, f"{place}: {message}", param=place, code=error.code)
