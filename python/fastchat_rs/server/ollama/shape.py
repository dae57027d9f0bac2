"""Words the answer to a conversation as Ollama's objects, one a line or one for all."""

import time
from datetime import datetime, timezone
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from fastchat_rs.server.bridge import Delta
from fastchat_rs.server.chat import Turn
from fastchat_rs.server.ollama.protocol import Call, ChatReply, GenerateReply, OutputMessage, ToolCall
from fastchat_rs.server.protocol import MessageDelta


def timestamp(seconds: float | None = None) -> str:
    """As Go writes it."""
    moment = datetime.now(timezone.utc) if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat().replace("+00:00", "Z")


class ChatShape:
    """See `stream.Shape`; for /api/chat."""

    def __init__(self, turn: Turn) -> None:
        self._model = turn.ids.model
        self.usage = turn.usage
        (self._choice,) = turn.choices
        self._started = time.monotonic_ns()
        self._first: int | None = None

    def opening(self) -> list[Struct]:
        """Nothing goes first."""
        return []

    def chunks(self, prompt: int, delta: Delta) -> list[Struct]:
        """A line per piece; calls come whole, at the end."""
        lines: list[Struct] = []
        for piece in self._feed(delta):
            if piece.content is not UNSET:
                lines.append(self._line(OutputMessage(piece.content)))
            elif piece.reasoning_content is not UNSET:
                lines.append(self._line(OutputMessage("", thinking=piece.reasoning_content)))
        return lines

    def closing(self) -> list[Struct]:
        """The calls, and the figures."""
        calls = self._calls()
        told: list[Struct] = [self._line(OutputMessage("", tool_calls=calls))] if calls else []
        return [*told, self._line(OutputMessage(""), done=True)]

    def collect(self, prompt: int, delta: Delta) -> None:
        """For `whole`."""
        self._feed(delta)

    def whole(self) -> Struct:
        """The reply."""
        said = self._choice.message()
        message = OutputMessage(said.content or "", thinking=said.reasoning, tool_calls=self._calls() or UNSET)
        return self._line(message, done=True)

    def _feed(self, delta: Delta) -> list[MessageDelta]:
        if self._first is None and delta.token_ids:
            self._first = time.monotonic_ns()
        return self._choice.feed(delta)

    def _calls(self) -> list[ToolCall]:
        """Those that are complete."""
        calls: list[ToolCall] = []
        said = self._choice.message().tool_calls
        for call in [] if said is UNSET else said:
            try:
                arguments = msgspec.json.decode(call.function.arguments or "{}", type=dict[str, Any])
            except msgspec.MsgspecError:
                continue
            calls.append(ToolCall(function=Call(name=call.function.name, arguments=arguments), id=call.id))
        return calls

    def _line(self, message: OutputMessage, *, done: bool = False) -> Struct:
        line = self._worded(message)
        if done:
            now = time.monotonic_ns()
            first = self._first or now
            line.done = True
            # A call is an ordinary end here.
            line.done_reason = "length" if self._choice.finish_reason == "length" else "stop"
            line.total_duration, line.load_duration = now - self._started, 0
            line.prompt_eval_count, line.prompt_eval_duration = self.usage.prompt_tokens, first - self._started
            line.eval_count, line.eval_duration = self.usage.completion_tokens, now - first
        return line

    def _worded(self, message: OutputMessage) -> ChatReply | GenerateReply:
        return ChatReply(model=self._model, created_at=timestamp(), message=message)


class GenerateShape(ChatShape):
    """The same for /api/generate."""

    def _worded(self, message: OutputMessage) -> ChatReply | GenerateReply:
        return GenerateReply(
            model=self._model, created_at=timestamp(), response=message.content, thinking=message.thinking
        )
