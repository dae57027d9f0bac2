"""Words the answer to a conversation as Anthropic's content blocks, whole or events: the same pieces."""

from dataclasses import dataclass, field
from typing import cast

import msgspec
from msgspec import UNSET, Struct

from fastchat_rs.server.anthropic.protocol import (
    Answer,
    BlockDelta,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    Ending,
    Event,
    InputJsonDelta,
    MessageDelta,
    MessageStart,
    MessageStop,
    Reply,
    StopReason,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolUse,
    Usage,
)
from fastchat_rs.server.bridge import Delta
from fastchat_rs.server.chat import Turn
from fastchat_rs.server.protocol import MessageDelta as Piece

_REASONS: dict[str, StopReason] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


@dataclass
class _Block:
    """A block as it began, and its pieces."""

    start: Answer
    texts: list[str] = field(default_factory=list[str])

    def whole(self) -> Answer:
        text = "".join(self.texts)
        if isinstance(self.start, Text):
            return Text(text=text)
        if isinstance(self.start, Thinking):
            return Thinking(thinking=text)
        return ToolUse(id=self.start.id, name=self.start.name, input=_input(text))


def _input(text: str) -> object:
    """A call that was cut off is kept as text."""
    try:
        return msgspec.json.decode(text) if text else {}
    except msgspec.DecodeError:
        return {"input": text}


class MessagesShape:
    """See `stream.Shape`."""

    def __init__(self, turn: Turn) -> None:
        self._ids = turn.ids
        self.usage = turn.usage
        (self._choice,) = turn.choices
        self._blocks: list[_Block] = []
        self._stop: str | None = None

    def opening(self) -> list[Struct]:
        """The message, empty."""
        return [MessageStart(self._message([]))]

    def chunks(self, prompt: int, delta: Delta) -> list[Struct]:
        """Blocks begin, grow and end."""
        return [*self._events(delta)]

    def closing(self) -> list[Struct]:
        """The last block's end, and why."""
        ended: list[Struct] = [ContentBlockStop(len(self._blocks) - 1)] if self._blocks else []
        reason, sequence = self._ending()
        return [*ended, MessageDelta(Ending(reason, sequence), self._usage()), MessageStop()]

    def collect(self, prompt: int, delta: Delta) -> None:
        """For `whole`."""
        self._events(delta)

    def whole(self) -> Struct:
        """The reply."""
        message = self._message([block.whole() for block in self._blocks])
        message.stop_reason, message.stop_sequence = self._ending()
        return message

    def _events(self, delta: Delta) -> list[Event]:
        if isinstance(delta.stop_reason, str):
            self._stop = delta.stop_reason
        return [event for piece in self._choice.feed(delta) for event in self._piece(piece)]

    def _piece(self, piece: Piece) -> list[Event]:
        if piece.content is not UNSET:
            return self._more(Text(text=""), piece.content, TextDelta(piece.content))
        if piece.reasoning_content is not UNSET:
            return self._more(Thinking(thinking=""), piece.reasoning_content, ThinkingDelta(piece.reasoning_content))
        events: list[Event] = []
        for call in [] if piece.tool_calls is UNSET else piece.tool_calls:
            function = call.function
            if function is UNSET:
                continue
            if call.id is not UNSET:
                events += self._begin(ToolUse(id=call.id, name=cast(str, function.name), input={}))
            if function.arguments:
                self._blocks[-1].texts.append(function.arguments)
                events.append(ContentBlockDelta(len(self._blocks) - 1, InputJsonDelta(function.arguments)))
        return events

    def _more(self, block: Answer, text: str, delta: BlockDelta) -> list[Event]:
        same = self._blocks and type(self._blocks[-1].start) is type(block)
        events = [] if same else self._begin(block)
        self._blocks[-1].texts.append(text)
        return [*events, ContentBlockDelta(len(self._blocks) - 1, delta)]

    def _begin(self, block: Answer) -> list[Event]:
        ended: list[Event] = [ContentBlockStop(len(self._blocks) - 1)] if self._blocks else []
        self._blocks.append(_Block(block))
        return [*ended, ContentBlockStart(len(self._blocks) - 1, block)]

    def _ending(self) -> tuple[StopReason, str | None]:
        reason = self._choice.finish_reason or "stop"
        if reason == "stop" and self._stop is not None:
            return "stop_sequence", self._stop
        return _REASONS.get(reason, "end_turn"), None

    def _usage(self) -> Usage:
        usage = self.usage
        return Usage(usage.prompt_tokens - usage.cached_tokens, usage.completion_tokens, usage.cached_tokens)

    def _message(self, content: list[Answer]) -> Reply:
        return Reply(self._ids.id, self._ids.model, content, self._usage())
