"""A generation whose client does not wait: a request with nobody at its other end."""

import asyncio
import copy
from typing import Any

from fastchat_rs.server.http import Request


class Nobody:
    """Stands where a client's connection would be. What is sent is dropped; leaving is what cancels."""

    def __init__(self) -> None:
        self._left = asyncio.Event()

    def leave(self) -> None:
        """As a client that closes its connection."""
        self._left.set()

    async def client_disconnect(self) -> None:
        """Returns once it has left."""
        await self._left.wait()

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Kept by the shape already."""


def unattended(request: Request) -> tuple[Request, Nobody]:
    """The same request from nobody."""
    nobody = Nobody()
    own = copy.copy(request)
    proto: Any = nobody
    own.proto = proto
    return own, nobody
