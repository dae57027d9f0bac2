"""One or many: what `LLM` is given as lists, and the bar that shows how far a list has come. Knows no engine."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from rich.progress import Progress

Prompt = str | Sequence[int]
"""A text, or token ids."""
Message = Mapping[str, Any]
"""`{"role": ..., "content": ...}`, and what else the model's chat template reads."""


def several(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many -> many. A list of numbers is one prompt."""
    if isinstance(prompts, str):
        return [prompts]
    if all(isinstance(item, int) for item in prompts) and len(prompts):
        return [cast("Sequence[int]", prompts)]
    return list(cast("Sequence[Prompt]", prompts))


def conversations(messages: Sequence[Message] | Sequence[Sequence[Message]]) -> list[Sequence[Message]]:
    if messages and isinstance(messages[0], Mapping):
        return [cast("Sequence[Message]", messages)]
    return list(cast("Sequence[Sequence[Message]]", messages))


def progress_bar(wanted: bool) -> "AbstractContextManager[Progress | None]":
    """A bar on stderr, when somebody can see it."""
    if not wanted:
        return nullcontext()
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)
