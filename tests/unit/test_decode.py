"""A bad field is a 400 that names it; what is fine passes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastchat_rs.server.api_error import ApiError
from fastchat_rs.server.decode import BodyDecoder, nesting
from fastchat_rs.server.protocol import ChatRequest, CompletionRequest

CHAT = BodyDecoder(ChatRequest)
TEXT = BodyDecoder(CompletionRequest)
GOOD: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def refusal(body: Any, decoder: BodyDecoder[Any] = CHAT, depth: int = 128) -> ApiError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(ApiError) as caught:
        decoder.decode(raw, depth)
    assert caught.value.status == 400
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("model", 3, "model"),
        ("messages", "hi", "messages"),
        ("messages", [{"content": "x"}], "messages.0.role"),
        ("messages", [{"role": "user", "content": "x"}, {"role": "user", "content": 5}], "messages.1.content"),
        ("messages", [{"role": "user", "content": [{"text": "x"}]}], "messages.0.content.0.type"),
        ("stream", "yes", "stream"),
        ("stream_options", {"include_usage": 1}, "stream_options.include_usage"),
        ("temperature", 2.5, "temperature"),
        ("temperature", "hot", "temperature"),
        ("top_p", -0.1, "top_p"),
        ("top_k", -2, "top_k"),
        ("min_p", 1.5, "min_p"),
        ("n", 0, "n"),
        ("n", 1.5, "n"),
        ("n", True, "n"),
        ("seed", 2**64, "seed"),
        ("stop", 7, "stop"),
        ("stop", ["a", 7], "stop"),
        ("stop_token_ids", [-1], "stop_token_ids"),
        ("max_tokens", 0, "max_tokens"),
        ("max_completion_tokens", -5, "max_completion_tokens"),
        ("min_tokens", -1, "min_tokens"),
        ("frequency_penalty", 2.1, "frequency_penalty"),
        ("presence_penalty", -2.1, "presence_penalty"),
        ("repetition_penalty", 0, "repetition_penalty"),
        ("logit_bias", {"5": 101}, "logit_bias"),
        ("logit_bias", [5], "logit_bias"),
        ("logprobs", 3, "logprobs"),
        ("top_logprobs", -1, "top_logprobs"),
        ("ignore_eos", "true", "ignore_eos"),
        ("cache_salt", "", "cache_salt"),
        ("priority", 2**40, "priority"),
        ("tools", {}, "tools"),
        ("chat_template_kwargs", "x", "chat_template_kwargs"),
    ],
)
def test_a_bad_field_is_named(field: str, value: Any, param: str) -> None:
    error = refusal({**GOOD, field: value})
    assert error.param == param
    assert param in error.message


def test_null_is_absent_and_unknown_fields_are_ignored() -> None:
    nothing = {name: None for name in ChatRequest.__struct_fields__ if name != "model"}
    body = CHAT.decode(json.dumps({**nothing, "model": "m", "brand_new": {"x": 1}}).encode(), 128)
    assert body.messages is None
    assert body.temperature is None


def test_a_missing_model_is_named() -> None:
    error = refusal({"messages": []})
    assert (error.param, error.code) == ("model", "missing_required_parameter")


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"nul", b'{"model": "\xff"}', b'"x"', b'{"model": "m",}', b'{"model":"\\ud800"}']
)
def test_what_is_not_a_json_object_is_refused(raw: bytes) -> None:
    refusal(raw)


def test_depth_is_bounded_and_brackets_in_strings_do_not_count() -> None:
    deep: Any = 1
    for _ in range(20):
        deep = [deep]
    assert "nested" in refusal({**GOOD, "metadata": {"x": deep}}, depth=16).message
    CHAT.decode(json.dumps({**GOOD, "user": "[" * 1000 + '\\"{' * 1000}).encode(), 16)


@given(st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_nesting_counts_as_a_walk_does(value: Any) -> None:
    def walk(item: Any) -> int:
        inner: list[Any] = list(item.values()) if isinstance(item, dict) else item  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
        return 1 + max(map(walk, inner), default=0) if isinstance(item, dict | list) else 0

    assert nesting(json.dumps(value).encode()) == walk(value)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_decoder(raw: bytes) -> None:
    try:
        TEXT.decode(raw, 16)
    except ApiError as error:
        assert error.status == 400


@pytest.mark.parametrize("prompt", ["a", ["a", "b"], [1, 2, 3], [[1, 2], [3]]])
def test_completion_prompts_have_four_shapes(prompt: Any) -> None:
    assert TEXT.decode(json.dumps({"model": "m", "prompt": prompt}).encode(), 16).prompt == prompt


@pytest.mark.parametrize("prompt", [1, {"a": 1}, [{"a": 1}], [[-1]], [["x"]]])
def test_other_prompts_are_refused(prompt: Any) -> None:
    assert refusal({"model": "m", "prompt": prompt}, TEXT).param == "prompt"


@pytest.mark.parametrize("place", [b"model", b"more", b"deep", b"user", b"hi"])
def test_all_of_a_body_is_text(place: bytes) -> None:
    body = json.dumps({**GOOD, "more": {"deep": 1}}).encode().replace(place, b"\xff" + place[1:], 1)
    assert refusal(body).code == "invalid_json"


def test_null_is_absent_where_a_field_is_needed_too() -> None:
    for body, param in (
        ({**GOOD, "model": None}, "model"),
        ({**GOOD, "messages": [{"role": None, "content": "x"}]}, "messages.0.role"),
    ):
        error = refusal(body)
        assert (error.code, error.param) == ("missing_required_parameter", param)
    assert refusal({**GOOD, "stop": [None]}).code == "invalid_type"


def test_a_long_value_is_not_told_whole() -> None:
    assert len(refusal({**GOOD, "reasoning_effort": "x" * 50_000}).message) < 200
