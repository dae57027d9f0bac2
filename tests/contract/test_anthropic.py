"""/v1/messages by its wire: bodies, events, errors. The official client is in tests/clients."""

import json
from typing import Any

import pytest

from live import Live, serving

ROUTE = "/v1/messages"
WRONG_DOCUMENT: dict[str, Any] = {"type": "document", "source": {}}
WRONG_TOOL: dict[str, Any] = {"name": "a b", "input_schema": {}}
EDITS: dict[str, Any] = {"edits": []}
NO_MESSAGES: list[Any] = []
USER = {"role": "user", "content": "Say hello."}
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
TOOL = {"name": "get_weather", "description": "The weather of a city", "input_schema": CITY}


def body(live: Live, **fields: Any) -> dict[str, Any]:
    base = {"model": live.model, "max_tokens": 12, "messages": [USER], "temperature": 0}
    return {**base, **fields}


def events(live: Live, sent: dict[str, Any]) -> list[dict[str, Any]]:
    """Checks that each event has its name twice."""
    with live.client() as client, client.stream("POST", ROUTE, json={**sent, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"] == "text/event-stream"
        lines = [line for line in response.iter_lines() if line]
    found = [json.loads(data.removeprefix("data: ")) for data in lines[1::2]]
    assert [line.removeprefix("event: ") for line in lines[::2]] == [one["type"] for one in found]
    return [one for one in found if one["type"] != "ping"]


def joined(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that the events make, after checking their order."""
    assert [found[0]["type"], found[-2]["type"], found[-1]["type"]] == [
        "message_start",
        "message_delta",
        "message_stop",
    ]
    message = found[0]["message"]
    open_block: dict[str, Any] | None = None
    for one in found[1:-2]:
        if one["type"] == "content_block_start":
            assert open_block is None and one["index"] == len(message["content"])
            open_block = {**one["content_block"], "pieces": []}
            message["content"].append(open_block)
        elif one["type"] == "content_block_delta":
            assert open_block is not None
            kind = one["delta"]["type"]
            assert (
                kind
                == {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}[
                    open_block["type"]
                ]
            )
            open_block["pieces"].append(
                one["delta"][{"text_delta": "text", "thinking_delta": "thinking"}.get(kind, "partial_json")]
            )
        else:
            assert one["type"] == "content_block_stop" and open_block is not None
            text = "".join(open_block.pop("pieces"))
            if open_block["type"] == "tool_use":
                open_block["input"] = json.loads(text)
            else:
                open_block[open_block["type"]] = text
            open_block = None
    assert open_block is None
    return {**message, **found[-2]["delta"], "usage": found[-2]["usage"]}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_tokens": 3},
        {"stop_sequences": ["o"]},
        {"tools": [TOOL], "tool_choice": {"type": "any"}, "max_tokens": 64},
        {"output_config": {"format": {"type": "json_schema", "schema": CITY}}, "max_tokens": 40},
    ],
)
def test_a_stream_equals_the_whole(live: Live, fields: dict[str, Any]) -> None:
    sent = body(live, **fields)
    whole = live.post(ROUTE, sent).json()
    streamed = joined(events(live, sent))
    for message in (whole, streamed):
        assert message.pop("id").startswith("msg_")
        for block in message["content"]:
            block.pop("id", None)
        # The second request finds the prompt in the cache.
        usage = message["usage"]
        usage["input_tokens"] += usage.pop("cache_read_input_tokens")
    assert streamed == whole
    assert (whole["type"], whole["role"], whole["model"]) == ("message", "assistant", live.model)


def test_why_it_ended(live: Live) -> None:
    assert live.post(ROUTE, body(live, max_tokens=2)).json()["stop_reason"] == "max_tokens"
    stopped = live.post(ROUTE, body(live, stop_sequences=["~", "e"], max_tokens=40)).json()
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "e")
    forced = body(live, tools=[TOOL], tool_choice={"type": "tool", "name": "get_weather"}, max_tokens=64)
    called = live.post(ROUTE, forced).json()
    assert called["stop_reason"] == "tool_use"
    (call,) = called["content"]
    assert (call["type"], call["name"]) == ("tool_use", "get_weather") and call["input"]["city"] in ("Paris", "Rome")


def test_it_is_the_chat_route_in_other_words(live: Live) -> None:
    chat = live.post(
        "/v1/chat/completions",
        live.chat(messages=[{"role": "system", "content": "Be brief."}, USER], max_tokens=12),
    ).json()
    system: Any
    for system in ("Be brief.", [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]):
        reply = live.post(ROUTE, body(live, system=system)).json()
        assert reply["content"] == [{"type": "text", "text": chat["choices"][0]["message"]["content"]}]
        usage = reply["usage"]
        assert usage["input_tokens"] + usage["cache_read_input_tokens"] == chat["usage"]["prompt_tokens"]
        count = live.post(f"{ROUTE}/count_tokens", {"model": live.model, "messages": [USER], "system": system}).json()
        assert count == {"input_tokens": chat["usage"]["prompt_tokens"]}


def test_a_last_message_of_the_assistant_is_gone_on_with(live: Live) -> None:
    messages = [
        {"role": "user", "content": "Name the capital of France."},
        {"role": "assistant", "content": "It is Par"},
    ]
    assert live.post(ROUTE, body(live, messages=messages)).json()["content"][0]["text"].startswith("is")


def test_a_loop_of_tools(live: Live) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Weather in Rome?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I should look.", "signature": "x"},
                {"type": "text", "text": "Let me look."},
                {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Rome"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "Sunny"}]},
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": "gone", "is_error": True},
                {"type": "text", "text": "And now?"},
            ],
        },
    ]
    reply = live.post(ROUTE, body(live, messages=messages, tools=[TOOL], tool_choice={"type": "none"}))
    assert reply.status_code == 200, reply.text
    assert reply.json()["content"][0]["text"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"model": 5}, "model"),
        ({"messages": NO_MESSAGES}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        (
            {"messages": [{"role": "user", "content": [WRONG_DOCUMENT]}]},
            "messages.0.content.0.type",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]},
            "messages.1.content.0.type",
        ),
        (
            {
                "system": "s",
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/x"}}],
                    }
                ],
            },
            "messages.0.content.0.image_url",
        ),
        ({"system": 3}, "system"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"stream": "yes"}, "stream"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"tools": [WRONG_TOOL]}, "tools"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "nobody"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"thinking": {"type": "sometimes"}}, "thinking"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": 5}}}}, "output_config"),
        ({"output_format": {"type": "json_schema", "schema": {"type": 5}}}, "output_format"),
        ({"output_config": {"effort": "some"}}, "output_config"),
        ({"metadata": {"user_id": 5}}, "metadata"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"context_management": EDITS}, "context_management"),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_a_wrong_value_is_an_error_in_anthropics_shape(live: Live, fields: dict[str, Any], param: str) -> None:
    response = live.post(ROUTE, body(live, **fields))
    assert response.status_code == 400, response.text
    error = response.json()
    assert (error["type"], error["error"]["type"], error["error"]["param"]) == (
        "error",
        "invalid_request_error",
        param,
    ), error
    assert response.headers["x-request-id"]


def test_other_errors_have_their_types(live: Live) -> None:
    missing = live.post(ROUTE, body(live, model="nobody"))
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
    long = live.post(ROUTE, body(live, messages=[{"role": "user", "content": "word " * 4000}]))
    assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
    with live.client() as client:
        wrong = client.get(ROUTE)
        assert (wrong.status_code, wrong.json()["error"]["type"]) == (405, "invalid_request_error")


def test_the_receipt_speaks_of_this_apis_fields(live: Live) -> None:
    quiet = live.post(ROUTE, body(live))
    assert "x-fastchat-applied" not in quiet.headers
    fields: dict[str, Any] = {
        "metadata": {"user_id": "u"},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "max_tokens": 100_000,
        "stop_sequences": [" "],
    }
    applied = live.post(ROUTE, body(live, **fields)).headers["x-fastchat-applied"]
    for line in ("metadata=ignored", "thinking=ignored", "thinking.budget_tokens=ignored", "max_tokens=clamped("):
        assert line in applied


def test_the_key_has_a_header_of_its_own(live: Live, demo_model: Any) -> None:
    with serving(demo_model, "--max-model-len", "256", "--api-key", "secret") as guarded:
        sent = body(guarded, max_tokens=1)
        assert guarded.post(ROUTE, sent, headers={"x-api-key": "secret"}).status_code == 200
        wrong = guarded.post(ROUTE, sent, headers={"x-api-key": "other"})
        assert (wrong.status_code, wrong.json()["error"]["type"]) == (401, "authentication_error")
