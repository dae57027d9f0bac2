"""Whatever the pieces a text comes in, the message is the same, and its pieces joined are the message."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from fastchat_rs.server.bridge import ChatFormat, Delta, Engine, TokenLogprobs
from fastchat_rs.server.protocol import AssistantMessage
from fastchat_rs.server.reader import ChoiceReader
from fastchat_rs.server.tools import ToolUse

TOOLS = '[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]'
# template, a whole answer
CASES = {
    "hermes": (
        "<tool_call></tool_call></think>",
        '<think>hm</think>a <tool_call>{"name": "f", "arguments": {"x": "é"}}',
    ),
    "json": ("plain", '{"name": "f", "arguments": {"deep": [1, {"y": null}]}}'),
    "text": ("plain", 'no call: {"name": "g"} <tool_call>'),
}


@dataclass
class Piece:
    """What a reader looks at in a delta."""

    text: str
    finish_reason: str | None = None
    completion_tokens: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])


@pytest.fixture(scope="module")
def engine(demo_model: Path) -> Iterator[Engine]:
    engine = Engine(str(demo_model), max_model_len=256)
    yield engine
    engine.shutdown()


def read(
    format: ChatFormat, pieces: list[str], *, parallel: bool = True, forced: str | None = None
) -> tuple[AssistantMessage, dict[str, Any], int]:
    """The message, what the stream's deltas add up to, and the tokens of thoughts."""
    reader = ChoiceReader(format.parser("", tools=TOOLS), tools=ToolUse([], forced, parallel), count=len)
    total: dict[str, Any] = {"content": "", "reasoning": "", "calls": []}
    for number, text in enumerate([*pieces, ""], start=1):
        piece = Piece(text, "stop" if number > len(pieces) else None, number)
        for delta in reader.feed(cast(Delta, piece)):
            total["content"] += delta.content or ""
            total["reasoning"] += delta.reasoning or ""
            for call in [] if delta.tool_calls is UNSET else delta.tool_calls:
                assert call.function is not UNSET
                if call.function.name is not UNSET:
                    total["calls"].append([call.id, call.function.name, ""])
                total["calls"][call.index][2] += call.function.arguments
    assert reader.finish_reason == ("tool_calls" if total["calls"] else "stop")
    return reader.message(), total, reader.reasoning_tokens


def shown(message: AssistantMessage) -> dict[str, Any]:
    calls = [] if message.tool_calls is UNSET else message.tool_calls
    reasoning = "" if message.reasoning is UNSET else message.reasoning
    named = [[call.id, call.function.name, call.function.arguments] for call in calls]
    return {"content": message.content or "", "reasoning": reasoning, "calls": named}


@pytest.mark.parametrize("case", CASES)
def test_a_stream_is_the_whole_however_it_is_cut(engine: Engine, case: str) -> None:
    template, text = CASES[case]
    format = engine.chat_format(template)
    whole, _, thought = read(format, [text])

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.integers(0, len(text)), max_size=20))
    def cut(places: list[int]) -> None:
        ends = [0, *sorted(places), len(text)]
        message, joined, tokens = read(format, [text[a:b] for a, b in zip(ends, ends[1:], strict=False)])
        assert shown(message) == joined
        for mine, other in ((shown(message), shown(whole)),):
            assert [call[1:] for call in mine.pop("calls")] == [call[1:] for call in other.pop("calls")]
            assert mine == other
        assert tokens == thought

    cut()


def test_kinds_go_where_they_belong(engine: Engine) -> None:
    template, text = CASES["hermes"]
    message, _, tokens = read(engine.chat_format(template), [text])
    assert shown(message)["reasoning"] == message.reasoning_content == "hm"
    assert tokens == len("hm")
    assert [call[1:] for call in shown(message)["calls"]] == [["f", '{"x": "é"}']]
    plain, _, tokens = read(engine.chat_format("plain"), list(CASES["text"][1]))
    assert (plain.content, tokens) == (CASES["text"][1], 0)
    assert plain.tool_calls is UNSET and plain.reasoning is UNSET


def test_without_parallel_only_the_first_call_counts(engine: Engine) -> None:
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>' * 2
    format = engine.chat_format(CASES["hermes"][0])
    assert len(shown(read(format, [text])[0])["calls"]) == 2
    assert len(shown(read(format, [text], parallel=False)[0])["calls"]) == 1


def test_a_forced_call_that_is_cut_off_is_no_content(engine: Engine) -> None:
    format = engine.chat_format(CASES["hermes"][0])
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>{"na'
    assert shown(read(format, [text])[0])["content"].endswith('{"na')
    message = read(format, [text], forced="required")[0]
    assert message.content is None and len(shown(message)["calls"]) == 1


def test_unfinished_thoughts_are_all_tokens(engine: Engine) -> None:
    reader = ChoiceReader(engine.chat_format("</think>").parser("<think>", tools=None), tools=None, count=len)
    reader.feed(cast(Delta, Piece("I wonder", "length", 7)))
    assert (reader.reasoning_tokens, reader.finish_reason) == (7, "length")
    assert reader.message().content == ""
