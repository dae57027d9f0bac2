"""Reads one choice's text as a chat message: content, reasoning, tool calls. Knows no HTTP.

Streams send the pieces, whole replies join them: both come from the same events.
"""

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from msgspec import UNSET

from fastchat_rs.server.bridge import ChatEvent, ChatParser, Delta, TokenLogprobs
from fastchat_rs.server.protocol import (
    AssistantMessage,
    FunctionCall,
    FunctionCallDelta,
    MessageDelta,
    ToolCall,
    ToolCallDelta,
)
from fastchat_rs.server.tools import ToolUse


@dataclass
class _Call:
    """A call so far."""

    id: str
    name: str
    arguments: list[str] = field(default_factory=list[str])


class ChoiceReader:
    """Fed with the deltas of one choice."""

    def __init__(self, parser: ChatParser | None, *, tools: ToolUse | None, count: Callable[[str], int]) -> None:
        self._parser = parser
        self._parallel = tools is None or tools.parallel
        # An answer that has to be calls has no content: what looks like it is a call cut off by max_tokens.
        self._only_calls = tools is not None and tools.forced is not None
        self._legacy = tools is not None and tools.legacy
        self._count = count
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[_Call] = []
        self._thinking = False
        self._counted = 0
        self._tokens = 0
        self.steps: list[TokenLogprobs] = []
        """Steps not sent yet: all of them when the reply goes out whole."""
        self.finish_reason: str | None = None

    def feed(self, delta: Delta) -> list[MessageDelta]:
        """What the delta adds to the message, one kind a piece."""
        self.steps += delta.logprobs or []
        self._tokens = delta.completion_tokens
        if self._parser is None:
            pieces = self._add("content", delta.text) if delta.text else []
        else:
            events = self._parser.push(delta.text) if delta.text else []
            if delta.finish_reason is not None:
                events += self._parser.finish()
            pieces = [piece for kind, text, index in _merged(events) for piece in self._add(kind, text, index)]
        if delta.finish_reason is not None:
            self.finish_reason = self._reason(delta.finish_reason)
        return pieces

    def _add(self, kind: str, text: str, index: int = 0) -> list[MessageDelta]:
        if kind == "reasoning":
            self._thinking = True
            self._reasoning.append(text)
            return [MessageDelta(reasoning_content=text, reasoning=text)]
        if self._thinking:
            self._thinking = False
            self._counted = self._count("".join(self._reasoning))
        if kind == "content":
            if self._only_calls:
                return []
            self._content.append(text)
            return [MessageDelta(content=text)]
        if index > 0 and not self._parallel:
            return []
        if kind == "tool_call":
            call = _Call(f"call_{secrets.token_hex(12)}", text)
            self._calls.append(call)
            begun = FunctionCallDelta(text, "")
            if self._legacy:
                return [MessageDelta(function_call=begun)]
            return [MessageDelta(tool_calls=[ToolCallDelta(index, call.id, "function", begun)])]
        self._calls[index].arguments.append(text)
        more = FunctionCallDelta(arguments=text)
        if self._legacy:
            return [MessageDelta(function_call=more)]
        return [MessageDelta(tool_calls=[ToolCallDelta(index, function=more)])]

    def _reason(self, reason: str) -> str:
        called = "function_call" if self._legacy else "tool_calls"
        return called if self._calls and reason == "stop" else reason

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of the thoughts: everything while they last, their own number once the answer has begun."""
        return self._tokens if self._thinking else self._counted

    def take_steps(self) -> list[TokenLogprobs]:
        """The steps not sent yet."""
        steps, self.steps = self.steps, []
        return steps

    def message(self) -> AssistantMessage:
        """The pieces, joined."""
        content = "".join(self._content)
        reasoning = "".join(self._reasoning) or UNSET
        calls = [ToolCall(call.id, FunctionCall(call.name, "".join(call.arguments))) for call in self._calls]
        return AssistantMessage(
            content=None if (calls or self._only_calls) and not content else content,
            reasoning_content=reasoning,
            reasoning=reasoning,
            tool_calls=UNSET if self._legacy else calls or UNSET,
            function_call=calls[0].function if self._legacy and calls else UNSET,
        )


def _merged(events: Iterable[ChatEvent]) -> list[tuple[str, str, int]]:
    """Neighbours of one kind as one; a call's name stays alone."""
    merged: list[tuple[str, str, int]] = []
    for event in events:
        if merged and event.kind != "tool_call" and merged[-1][::2] == (event.kind, event.index):
            merged[-1] = (event.kind, merged[-1][1] + event.text, event.index)
        else:
            merged.append((event.kind, event.text, event.index))
    return merged
