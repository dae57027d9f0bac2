"""A finding of `fastchat-rs doctor`, and how work becomes one. Knows no model."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from fastchat_rs.errors import FastchatError
from fastchat_rs.llm import EngineError


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    ok: bool
    detail: str

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check(name: str, work: Callable[[], str]) -> Check:
    """What `work` says, or why it failed."""
    try:
        return Check(name, True, work())
    except (FastchatError, EngineError, FailedError) as error:
        return Check(name, False, " ".join(str(error).split()))


class FailedError(Exception):
    """A check that ran and did not like what it saw."""
