"""Structured output and chat formats through the binding, on the demo model."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastchat_rs._engine import (
    ChatEvent,
    ChatFormat,
    Engine,
    InvalidRequestError,
    SamplingParams,
    StructuredOutput,
)

QWEN3 = "<tool_call>\n{\"name\": <function-name>}\n</tool_call> {% if '</think>' in content %}"
PROMPT = "<|im_start|>user\nWhat is the weather in Oslo?<|im_end|>\n<|im_start|>assistant\n"
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = json.dumps([{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}])


@pytest.fixture(scope="module")
def engine(demo_model: Path) -> Iterator[Engine]:
    engine = Engine(str(demo_model), max_model_len=1024)
    yield engine
    engine.shutdown()


def complete(engine: Engine, structured: StructuredOutput, **keywords: float) -> str:
    params = SamplingParams(structured=structured, max_tokens=200, **keywords)  # type: ignore[arg-type]
    assert params.structured is not None
    handle = engine.submit(PROMPT, params)
    text = ""
    while not handle.finished:
        for delta in handle.wait():
            assert delta.error is None
            text += delta.text
            assert delta.finish_reason in (None, "stop")
    return text


def test_a_completion_is_what_was_asked_for(engine: Engine) -> None:
    schema = StructuredOutput.json_schema(json.dumps(PARAMETERS))
    assert set(json.loads(complete(engine, schema, temperature=0))) == {"city"}
    assert complete(engine, StructuredOutput.choice(["warm", "cold"]), seed=1) in ("warm", "cold")
    assert re.fullmatch(r"-?\d{1,2} degrees", complete(engine, StructuredOutput.regex(r"-?\d{1,2} degrees"), seed=2))
    lark = StructuredOutput.lark('start: "it " ("is" | "was") " " /[a-z]{3}/')
    assert re.fullmatch(r"it (is|was) [a-z]{3}", complete(engine, lark, seed=3))


@pytest.mark.parametrize(
    ("structured", "says"),
    [
        (StructuredOutput.json_schema('{"type": "array", "uniqueItems": true}'), "uniqueItems"),
        (StructuredOutput.regex("("), "regex"),
        (StructuredOutput.lark("start: other"), "other"),
        (StructuredOutput.choice([]), "choice"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(engine: Engine, structured: StructuredOutput, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says) as caught:
        engine.submit(PROMPT, SamplingParams(structured=structured))
    assert caught.value.param == "structured"


def test_a_schema_that_is_no_json_is_refused_where_it_is_made() -> None:
    with pytest.raises(InvalidRequestError, match="json_schema") as caught:
        StructuredOutput.json_schema("{")
    assert caught.value.param == "structured"


def parse(form: ChatFormat, prompt: str, pieces: list[str], tools: str | None) -> list[ChatEvent]:
    parser = form.parser(prompt, tools=tools)
    return [event for piece in pieces for event in parser.push(piece)] + parser.finish()


def test_a_forced_call_comes_back_as_a_call(engine: Engine) -> None:
    form = engine.chat_format(QWEN3)
    assert (form.reasoning, form.tools, form.needs_special_tokens) == (True, "hermes", False)
    closed = PROMPT + "<think>\n\n</think>\n\n"
    for choice in ("required", "weather"):
        text = complete(engine, form.constrain(closed, tools=TOOLS, choice=choice, parallel=False), temperature=0)
        events = parse(form, closed, list(text), TOOLS)
        assert [(event.kind, event.text) for event in events[:1]] == [("tool_call", "weather")]
        assert {(event.kind, event.index) for event in events[1:]} == {("arguments", 0)}
        assert set(json.loads("".join(event.text for event in events[1:]))) == {"city"}
        assert [event.kind for event in parse(form, closed, [text], None)] == ["content"]
    for tools, choice, param in (("{}", "required", "tools"), (TOOLS, "rain", "tool_choice")):
        with pytest.raises(InvalidRequestError) as caught:
            form.constrain(PROMPT, tools=tools, choice=choice, parallel=True)
        assert caught.value.param == param


def test_reasoning_that_the_prompt_opened(engine: Engine) -> None:
    form = engine.chat_format(QWEN3)
    events = parse(form, PROMPT + "<think>\n", ["let me", " see</th", "ink>\n\nhi"], None)
    kinds = {event.kind: "".join(other.text for other in events if other.kind == event.kind) for event in events}
    assert kinds == {"reasoning": "let me see", "content": "hi"}
    answer = form.after_thinking(PROMPT, StructuredOutput.choice(["warm", "cold"]))
    text = complete(engine, answer, temperature=0)
    assert re.fullmatch(r"(<think>.*</think>\s*)?(warm|cold)", text, re.DOTALL)
    assert engine.chat_format("{{ message.content }}").tools == "json"


def test_thoughts_are_cut_at_their_budget(engine: Engine) -> None:
    form = engine.chat_format(QWEN3)
    opened = PROMPT + "<think>\n"
    assert form.thinking_budget(PROMPT + "<think>\n\n</think>\n\n", 4) is None
    assert engine.chat_format("{{ message.content }}").thinking_budget(PROMPT, 4) is None
    for tokens in (0, 5):
        thinking = form.thinking_budget(opened, tokens)
        assert thinking is not None and thinking.tokens == tokens
        handle = engine.submit(opened, SamplingParams(thinking=thinking, temperature=0, max_tokens=40))
        text = ""
        while not handle.finished:
            text += "".join(delta.text for delta in handle.wait())
        thoughts, closed, _ = text.partition("</think>")
        assert closed and len(engine.encode(thoughts, add_special_tokens=False)) <= tokens
