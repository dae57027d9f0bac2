"""Responses that can be fetched, gone on from and cancelled: in memory, the oldest leave when the bytes are used up."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from fastchat_rs.server.http import encode_json
from fastchat_rs.server.protocol import Message
from fastchat_rs.server.responses.protocol import Response


@dataclass
class Stored:
    """A response and the conversation up to its end."""

    response: Response
    messages: list[Message] = field(default_factory=list[Message])
    leave: Callable[[], None] | None = None
    """Ends the generation of a response that is made in the background; None once it has ended."""
    size: int = 0


class ResponseStore:
    """By caller and id: nobody sees the responses of another key."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._stored: OrderedDict[tuple[str | None, str], Stored] = OrderedDict()

    def put(self, tenant: str | None, stored: Stored) -> None:
        """Keeps it, or keeps what it has become. What runs is not thrown out."""
        key = (tenant, stored.response.id)
        self.drop(*key)
        stored.size = len(encode_json((stored.response, stored.messages)))
        self._stored[key] = stored
        self._bytes += stored.size
        for old in list(self._stored):
            if self._bytes <= self._max_bytes:
                break
            if self._stored[old].leave is None:
                self.drop(*old)

    def get(self, tenant: str | None, id: str) -> Stored | None:
        """None when it was never stored, was deleted, or had to leave."""
        return self._stored.get((tenant, id))

    def drop(self, tenant: str | None, id: str) -> Stored | None:
        """Forgets it."""
        stored = self._stored.pop((tenant, id), None)
        if stored is not None:
            self._bytes -= stored.size
        return stored
