"""POST /v1/chat/completions, through the official client and as raw JSON."""

from functools import partial
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageParam

from live import Live, streamed

MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "What is the capital of France?"},
]
ROUTE = "/v1/chat/completions"


def text(chunks: list[dict[str, Any]], index: int = 0) -> str:
    """The joined deltas of a choice."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def content(live: Live, body: dict[str, Any]) -> str:
    """The text of a whole reply."""
    response = live.post(ROUTE, body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def refused(live: Live, field: str, **fields: Any) -> dict[str, Any]:
    """The error object of a 400 that names the field."""
    response = live.post(ROUTE, live.chat(**fields))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == field
    return error


def test_whole_reply(live: Live) -> None:
    reply = live.openai().chat.completions.create(model=live.model, messages=MESSAGES, temperature=0, max_tokens=32)
    assert reply.object == "chat.completion"
    assert reply.id.startswith("chatcmpl-")
    assert reply.model == live.model
    assert reply.choices[0].message.role == "assistant"
    assert "Paris" in (reply.choices[0].message.content or "")
    assert reply.choices[0].finish_reason == "stop"
    assert reply.system_fingerprint
    usage = reply.usage
    assert usage and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens > 5 and usage.completion_tokens > 1


def test_stream_equals_whole(live: Live) -> None:
    client = live.openai()
    create = partial(client.chat.completions.create, model=live.model, messages=MESSAGES, temperature=0, max_tokens=32)
    whole: ChatCompletion = create()
    chunks: list[ChatCompletionChunk] = list(create(stream=True))
    assert {(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks} == {
        (chunks[0].id, chunks[0].created, live.model, "chat.completion.chunk")
    }
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_chunk_only_when_asked(live: Live) -> None:
    plain = streamed(live, ROUTE, live.chat())
    assert all("usage" not in chunk for chunk in plain)
    asked = streamed(live, ROUTE, live.chat(stream_options={"include_usage": True}))
    assert asked[-1]["choices"] == []
    assert asked[-1]["usage"]["completion_tokens"] > 0
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in asked[:-1])
    always = streamed(live, ROUTE, live.chat(stream_options={"continuous_usage_stats": True}))
    assert all(chunk["usage"]["prompt_tokens"] > 0 for chunk in always)
    assert always[-1]["usage"]["completion_tokens"] == asked[-1]["usage"]["completion_tokens"]
    assert refused(live, "stream_options", stream_options={"include_usage": True})


def test_several_choices_and_seeds(live: Live) -> None:
    body = live.chat("Tell me a story.", temperature=1, seed=7)
    one = content(live, body)
    response = live.post(ROUTE, {**body, "n": 3}).json()
    texts = [choice["message"]["content"] for choice in response["choices"]]
    assert [choice["index"] for choice in response["choices"]] == [0, 1, 2]
    assert texts[0] == one == content(live, body)
    assert len(set(texts)) > 1
    assert response["usage"]["completion_tokens"] > 16
    chunks = streamed(live, ROUTE, {**body, "n": 3})
    assert [text(chunks, index) for index in range(3)] == texts
    finishes = [choice["index"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert sorted(finishes) == [0, 1, 2]
    assert content(live, live.chat("Tell me a story.", temperature=1, seed=-8)) != one


def test_stop_strings_never_leave(live: Live) -> None:
    body = live.chat("Count from one to ten in words.", max_tokens=48)
    full = content(live, body)
    stop = full[len(full) // 2 :][:4]
    assert len(stop) == 4
    for stops in (stop, ["never ever", stop]):
        response = live.post(ROUTE, {**body, "stop": stops}).json()["choices"][0]
        assert response["message"]["content"] == full[: full.index(stop)]
        assert response["finish_reason"] == "stop"
        assert text(streamed(live, ROUTE, {**body, "stop": stops})) == full[: full.index(stop)]
    kept = content(live, {**body, "stop": stop, "include_stop_str_in_output": True})
    assert kept == full[: full.index(stop)] + stop
    refused(live, "stop", stop="")
    refused(live, "stop", stop=["x"] * 17)


def test_logprobs(live: Live) -> None:
    reply = live.openai().chat.completions.create(
        model=live.model, messages=MESSAGES, temperature=0, max_tokens=12, logprobs=True, top_logprobs=3
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs and logprobs.content and reply.usage
    assert len(logprobs.content) == reply.usage.completion_tokens
    for step in logprobs.content:
        assert len(step.top_logprobs) == 3
        assert step.logprob == step.top_logprobs[0].logprob <= 0
        assert step.top_logprobs[0].logprob >= step.top_logprobs[1].logprob >= step.top_logprobs[2].logprob
    body = live.chat(messages=MESSAGES, max_tokens=12)
    chunks = streamed(live, ROUTE, {**body, "logprobs": True, "top_logprobs": 3})
    steps = [s for chunk in chunks for c in chunk["choices"] if c["logprobs"] for s in c["logprobs"]["content"]]
    assert [step["token"] for step in steps] == [step.token for step in logprobs.content]
    assert [step["logprob"] for step in steps] == [step.logprob for step in logprobs.content]
    refused(live, "top_logprobs", top_logprobs=3)
    refused(live, "top_logprobs", logprobs=True, top_logprobs=21)


def test_lengths(live: Live) -> None:
    short = live.post(ROUTE, live.chat("Write a long story.", max_tokens=3)).json()
    assert short["choices"][0]["finish_reason"] == "length"
    assert short["usage"]["completion_tokens"] == 3
    both = live.post(ROUTE, live.chat("Write a long story.", max_tokens=9, max_completion_tokens=2)).json()
    assert both["usage"]["completion_tokens"] == 2
    exact = live.post(ROUTE, live.chat("Say hi.", max_tokens=40, ignore_eos=True)).json()
    assert exact["usage"]["completion_tokens"] == 40
    least = live.post(ROUTE, live.chat("Say hi.", max_tokens=40, min_tokens=30)).json()
    assert least["usage"]["completion_tokens"] >= 30


def test_more_than_the_context_is_clamped_and_a_long_prompt_refused(live: Live) -> None:
    long = "word " * 1950
    reply = live.post(ROUTE, live.chat(long, max_tokens=100_000, ignore_eos=True)).json()
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["total_tokens"] <= 2048
    response = live.post(ROUTE, live.chat("word " * 3000))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    assert "2048" in error["message"]


def test_prompt_on_the_chat_route(live: Live) -> None:
    chunks = streamed(live, ROUTE, {"model": live.model, "prompt": "The capital of France is", "max_tokens": 4})
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    refused(live, "prompt", prompt="and messages")
    response = live.post(ROUTE, {"model": live.model})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages")


def test_names_of_the_model(live: Live) -> None:
    for name in ("gpt-3.5-turbo", "5080/llama3.2-vision:11b", live.model):
        assert live.post(ROUTE, live.chat(model=name, max_tokens=1)).json()["model"] == name
    prefixed = live.post(ROUTE, live.chat(model=f"in-memory::{live.model}", max_tokens=1))
    assert prefixed.json()["model"] == live.model
    with pytest.raises(openai.NotFoundError) as caught:
        live.openai().chat.completions.create(model="gpt-9", messages=MESSAGES)
    error: Any = caught.value.body
    assert error == {
        "message": "Model 'gpt-9' not found",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


def test_both_prefixes_and_other_roles(live: Live) -> None:
    conversation = [
        {"role": "developer", "content": "You are terse."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": "of France?"}],
        },
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "And of Italy?", "name": "x"},
    ]
    body = {"model": live.model, "messages": conversation, "max_tokens": 8, "temperature": 0}
    first = live.post("/v1/chat/completions", body).json()["choices"][0]["message"]
    second = live.post("/api/v1/chat/completions", body).json()["choices"][0]["message"]
    assert first == second
    conversation[0]["role"] = "system"
    assert live.post(ROUTE, body).json()["choices"][0]["message"] == first


def test_continuing_the_last_message(live: Live) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "The capital of France is"}]
    fields: dict[str, Any] = {"messages": messages, "continue_final_message": True, "max_tokens": 4}
    assert "Paris" in content(live, live.chat(**fields))
    refused(live, "continue_final_message", continue_final_message=True)
    refused(live, "continue_final_message", **{**fields, "add_generation_prompt": True})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("top_p", 2),
        ("top_k", -5),
        ("n", 17),
        ("n", 0),
        ("logit_bias", {"999999": 1}),
        ("logit_bias", {"x": 1}),
        ("stop_token_ids", [-1]),
        ("tool_choice", "required"),
        ("chat_template_kwargs", {"tokenize": True}),
    ],
)
def test_refused_by_name(live: Live, field: str, value: Any) -> None:
    assert field in refused(live, field, **{field: value})["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}},
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True},
        {"tool_choice": "auto"},
        {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "unknown_field": [1]},
        {"top_k": -1, "top_p": 1, "min_p": 0, "repetition_penalty": 1, "logit_bias": {}},
        {"top_k": 0, "top_p": 0, "temperature": None, "stop": None, "seed": 0},
        {"enable_thinking": False, "chat_template_kwargs": {}},
        {"cache_salt": "mine", "priority": -3},
        {"frequency_penalty": 2, "presence_penalty": -2, "temperature": 2},
        {"stop_token_ids": [2], "skip_special_tokens": False},
    ],
)
def test_accepted(live: Live, fields: dict[str, Any]) -> None:
    response = live.post(ROUTE, live.chat(max_tokens=2, **fields))
    assert response.status_code == 200, response.text


def test_logit_bias_decides(live: Live) -> None:
    ids = live.post("/v1/tokenize", {"model": live.model, "prompt": "yes", "add_special_tokens": False}).json()
    (token,) = ids["tokens"]
    assert content(live, live.chat(max_tokens=3, logit_bias={str(token): 100})) == "yesyesyes"


def test_prefix_cache_shows_in_the_usage(live: Live) -> None:
    body = live.chat("A long question about one and the same thing. " * 10, max_tokens=2, cache_salt="fresh")
    first, second = (live.post(ROUTE, body).json() for _ in range(2))
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 64
    assert second["choices"][0]["message"] == first["choices"][0]["message"]
    other = live.post(ROUTE, {**body, "cache_salt": "other"}).json()
    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
