"""Tool calls and structured values, through the official client's own types and helpers."""

import json
from collections.abc import Iterable
from typing import Any, Literal

import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from openai.types.chat.chat_completion_message_function_tool_call import ChatCompletionMessageFunctionToolCall
from pydantic import BaseModel

from live import Live, streamed

ROUTE = "/v1/chat/completions"
TOOLS: list[ChatCompletionToolParam] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"enum": [1, 2, 3]}},
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    }
]
ASK: ChatCompletionMessageParam = {"role": "user", "content": "What is the weather in Paris?"}
FORCED: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", "max_tokens": 96, "parallel_tool_calls": False}


class Digit(BaseModel):
    name: Literal["one", "two"]
    value: int | None


def joined(chunks: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls of a stream, after checking in which order their parts come."""
    calls: list[dict[str, Any]] = []
    for chunk in chunks:
        for choice in chunk["choices"]:
            for part in choice["delta"].get("tool_calls", ()):
                if part["index"] == len(calls):
                    assert part["id"].startswith("call_") and len(part["id"]) == 29
                    assert (part["type"], part["function"]["arguments"]) == ("function", "")
                    calls.append({"name": part["function"]["name"], "arguments": ""})
                else:
                    assert set(part) == {"index", "function"} and set(part["function"]) == {"arguments"}
                    calls[part["index"]]["arguments"] += part["function"]["arguments"]
    return calls


def test_a_loop_of_tools(live: Live) -> None:
    client = live.openai()
    messages: list[ChatCompletionMessageParam] = [ASK]
    first = client.chat.completions.create(
        model=live.model,
        messages=messages,
        tools=TOOLS,
        tool_choice="required",
        temperature=0,
        max_tokens=96,
        parallel_tool_calls=False,
    )
    choice = first.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert choice.message.tool_calls
    call = choice.message.tool_calls[0]
    assert isinstance(call, ChatCompletionMessageFunctionToolCall)
    arguments = json.loads(call.function.arguments)
    assert (call.function.name, arguments["city"] in ("Paris", "Rome")) == ("get_weather", True)
    messages.append(
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": call.function.arguments},
                }
            ],
        }
    )
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "Sunny, 31 degrees."})
    second = client.chat.completions.create(
        model=live.model, messages=messages, tools=TOOLS, tool_choice="none", temperature=0, max_tokens=24
    )
    assert second.choices[0].message.content and not second.choices[0].message.tool_calls
    assert second.choices[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_streamed_calls_equal_the_whole(live: Live, choice: Any) -> None:
    body = live.chat("Weather in Rome?", **{**FORCED, "tool_choice": choice})
    whole = live.post(ROUTE, body).json()["choices"][0]
    chunks = streamed(live, ROUTE, body)
    assert joined(chunks) == [call["function"] for call in whole["message"]["tool_calls"]]
    assert [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]] == ["tool_calls"]
    assert whole["finish_reason"] == "tool_calls"
    assert "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"]) == ""


def test_a_call_of_functions_streams_as_it_is_whole(live: Live) -> None:
    functions = [tool["function"] for tool in TOOLS]
    body = live.chat("Weather in Rome?", functions=functions, function_call={"name": "get_weather"}, max_tokens=96)
    whole = live.post(ROUTE, body).json()["choices"][0]
    chunks = [choice for chunk in streamed(live, ROUTE, body) for choice in chunk["choices"]]
    first, *more = [choice["delta"]["function_call"] for choice in chunks if "function_call" in choice["delta"]]
    assert first == {"name": "get_weather", "arguments": ""} and all(set(part) == {"arguments"} for part in more)
    assert "".join(part["arguments"] for part in more) == whole["message"]["function_call"]["arguments"]
    assert [choice["finish_reason"] for choice in chunks if choice["finish_reason"]] == ["function_call"]
    reply = live.openai().chat.completions.create(
        model=live.model,
        messages=[ASK],
        functions=[{"name": "get_weather", "parameters": functions[0].get("parameters", {})}],
        function_call={"name": "get_weather"},
        temperature=0,
        max_tokens=96,
    )
    call = reply.choices[0].message.function_call
    assert call and json.loads(call.arguments)["city"] in ("Paris", "Rome")


def test_the_stream_helper_sees_the_same_call(live: Live) -> None:
    with live.openai().chat.completions.stream(
        model=live.model,
        messages=[ASK],
        tools=TOOLS,
        tool_choice="required",
        temperature=0,
        max_tokens=96,
        parallel_tool_calls=False,
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    calls = final.choices[0].message.tool_calls
    assert calls and json.loads(calls[0].function.arguments)["days"] in (1, 2, 3)


def test_parse_gives_an_object(live: Live) -> None:
    client = live.openai()
    for temperature in (0, 1):
        reply = client.chat.completions.parse(
            model=live.model,
            messages=[{"role": "user", "content": "Name a digit."}],
            response_format=Digit,
            temperature=temperature,
            seed=5,
            max_tokens=200,
        )
        if reply.choices[0].finish_reason == "stop":
            assert isinstance(reply.choices[0].message.parsed, Digit)


def test_a_structured_stream_equals_the_whole(live: Live) -> None:
    schema = Digit.model_json_schema()
    form = {"type": "json_schema", "json_schema": {"name": "digit", "schema": schema, "strict": False}}
    body = live.chat("Name a digit.", response_format=form, max_tokens=64, logprobs=True)
    whole = live.post(ROUTE, body).json()["choices"][0]
    chunks = [c for chunk in streamed(live, ROUTE, body) for c in chunk["choices"]]
    assert "".join(c["delta"].get("content", "") for c in chunks) == whole["message"]["content"]
    steps = [step for c in chunks if c["logprobs"] for step in c["logprobs"]["content"]]
    assert steps == whole["logprobs"]["content"]


def test_completions_take_constraints_too(live: Live) -> None:
    body = {"model": live.model, "prompt": "The answer is", "max_tokens": 8}
    for fields in ({"choice": ["ja", "nein"]}, {"response_format": {"type": "json_object", "schema": {"const": "ja"}}}):
        text = live.post("/v1/completions", {**body, **fields}).json()["choices"][0]["text"]
        assert text.strip('"') in ("ja", "nein")
    error = live.post("/v1/completions", {**body, "guided_regex": "("}).json()["error"]
    assert error["param"] == "guided_regex"


def test_several_choices_are_each_constrained(live: Live) -> None:
    body = live.chat("Say a letter.", regex="[a-z]{5}", n=4, temperature=1, seed=3)
    texts = [choice["message"]["content"] for choice in live.post(ROUTE, body).json()["choices"]]
    assert all(len(text) == 5 and text.isascii() and text.isalpha() for text in texts)


@pytest.mark.parametrize(
    "history",
    [
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "not json"}}]}],
        [{"role": "assistant", "content": None, "tool_calls": [{"id": "", "function": {"name": "f"}}]}],
        [
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "4"},
        ],
        [{"role": "tool", "content": "nobody asked"}],
        [{"role": "assistant", "content": None}],
        [
            {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "[1]"}}]},
            {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "4"}]},
        ],
    ],
)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_history_is_mended(live: Live, history: list[dict[str, Any]], tools: Any) -> None:
    messages = [ASK, *history, {"role": "user", "content": "And now?"}]
    response = live.post(ROUTE, live.chat(messages=messages, tools=tools, max_tokens=4))
    assert response.status_code == 200, response.text


def test_logprobs_of_a_call_cover_every_token(live: Live) -> None:
    body = live.chat("Weather?", **FORCED, logprobs=True, top_logprobs=2)
    whole = live.post(ROUTE, body).json()
    steps = whole["choices"][0]["logprobs"]["content"]
    assert len(steps) == whole["usage"]["completion_tokens"]
    chunks = streamed(live, ROUTE, body)
    assert [s for ch in chunks for c in ch["choices"] if c["logprobs"] for s in c["logprobs"]["content"]] == steps
