"""Ollama's routes by their wire. The official client is in tests/clients."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from live import Live, serving
from where import need, shared

USER = {"role": "user", "content": "Say hello."}
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}


def body(live: Live, **fields: Any) -> dict[str, Any]:
    return {"model": live.model, "messages": [USER], "options": {"temperature": 0, "num_predict": 12}, **fields}


def lines(live: Live, path: str, sent: dict[str, Any]) -> list[dict[str, Any]]:
    with live.client() as client, client.stream("POST", path, json=sent) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"] == "application/x-ndjson"
        found = [json.loads(line) for line in response.iter_lines()]
    assert [line["done"] for line in found] == [False] * (len(found) - 1) + [True]
    return found


def test_a_stream_is_the_default_and_equals_the_whole(live: Live) -> None:
    chat = live.post("/v1/chat/completions", live.chat(max_tokens=12)).json()
    expected = chat["choices"][0]["message"]["content"]
    found = lines(live, "/api/chat", body(live))
    assert "".join(line["message"]["content"] for line in found) == expected
    whole = live.post("/api/chat", body(live, stream=False)).json()
    assert whole["message"] == {"role": "assistant", "content": expected}
    for last in (found[-1], whole):
        assert (last["model"], last["done_reason"]) == (live.model, "length")
        assert (last["prompt_eval_count"], last["eval_count"]) == (chat["usage"]["prompt_tokens"], 12)
        assert last["total_duration"] >= last["prompt_eval_duration"] + last["eval_duration"] > 0


def test_generate_with_and_without_a_template(live: Live) -> None:
    chat = live.post("/v1/chat/completions", live.chat(max_tokens=12)).json()["choices"][0]["message"]["content"]
    options = {"temperature": 0, "num_predict": 12}
    sent = {"model": f"{live.model}:latest", "prompt": "Say hello.", "options": options}
    assert "".join(line["response"] for line in lines(live, "/api/generate", sent)) == chat
    plain = {"model": live.model, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 12}
    text = live.post("/v1/completions", plain).json()["choices"][0]["text"]
    raw = {**sent, "prompt": "The capital of France is", "raw": True, "stream": False}
    assert live.post("/api/generate", raw).json()["response"] == text
    told = live.post("/api/generate", {**sent, "system": "Be brief.", "stream": False}).json()
    assert told["prompt_eval_count"] != len(chat)
    for path in ("/api/generate", "/api/chat"):
        loaded = live.post(path, {"model": live.model}).json()
        assert (loaded["done"], loaded["done_reason"]) == (True, "load")
        assert live.post(path, {"model": "nobody"}).status_code == 404


def test_calls_have_objects_as_arguments(live: Live) -> None:
    sent = body(live, tools=[TOOL], format=CITY, options={"temperature": 0, "num_predict": 64})
    value = json.loads(live.post("/api/chat", {**sent, "tools": None, "stream": False}).json()["message"]["content"])
    assert value["city"] in ("Paris", "Rome")
    history = [
        USER,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Rome"}}}],
        },
        {"role": "tool", "tool_name": "get_weather", "content": "Sunny"},
    ]
    assert live.post("/api/chat", body(live, messages=history, stream=False)).status_code == 200
    wrong = live.post(
        "/api/chat",
        body(live, messages=[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]}]),
    )
    assert (wrong.status_code, "messages" in wrong.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"options": {"temperature": 3}}, "options"),
        ({"options": {"num_predict": 0}}, "options.num_predict"),
        ({"options": {"stop": [""]}}, "options.stop"),
        ({"options": {"mirostat": 1}}, "options.mirostat"),
        ({"options": {"typical_p": 0.5}}, "options.typical_p"),
        ({"format": 3}, "format"),
        ({"format": {"type": 7}}, "format"),
        ({"stream": 1}, "stream"),
        ({"think": "much"}, "think"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"messages": [{"role": "user", "content": "x", "images": ["AAAA"]}]}, "messages.0.images.0: not the base64"),
        (
            {"messages": [{"role": "user", "content": "x", "images": ["iVBORw0KGgo="]}]},
            "messages.0.images.0: the model",
        ),
    ],
)
def test_an_error_is_a_line_that_names_the_field(live: Live, fields: dict[str, Any], words: str) -> None:
    response = live.post("/api/chat", body(live, **fields))
    assert response.status_code == 400, response.text
    assert set(response.json()) == {"error"} and words in response.json()["error"]


@pytest.mark.parametrize("field", ["template", "suffix", "context"])
def test_generate_refuses_what_it_does_not_do(live: Live, field: str) -> None:
    sent = {"model": live.model, "prompt": "x", field: [1] if field == "context" else "x"}
    response = live.post("/api/generate", sent)
    assert (response.status_code, field in response.json()["error"]) == (400, True)


def test_the_receipt_names_the_options_without_effect(live: Live) -> None:
    sent = body(live, stream=False, keep_alive="5m", options={"num_ctx": 4096, "num_predict": 1})
    applied = live.post("/api/chat", sent).headers["x-fastchat-applied"]
    assert "keep_alive=ignored" in applied and "options.num_ctx=ignored" in applied


def test_lists_of_models(live: Live, demo_model: Path) -> None:
    with live.client() as client:
        for path in ("/api/tags", "/api/ps"):
            entries = client.get(path).json()["models"]
            assert [entry["name"] for entry in entries] == [
                live.model,
                "gpt-3.5-turbo",
                "5080/llama3.2-vision:11b",
            ]
            assert {entry["size"] for entry in entries} == {demo_model.stat().st_size}
            assert entries[0]["details"] == {"format": "gguf"}
        shown = client.post("/api/show", json={"model": live.model}).json()
        assert shown["model_info"]["fastchat_rs.context_length"] == 2048
        assert "completion" in shown["capabilities"] and "im_start" in shown["template"]
        assert client.post("/api/show", json={"model": "nobody"}).status_code == 404
        assert client.get("/api/version").json()["version"]


@pytest.fixture(scope="module")
def tiny() -> Iterator[Live]:
    """An encoder of random weights, without a tokenizer."""
    with serving(need(shared() / "parity/encoders/bert", always_in_ci=True)) as live:
        yield live


def test_an_encoder_is_shown_as_one(tiny: Live) -> None:
    with tiny.client() as client:
        shown = client.post("/api/show", json={"model": tiny.model}).json()
        assert (shown["capabilities"], shown["model_info"]["fastchat_rs.embedding_length"]) == (["embedding"], 64)
        wrong = client.post("/api/chat", json={"model": tiny.model, "messages": [USER]})
        assert (wrong.status_code, "embeddings" in wrong.json()["error"]) == (400, True)
        no_words = client.post("/api/embed", json={"model": tiny.model, "input": "x"})
        assert (no_words.status_code, "tokenizer" in no_words.json()["error"]) == (400, True)
