"""Every field of a chat request: one value that works, seen in the answer, and wrong ones that are refused by name."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from fastchat_rs.server.protocol import ChatRequest
from live import Live, streamed

ROUTE = "/v1/chat/completions"
Reply = dict[str, Any]
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
}
TOOLS = [{"type": "function", "function": WEATHER}]
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}


def nested(levels: int) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": nested(levels - 1)}} if levels else {"type": "object"}


DEEP = nested(40)


def answer(reply: Reply) -> str:
    return reply["choices"][0]["message"]["content"]


def one_digit(reply: Reply) -> bool:
    return json.loads(answer(reply))["n"] in range(10)


def tokens(count: int) -> Callable[[Reply], bool]:
    return lambda reply: reply["usage"]["completion_tokens"] == count


def ok(reply: Reply) -> bool:
    return len(reply["choices"]) == 1


def called(reply: Reply) -> bool:
    choice = reply["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    return (choice["finish_reason"], call["function"]["name"], arguments["city"] in ("Paris", "Rome")) == (
        "tool_calls",
        "get_weather",
        True,
    )


def called_as_before(reply: Reply) -> bool:
    choice = reply["choices"][0]
    message = choice["message"]
    call = message["function_call"]
    assert "tool_calls" not in message and set(call) == {"name", "arguments"}
    city = json.loads(call["arguments"])["city"]
    return (choice["finish_reason"], call["name"]) == ("function_call", "get_weather") and city in ("Paris", "Rome")


USER = {"role": "user", "content": "Say hello."}
# fields of a request, what its answer shows
WORKS: list[tuple[dict[str, Any], Callable[[Reply], bool]]] = [
    ({"messages": [{"role": "developer", "content": "x"}, USER]}, ok),
    ({"prompt": "The capital of France is", "messages": None, "max_tokens": 4}, lambda r: "Paris" in answer(r)),
    ({"stream": False}, ok),
    ({"stream_options": None}, ok),
    ({"max_tokens": 3, "ignore_eos": True}, tokens(3)),
    ({"max_completion_tokens": 2, "ignore_eos": True}, tokens(2)),
    ({"max_tokens": 10**30, "stop": "l"}, ok),
    ({"max_completion_tokens": 2**63, "stop": "l"}, ok),
    ({"min_tokens": 16}, tokens(16)),
    ({"temperature": 2, "seed": 1}, ok),
    ({"top_p": 0, "temperature": 1}, ok),
    ({"top_k": 1, "temperature": 1}, ok),
    ({"min_p": 1, "temperature": 1}, ok),
    ({"n": 2}, lambda r: len(r["choices"]) == 2),
    ({"seed": -(2**63), "temperature": 1}, ok),
    ({"stop": ["e", "a"]}, lambda r: not set(answer(r)) & {"e", "a"}),
    ({"stop_token_ids": [2]}, ok),
    ({"ignore_eos": True}, tokens(16)),
    ({"include_stop_str_in_output": True, "stop": "l"}, lambda r: answer(r).endswith("l")),
    ({"skip_special_tokens": False}, ok),
    ({"frequency_penalty": 2}, ok),
    ({"presence_penalty": -2}, ok),
    ({"repetition_penalty": 1.2}, ok),
    ({"logit_bias": {"0": -100}}, ok),
    ({"logprobs": True}, lambda r: len(r["choices"][0]["logprobs"]["content"]) == r["usage"]["completion_tokens"]),
    (
        {"logprobs": True, "top_logprobs": 20},
        lambda r: all(len(step["top_logprobs"]) == 20 for step in r["choices"][0]["logprobs"]["content"]),
    ),
    ({"logprobs": False, "top_logprobs": 0}, lambda r: r["choices"][0]["logprobs"] is None),
    ({"response_format": {"type": "text"}}, ok),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "d", "schema": SCHEMA}}}, one_digit),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "d", "strict": True, "schema": SCHEMA}}},
        one_digit,
    ),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, one_digit),
    ({"regex": "[0-9]{3}"}, lambda r: answer(r).isdecimal() and len(answer(r)) == 3),
    ({"guided_regex": "[a-c]{2}"}, lambda r: len(answer(r)) == 2 and set(answer(r)) <= set("abc")),
    ({"grammar": 'start: "yes" | "no"'}, lambda r: answer(r) in ("yes", "no")),
    ({"guided_grammar": 'start: "yes" | "no"'}, lambda r: answer(r) in ("yes", "no")),
    ({"choice": ["red", "green"]}, lambda r: answer(r) in ("red", "green")),
    ({"guided_choice": ["red", "green"]}, lambda r: answer(r) in ("red", "green")),
    ({"guided_json": SCHEMA}, one_digit),
    ({"guided_json": json.dumps(SCHEMA)}, one_digit),
    ({"structured_outputs": {"json": SCHEMA}}, one_digit),
    ({"structured_outputs": {"regex": "x{4}"}}, lambda r: answer(r) == "xxxx"),
    ({"structured_outputs": {"choice": ["u", "v"]}}, lambda r: answer(r) in ("u", "v")),
    ({"structured_outputs": {"grammar": 'start: "w"'}}, lambda r: answer(r) == "w"),
    ({"tools": TOOLS, "tool_choice": "none"}, lambda r: "tool_calls" not in r["choices"][0]["message"]),
    ({"tools": TOOLS}, ok),
    ({"tools": [{"type": None, "function": {**WEATHER, "strict": None}}]}, ok),
    ({"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 64}, called),
    (
        {
            "tools": [*TOOLS, {"type": "function", "function": {"name": "other"}}],
            "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
            "max_tokens": 64,
        },
        called,
    ),
    ({"parallel_tool_calls": True}, ok),
    ({"functions": [WEATHER], "function_call": {"name": "get_weather"}, "max_tokens": 64}, called_as_before),
    ({"functions": [WEATHER], "function_call": "none"}, lambda r: "function_call" not in r["choices"][0]["message"]),
    ({"functions": [WEATHER]}, ok),
    ({"enable_thinking": False}, lambda r: r["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0),
    ({"chat_template_kwargs": {}}, ok),
    ({"reasoning_effort": "none"}, ok),
    ({"thinking_budget": 8}, ok),
    ({"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"}, ok),
    ({"priority": -1}, ok),
    ({"cache_salt": "s"}, ok),
    (
        {"continue_final_message": True, "messages": [USER, {"role": "assistant", "content": "Hel"}]},
        lambda r: not answer(r).startswith("Hel"),
    ),
    ({"add_generation_prompt": False}, ok),
    ({"fastchat": {"applied": True}, "user": "u"}, lambda r: r["fastchat"]["applied"][0]["field"] == "user"),
]
# fields of a request, the one that is to be named
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": 3}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0"),
    ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]}, "messages.1.tool_calls.0.function.name"),
    ({"prompt": "both"}, "prompt"),
    ({"prompt": "x", "messages": None, "tools": TOOLS}, "tools"),
    ({"functions": "get_weather"}, "functions"),
    ({"functions": [{"name": "a b"}]}, "functions"),
    ({"functions": [WEATHER, WEATHER]}, "functions"),
    ({"functions": [WEATHER] * 129}, "functions"),
    ({"prompt": "x", "messages": None, "functions": [WEATHER]}, "functions"),
    ({"functions": [WEATHER], "function_call": "required"}, "function_call"),
    ({"functions": [WEATHER], "function_call": {"name": "other"}}, "function_call"),
    ({"functions": [WEATHER], "function_call": 1}, "function_call"),
    ({"functions": [WEATHER], "tools": TOOLS}, "tools"),
    ({"functions": [WEATHER], "tool_choice": "auto"}, "tool_choice"),
    ({"stream": 1}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_completion_tokens": "many"}, "max_completion_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"temperature": 2.1}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": -0.1}, "min_p"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"seed": 0.5}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop_token_ids": ["x"]}, "stop_token_ids"),
    ({"ignore_eos": 1}, "ignore_eos"),
    ({"include_stop_str_in_output": "yes"}, "include_stop_str_in_output"),
    ({"skip_special_tokens": 0}, "skip_special_tokens"),
    ({"frequency_penalty": 3}, "frequency_penalty"),
    ({"presence_penalty": -3}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logprobs": 2}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": DEEP}}}, "response_format"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"title": "x" * 262_144}}}},
        "response_format",
    ),
    ({"regex": "(" * 3}, "regex"),
    ({"regex": 7}, "regex"),
    ({"guided_regex": "[z-a]"}, "guided_regex"),
    # No token of the model spells F2, the first byte of this.
    ({"guided_regex": "\U000b538a"}, "guided_regex"),
    ({"regex": "yes: \U000b538a"}, "regex"),
    ({"regex": "[a-z]{2}\U000b538a"}, "regex"),
    ({"grammar": "no grammar"}, "grammar"),
    ({"guided_grammar": ""}, "guided_grammar"),
    ({"guided_json": {"type": "nothing"}}, "guided_json"),
    ({"guided_json": "{"}, "guided_json"),
    ({"choice": []}, "choice"),
    ({"guided_choice": [1]}, "guided_choice"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    ({"structured_outputs": {"json": {"type": 5}}}, "structured_outputs"),
    ({"regex": "a", "choice": ["a"]}, "choice"),
    ({"response_format": {"type": "json_object"}, "guided_json": {}}, "guided_json"),
    ({"tools": {}}, "tools"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tools": [{"type": "custom", "function": WEATHER}]}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
    ({"tools": TOOLS * 2}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": DEEP}}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({"enable_thinking": "no"}, "enable_thinking"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"reasoning_effort": "some"}, "reasoning_effort"),
    ({"thinking_budget": -1}, "thinking_budget"),
    ({"user": 1}, "user"),
    ({"metadata": "x"}, "metadata"),
    ({"store": "x"}, "store"),
    ({"service_tier": 1}, "service_tier"),
    ({"priority": "high"}, "priority"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"add_generation_prompt": "x"}, "add_generation_prompt"),
    ({"fastchat": True}, "fastchat"),
]


def named(case: tuple[dict[str, Any], Any]) -> str:
    return json.dumps(case[0])[:60]


def test_the_tables_leave_out_no_field() -> None:
    for table in (WORKS, WRONG):
        seen = {name for fields, _ in table for name in fields} | {"model"}
        assert seen == set(ChatRequest.__struct_fields__)


@pytest.mark.parametrize("case", WORKS, ids=named)
def test_it_works(live: Live, case: tuple[dict[str, Any], Callable[[Reply], bool]]) -> None:
    fields, shows = case
    response = live.post(ROUTE, live.chat(**fields))
    assert response.status_code == 200, response.text
    assert shows(response.json()), response.text


@pytest.mark.parametrize("case", WRONG, ids=named)
def test_a_wrong_value_is_refused_by_name(live: Live, case: tuple[dict[str, Any], str]) -> None:
    fields, field = case
    response = live.post(ROUTE, live.chat(**fields))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", field), error
    assert field.rpartition(".")[2] in error["message"] and "\n" not in error["message"]


def test_a_wrong_value_is_refused_before_a_stream_begins(live: Live) -> None:
    response = live.post(ROUTE, live.chat(stream=True, regex="("))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "regex")


def test_a_constraint_that_cannot_be_followed_to_its_end_ends_the_stream(live: Live) -> None:
    body = live.chat(stream=True, structured_outputs={"regex": "[a-z]{4}\U000b538a"}, max_tokens=64)
    with live.client() as client, client.stream("POST", ROUTE, json=body) as response:
        assert response.status_code == 200
        lines = [line[6:] for line in response.iter_lines() if line]
    failure = json.loads(lines[-1])["error"]
    assert (failure["type"], failure["param"]) == ("invalid_request_error", "structured_outputs"), failure
    text = "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines[:-1])
    assert len(text) == 4, text


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"user": "u"}, "user=ignored"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls=ignored"),
        ({"tool_choice": "auto"}, "tool_choice=ignored"),
        ({"max_tokens": 100_000, "stop": [" ", "o"]}, "max_tokens=clamped("),
        ({"max_tokens": 9, "max_completion_tokens": 1}, "max_tokens=ignored"),
        ({"max_tokens": 9000, "min_tokens": 5000, "regex": "ab"}, "min_tokens=clamped("),
        ({"regex": "ab", "ignore_eos": True, "min_tokens": 9}, "min_tokens=ignored, ignore_eos=ignored"),
        ({"enable_thinking": True}, "enable_thinking=ignored"),
        ({"reasoning_effort": "high"}, "reasoning_effort=ignored"),
        ({"thinking_budget": 3}, "thinking_budget=ignored"),
        ({"function_call": "auto"}, "function_call=ignored"),
        ({"functions": [WEATHER], "function_call": "none"}, "functions=ignored"),
        ({"functions": [WEATHER], "regex": "a"}, "functions=ignored"),
        ({"seed": 3}, "seed=ignored"),
        ({"max_token": 3}, "max_token=ignored"),
        ({"tools": TOOLS, "regex": "a"}, "tools=ignored"),
    ],
)
def test_the_receipt_names_what_had_no_effect(live: Live, fields: dict[str, Any], line: str) -> None:
    response = live.post(ROUTE, live.chat(**fields))
    assert response.status_code == 200, response.text
    assert line in response.headers["x-fastchat-applied"]


def test_the_receipt_of_a_large_body(live: Live) -> None:
    response = live.post(ROUTE, live.chat(odd="x" * 300_000))
    assert (response.status_code, response.headers["x-fastchat-applied"]) == (200, "odd=ignored")


def test_the_receipt_in_the_body(live: Live) -> None:
    quiet = live.post(ROUTE, live.chat())
    assert "x-fastchat-applied" not in quiet.headers and "fastchat" not in quiet.json()
    asked: dict[str, Any] = {"fastchat": {"applied": True}, "store": True}
    expected = {"applied": [{"field": "store", "effect": "ignored"}]}
    assert live.post(ROUTE, live.chat(**asked)).json()["fastchat"] == expected
    first, *rest = streamed(live, ROUTE, live.chat(**asked))
    assert first["fastchat"] == expected and not any("fastchat" in chunk for chunk in rest)
    body = {"model": live.model, "prompt": "a", "max_tokens": 2, **asked}
    assert live.post("/v1/completions", body).json()["fastchat"] == expected
    assert streamed(live, "/v1/completions", body)[0]["fastchat"] == expected
