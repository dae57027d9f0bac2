"""/v1/responses by its wire: events, storage, background. The official client is in tests/clients."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from live import Live, serving

ROUTE = "/v1/responses"
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
TOOL = {"type": "function", "name": "get_weather", "description": "The weather of a city", "parameters": CITY}


def body(live: Live, **fields: Any) -> dict[str, Any]:
    return {"model": live.model, "input": "Say hello.", "temperature": 0, "max_output_tokens": 12, **fields}


def events(live: Live, sent: dict[str, Any]) -> list[dict[str, Any]]:
    """Checks names and numbers."""
    with live.client() as client, client.stream("POST", ROUTE, json={**sent, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        lines = [line for line in response.iter_lines() if line and not line.startswith(":")]
    found = [json.loads(data.removeprefix("data: ")) for data in lines[1::2]]
    assert [line.removeprefix("event: ") for line in lines[::2]] == [one["type"] for one in found]
    assert [one["sequence_number"] for one in found] == list(range(len(found)))
    return found


def text(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


def bare(response: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from one response to the next."""
    shown = json.loads(json.dumps(response))
    for name in ("id", "created_at"):
        del shown[name]
    for item in shown["output"]:
        del item["id"]
        item.pop("call_id", None)
    del shown["usage"]["input_tokens_details"]
    return shown


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"instructions": "Be brief.", "max_output_tokens": 3},
        {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 64},
        {"text": {"format": {"type": "json_schema", "name": "city", "schema": CITY}}, "max_output_tokens": 40},
        {"top_logprobs": 2, "include": ["message.output_text.logprobs"]},
    ],
    ids=lambda fields: ",".join(fields),
)
def test_a_stream_equals_the_whole(live: Live, fields: dict[str, Any]) -> None:
    sent = body(live, **fields)
    whole = live.post(ROUTE, sent).json()
    found = events(live, sent)
    assert [one["type"] for one in found[:2]] == ["response.created", "response.in_progress"]
    assert found[-1]["type"] == f"response.{whole['status']}"
    assert bare(found[-1]["response"]) == bare(whole)
    added = [one for one in found if one["type"] == "response.output_item.added"]
    done = [one["item"] for one in found if one["type"] == "response.output_item.done"]
    assert done == found[-1]["response"]["output"] and [one["item"]["id"] for one in added] == [i["id"] for i in done]
    deltas = [one for one in found if one["type"].endswith(".delta")]
    said = "".join(one["delta"] for one in deltas)
    assert said == "".join(item.get("arguments") or item["content"][0]["text"] for item in done)
    if "top_logprobs" in fields:
        steps = whole["output"][0]["content"][0]["logprobs"]
        assert [step for one in deltas for step in one["logprobs"]] == steps
        assert steps and all(len(step["top_logprobs"]) == 2 for step in steps)


def test_it_is_the_chat_route_in_other_words(live: Live) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello."}]
    chat = live.post("/v1/chat/completions", live.chat(messages=messages, max_tokens=12)).json()
    items = [{"role": "user", "content": [{"type": "input_text", "text": "Say hello."}]}]
    for given in ("Say hello.", items, [{"type": "message", "role": "user", "content": "Say hello."}]):
        reply = live.post(ROUTE, body(live, instructions="Be brief.", input=given)).json()
        assert text(reply) == chat["choices"][0]["message"]["content"]
        assert (reply["object"], reply["status"]) == ("response", "incomplete")
        assert reply["incomplete_details"] == {"reason": "max_output_tokens"}
        assert reply["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
        assert reply["usage"]["total_tokens"] == chat["usage"]["total_tokens"]


def test_what_is_stored_can_be_fetched_gone_on_from_and_deleted(live: Live) -> None:
    first = live.post(ROUTE, body(live, input="My name is Ada.", instructions="Be brief.")).json()
    with live.client() as client:
        assert client.get(f"{ROUTE}/{first['id']}").json() == first
        later = live.post(ROUTE, body(live, input="What is my name?", previous_response_id=first["id"])).json()
        messages = [
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": text(first)},
            {"role": "user", "content": "What is my name?"},
        ]
        chat = live.post("/v1/chat/completions", live.chat(messages=messages, max_tokens=12)).json()
        assert text(later) == chat["choices"][0]["message"]["content"]
        assert client.delete(f"{ROUTE}/{first['id']}").json()["deleted"] is True
        gone = client.get(f"{ROUTE}/{first['id']}")
        assert (gone.status_code, gone.json()["error"]["param"]) == (404, "id")
        kept = live.post(ROUTE, body(live, store=False)).json()
        assert client.get(f"{ROUTE}/{kept['id']}").status_code == 404
        assert client.get(f"{ROUTE}/{later['id']}?stream=true").json()["error"]["param"] == "stream"
    error = live.post(ROUTE, body(live, previous_response_id=kept["id"])).json()["error"]
    assert (error["param"], error["code"]) == ("previous_response_id", "previous_response_not_found")


def test_a_loop_of_tools(live: Live) -> None:
    forced = body(live, tools=[TOOL], tool_choice={"type": "function", "name": "get_weather"}, max_output_tokens=64)
    first = live.post(ROUTE, forced).json()
    (call,) = first["output"]
    assert (call["type"], call["name"], first["status"]) == ("function_call", "get_weather", "completed")
    assert json.loads(call["arguments"])["city"] in ("Paris", "Rome")
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "Sunny"}
    by_id = live.post(ROUTE, body(live, input=[result], previous_response_id=first["id"])).json()
    again = [{"role": "user", "content": "Say hello."}, call, result]
    assert text(live.post(ROUTE, body(live, input=again)).json()) == text(by_id) != ""


def wait_for(live: Live, id: str) -> dict[str, Any]:
    until = time.monotonic() + 30
    with live.client() as client:
        while True:
            now = client.get(f"{ROUTE}/{id}").json()
            if now["status"] not in ("queued", "in_progress"):
                return now
            assert time.monotonic() < until
            time.sleep(0.02)


def test_a_response_is_made_in_the_background(live: Live) -> None:
    whole = live.post(ROUTE, body(live)).json()
    begun = live.post(ROUTE, body(live, background=True)).json()
    assert (begun["status"], begun["background"], begun["output"]) == ("in_progress", True, [])
    done = wait_for(live, begun["id"])
    assert (done["status"], text(done)) == (whole["status"], text(whole))
    with live.client() as client:
        late = client.post(f"{ROUTE}/{begun['id']}/cancel")
        assert (late.status_code, late.json()["error"]["param"]) == (400, "id")
        other = client.post(f"{ROUTE}/{whole['id']}/cancel")
        assert (other.status_code, "background" in other.json()["error"]["message"]) == (400, True)
        assert client.post(f"{ROUTE}/resp_nothing/cancel").status_code == 404
    error = live.post(ROUTE, body(live, background=True, input="word " * 4000)).json()["error"]
    assert error["code"] == "context_length_exceeded"


def test_it_can_be_cancelled(live: Live) -> None:
    sent = body(live, background=True, max_output_tokens=1500, temperature=1, input="Count to a million.")
    begun = live.post(ROUTE, sent).json()
    with live.client() as client:
        for _ in range(2):
            cancelled = client.post(f"{ROUTE}/{begun['id']}/cancel")
            assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
        assert client.get(f"{ROUTE}/{begun['id']}").json()["status"] == "cancelled"
    assert live.idle()["fastchat_requests_running"] == 0


@pytest.fixture(scope="module")
def keyed(demo_model: Path) -> Iterator[Live]:
    """Two callers, and little room."""
    options = ("--api-key", "one", "--api-key", "two", "--max-response-store", "8KiB", "--max-model-len", "512")
    with serving(demo_model, *options) as live:
        yield live


def test_nobody_sees_the_responses_of_another_key_and_old_ones_leave(keyed: Live) -> None:
    one, two = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
    first = keyed.post(ROUTE, body(keyed), headers=one).json()
    with keyed.client() as client:
        assert client.get(f"{ROUTE}/{first['id']}", headers=one).status_code == 200
        assert client.get(f"{ROUTE}/{first['id']}", headers=two).status_code == 404
        for _ in range(12):
            keyed.post(ROUTE, body(keyed, max_output_tokens=1), headers=two)
        assert client.get(f"{ROUTE}/{first['id']}", headers=one).status_code == 404


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 5}, "model"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
        ({"input": [{"content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"instructions": "i", "input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input.0.content.0.type"),
        ({"input": [{"type": "item_reference"}]}, "input.0.type"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input.0.call_id"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0.call_id"),
        ({"instructions": 3}, "instructions"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"stream": 1}, "stream"),
        ({"store": "yes"}, "store"),
        ({"background": True, "store": False}, "store"),
        ({"background": True, "stream": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"text": {"format": {"type": "xml"}}}, "text"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": 5}}}}, "text"),
        ({"reasoning": {"effort": "some"}}, "reasoning"),
        ({"include": ["everything"]}, "include"),
        ({"truncation": "auto"}, "truncation"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"previous_response_id": "nothing"}, "previous_response_id"),
        ({"user": 1}, "user"),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_a_wrong_value_is_refused_by_name(live: Live, fields: dict[str, Any], param: str) -> None:
    response = live.post(ROUTE, body(live, **fields))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param), error


def test_the_receipt_speaks_of_this_apis_fields(live: Live) -> None:
    fields: dict[str, Any] = {
        "user": "u",
        "prompt_cache_key": "k",
        "text": {"verbosity": "low"},
        "reasoning": {"effort": "high"},
        "max_output_tokens": 100_000,
        "input": "Say one word.",
        "include": ["reasoning.encrypted_content"],
        "tools": [TOOL],
        "tool_choice": "none",
    }
    for background in (True, False):
        reply = live.post(ROUTE, body(live, **{**fields, "background": background}))
        applied = reply.headers["x-fastchat-applied"]
        for name in ("user", "prompt_cache_key", "text.verbosity", "reasoning", "include", "tools"):
            assert f"{name}=ignored" in applied
        assert "max_output_tokens=clamped(" in applied
        if background:
            live.post(f"{ROUTE}/{reply.json()['id']}/cancel", None)
