"""Parts of the server that need no model: keys, framing, metrics, errors, routes, messages."""

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fastchat_rs.config import ServeConfig
from fastchat_rs.errors import TemplateError
from fastchat_rs.server import bridge
from fastchat_rs.server.api_error import ApiError
from fastchat_rs.server.app import OPEN_PATHS, ROUTES, App, route_of
from fastchat_rs.server.errors import HTTP_TABLE, to_api_error
from fastchat_rs.server.http import encode_json, event
from fastchat_rs.server.keys import Caller, Keys
from fastchat_rs.server.logprobs import finite
from fastchat_rs.server.messages import template_messages, template_variables
from fastchat_rs.server.metrics import Metrics
from fastchat_rs.server.protocol import ChatChunkChoice, ChatCompletionChunk, ContentPart, Message, MessageDelta
from fastchat_rs.server.state import Limits, State
from fastchat_rs.template import ChatTemplate

CONFIG = ServeConfig(model="m")


def state() -> State:
    return State(CONFIG, Limits.of(CONFIG))


def test_without_keys_anything_goes() -> None:
    assert Keys([]).check("") == Keys([]).check("Bearer whatever") == Caller()


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Bearer wrong", "Basic secret", "secret", "Bearer secret2"]
)
def test_a_wrong_key_is_a_401(header: str) -> None:
    with pytest.raises(ApiError) as caught:
        Keys(["secret"]).check(header)
    error = caught.value
    assert (error.status, error.code) == (401, "invalid_api_key")
    assert ("www-authenticate", "Bearer") in error.headers
    assert error.body.error.type == "invalid_request_error"


def test_tenants_differ_by_key_and_never_show_it() -> None:
    keys = Keys(["secret-a", "schlüssel-b"])
    first, second = keys.check("Bearer secret-a").tenant, keys.check("bearer schlüssel-b").tenant
    assert first and second and first != second
    assert "secret" not in first


def test_an_event_is_one_line_of_json() -> None:
    text = 'a\nb\r\n"\u2028ä\u0000'
    chunk = ChatCompletionChunk("i", 1, "m", "f", [ChatChunkChoice(0, MessageDelta(content=text))])
    raw = event(chunk)
    assert raw.startswith(b"data: {") and raw.endswith(b"}\n\n")
    assert raw.count(b"\n") == 2 and b"\r" not in raw
    decoded = json.loads(raw[6:])
    assert decoded["choices"][0]["delta"] == {"content": text}
    assert "usage" not in decoded


def test_logprobs_are_finite_numbers() -> None:
    assert finite(-1.5) == -1.5
    assert finite(float("-inf")) == finite(float("nan")) == -9999.0


def test_metrics_parse_and_have_their_second_names() -> None:
    metrics = Metrics(state())
    metrics.requests.labels(path="/health", status="200").inc()
    metrics.first_token.labels(model_name="m").observe(0.2)
    families = {family.name: family for family in text_string_to_metric_families(metrics.text().decode())}
    ours = families["fastchat_time_to_first_token_seconds"]
    theirs = families["vllm:time_to_first_token_seconds"]
    assert ours.type == theirs.type == "histogram"
    assert [(s.labels, s.value) for s in ours.samples] == [(s.labels, s.value) for s in theirs.samples]
    # Dashboards choose by model.
    assert all(sample.labels["model_name"] == "m" for sample in theirs.samples)
    assert families["fastchat_http_requests"].samples[0].labels == {"path": "/health", "status": "200"}


def test_every_engine_error_has_a_row() -> None:
    assert set(HTTP_TABLE) == set(bridge.EngineError.__subclasses__())
    for kind, (status, _) in HTTP_TABLE.items():
        error = kind("what happened in /home/x/model.gguf")
        for name, value in (("param", "top_p"), ("limit", 10), ("prompt_tokens", 12)):
            setattr(error, name, value)
        shown = to_api_error(error, "req_1")
        assert shown.status == status
        assert set(json.loads(encode_json(shown.body))["error"]) == {"message", "type", "param", "code"}
        if status == 500:
            assert "model.gguf" not in shown.message
        if status == 503:
            assert ("retry-after", "1") in shown.headers


def test_other_errors_tell_nothing() -> None:
    shown = to_api_error(RuntimeError("/secret/path"), "req_1")
    assert (shown.status, shown.code) == (500, "internal_error")
    assert "secret" not in shown.message
    assert to_api_error(TemplateError("refused"), "r").status == 400
    assert len(ApiError(400, "x" * 100_000).message) < 32_000


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/models", "/v1/models"),
        ("/api/v1/models", "/v1/models"),
        ("/v1/models/org/name:q4", "/v1/models/"),
        ("/api/v1/chat/completions", "/v1/chat/completions"),
    ],
)
def test_routes(path: str, route: str) -> None:
    assert route_of(path) == route
    assert route in ROUTES


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/models/", "/api/health", "/v1/chat/completions/", "/V1/models"])
def test_paths_that_are_nothing(path: str) -> None:
    assert route_of(path) not in ROUTES


def test_only_health_and_metrics_are_open() -> None:
    assert OPEN_PATHS == {"/health", "/metrics"}
    App(state())


def test_roles_and_contents() -> None:
    parts = [ContentPart(type="text", text="a"), ContentPart(type="text", text="b")]
    shaped = template_messages([Message(role="developer", content="x"), Message(role="user", content=parts)])
    assert shaped == [{"role": "system", "content": "x"}, {"role": "user", "content": "a\nb"}]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (Message(role="robot", content="x"), "messages.1.role"),
        (Message(role="user"), "messages.1.content"),
        (Message(role="user", content=[ContentPart(type="audio")]), "messages.1.content.0.type"),
        (Message(role="user", content=[ContentPart(type="text")]), "messages.1.content.0.text"),
        (Message(role="user", content=[ContentPart(type="image_url")]), "messages.1.content.0"),
    ],
)
def test_a_bad_message_is_named_by_its_place(message: Message, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        template_messages([Message(role="user", content="x"), message])
    assert caught.value.param == param


def test_tool_arguments_become_objects() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    (shaped,) = template_messages([Message(role="assistant", tool_calls=[call])])
    assert shaped["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert shaped["content"] == ""


def test_template_kwargs_are_an_allow_list() -> None:
    template = ChatTemplate("{{ enable_thinking }}{{ messages }}")
    assert template_variables(template, {"enable_thinking": False}) == {"enable_thinking": False}
    for name in ("messages", "tokenize", "chat_template"):
        with pytest.raises(ApiError) as caught:
            template_variables(template, {name: 1})
        assert caught.value.param == "chat_template_kwargs"
