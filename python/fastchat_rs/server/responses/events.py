"""The events of a stream of /v1/responses: msgspec Structs and nothing else."""

from typing import TypeAlias

from msgspec import Struct

from fastchat_rs.server.protocol import ErrorBody
from fastchat_rs.server.responses.protocol import OutputItem, OutputLogprob, OutputPart, Response


class Numbered(Struct, kw_only=True):
    """Every event has its place in the stream."""

    sequence_number: int = 0


class Created(Numbered, kw_only=True, tag_field="type", tag="response.created"):
    """First event."""

    response: Response


class InProgress(Numbered, kw_only=True, tag_field="type", tag="response.in_progress"):
    """Second event."""

    response: Response


class ItemAdded(Numbered, kw_only=True, tag_field="type", tag="response.output_item.added"):
    """An item begins."""

    output_index: int
    item: OutputItem


class ItemDone(Numbered, kw_only=True, tag_field="type", tag="response.output_item.done"):
    """An item is complete."""

    output_index: int
    item: OutputItem


class InItem(Numbered, kw_only=True):
    """About an item."""

    item_id: str
    output_index: int


class PartAdded(InItem, kw_only=True, tag_field="type", tag="response.content_part.added"):
    """A part of an item begins."""

    content_index: int = 0
    part: OutputPart


class PartDone(InItem, kw_only=True, tag_field="type", tag="response.content_part.done"):
    """A part of an item is complete."""

    content_index: int = 0
    part: OutputPart


class TextDelta(InItem, kw_only=True, tag_field="type", tag="response.output_text.delta"):
    """More words."""

    content_index: int = 0
    delta: str
    logprobs: list[OutputLogprob]


class TextDone(InItem, kw_only=True, tag_field="type", tag="response.output_text.done"):
    """All words of a part."""

    content_index: int = 0
    text: str
    logprobs: list[OutputLogprob]


class ReasoningDelta(InItem, kw_only=True, tag_field="type", tag="response.reasoning_text.delta"):
    """More thoughts."""

    content_index: int = 0
    delta: str


class ReasoningDone(InItem, kw_only=True, tag_field="type", tag="response.reasoning_text.done"):
    """All thoughts of a part."""

    content_index: int = 0
    text: str


class ArgumentsDelta(InItem, kw_only=True, tag_field="type", tag="response.function_call_arguments.delta"):
    """More of a call's arguments."""

    delta: str


class ArgumentsDone(InItem, kw_only=True, tag_field="type", tag="response.function_call_arguments.done"):
    """All of a call's arguments."""

    name: str
    arguments: str


class Completed(Numbered, kw_only=True, tag_field="type", tag="response.completed"):
    """Last event of an answer that came to its end."""

    response: Response


class Incompleted(Numbered, kw_only=True, tag_field="type", tag="response.incomplete"):
    """Last event of an answer that was cut off."""

    response: Response


class Error(Numbered, kw_only=True, tag_field="type", tag="error"):
    """Last event of a stream that failed. `error` is what OpenAI's clients raise."""

    message: str
    code: str | None
    param: str | None
    error: ErrorBody


Event: TypeAlias = (
    Created
    | InProgress
    | ItemAdded
    | ItemDone
    | PartAdded
    | PartDone
    | TextDelta
    | TextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
    | Completed
    | Incompleted
    | Error
)
