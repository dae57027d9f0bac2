"""The receipt: which fields of a request were clamped or had no effect, as a header and, if asked for, in the body."""

import re
from collections.abc import Iterable

from msgspec import UNSET, UnsetType

from fastchat_rs.server.http import Request
from fastchat_rs.server.protocol import Applied, Receipt, SamplingFields

HEADER = "x-fastchat-applied"
# What a header may name, and how much: clients choose the names of unknown fields.
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MAX_UNKNOWN = 16
_UNUSED = ("user", "metadata", "store", "service_tier")
# Fields that choose among several likely tokens, where temperature 0 leaves one.
_RANDOM = ("top_p", "top_k", "min_p", "seed")


class Notes:
    """Gathers the lines while a request is read."""

    def __init__(self) -> None:
        self.applied: list[Applied] = []

    def ignored(self, field: str, reason: str | None = None) -> None:
        """The field had no effect."""
        self.applied.append(Applied(field, "ignored", reason=reason))

    def clamped(self, field: str, value: float) -> None:
        """The field was too large, and `value` was used."""
        self.applied.append(Applied(field, "clamped", value))

    def sampling(self, body: SamplingFields) -> None:
        """What can be said of the shared fields without the model."""
        for field in _UNUSED:
            if getattr(body, field) is not None:
                self.ignored(field)
        if body.temperature == 0:
            for field in _RANDOM:
                if getattr(body, field) is not None:
                    self.ignored(field, "temperature is 0")

    def constrained(self, body: SamplingFields) -> None:
        """What does not hold where a constraint says when the answer is complete."""
        for field in ("min_tokens", "ignore_eos"):
            if getattr(body, field):
                self.ignored(field, "the answer ends when it is complete")

    def unknown(self, names: Iterable[str]) -> None:
        """Fields that this server does not know."""
        known = [name for name in names if _NAME.fullmatch(name)]
        for name in known[:_MAX_UNKNOWN]:
            self.ignored(name, "unknown field")

    def announce(self, request: Request) -> None:
        """Adds the header: `max_tokens=clamped(1990), user=ignored`."""
        for line in self.applied:
            line.field = request.name_of(line.field)
        self.applied = [line for line in self.applied if line.field]
        if self.applied:
            request.headers_out.append((HEADER, ", ".join(map(_worded, self.applied))))

    def body(self, wanted: bool) -> Receipt | UnsetType:
        """For the reply."""
        return Receipt(self.applied) if wanted else UNSET


def tell(request: Request, user: str | None = None) -> None:
    """The header of a route that samples nothing: what it does not know, and `user`."""
    notes = Notes()
    if user is not None:
        notes.ignored("user")
    notes.unknown(request.unknown_fields)
    notes.announce(request)


def _worded(line: Applied) -> str:
    return f"{line.field}={line.effect}" + ("" if line.value is None else f"({line.value})")
