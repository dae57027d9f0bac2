"""Everything about HTTP that is not an answer: methods, paths, bodies, headers, keys."""

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from jsonschema import Draft202012Validator

from live import Live, raw, serving

CHAT = "/v1/chat/completions"


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object of a response with that status."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


def test_health_and_models(live: Live) -> None:
    with live.client() as client:
        assert client.get("/health").json() == {"status": "ready"}
        listed = client.get("/api/v1/models").json()
        assert listed["object"] == "list"
        for card in listed["data"]:
            assert client.get(f"/v1/models/{card['id']}").json() == card
        assert error(client.get("/v1/models/none"), 404)["code"] == "model_not_found"
    names = [model.id for model in live.openai().models.list()]
    assert names == [live.model, "gpt-3.5-turbo", "5080/llama3.2-vision:11b"]
    assert live.openai().models.retrieve("5080/llama3.2-vision:11b").owned_by == "fastchat_rs"


def test_the_openapi_document(live: Live) -> None:
    with live.client() as client:
        document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    schemas = document["components"]["schemas"]
    for name, value in schemas.items():
        Draft202012Validator.check_schema(value)
        assert value["properties"], name
    chat = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    request: Any = Draft202012Validator({**chat, "components": document["components"]})
    request.validate(live.chat())
    assert not request.is_valid({**live.chat(), "temperature": 3})
    reply = {"$ref": "#/components/schemas/ChatCompletion", "components": document["components"]}
    validator: Any = Draft202012Validator(reply)
    validator.validate(live.post(CHAT, live.chat(max_tokens=1, logprobs=True)).json())
    for path, methods in document["paths"].items():
        for method in methods:
            status = live.post(path, {}).status_code if method == "post" else 200
            assert status in ((200, 400, 404) if "{id}" in path else (200, 400)), path


def test_metrics_count(live: Live) -> None:
    before = live.idle()
    live.post(CHAT, live.chat(max_tokens=5, ignore_eos=True))
    after = live.idle()
    assert after["fastchat_generation_tokens_total"] - before["fastchat_generation_tokens_total"] == 5
    assert after["vllm:generation_tokens_total"] == after["fastchat_generation_tokens_total"]
    assert after["fastchat_kv_blocks_free"] == after["fastchat_kv_blocks_total"]
    assert after["fastchat_engine_alive"] == 1
    assert after["fastchat_time_to_first_token_seconds_count"] > before["fastchat_time_to_first_token_seconds_count"]


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models"])
def test_head_is_get_without_a_body(live: Live, path: str) -> None:
    with live.client() as client:
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]


def test_wrong_paths_and_methods(live: Live) -> None:
    with live.client() as client:
        for path in ("/", "/v1", "/v1/nothing", "/v1/chat/completions/", "/api/health"):
            assert error(client.get(path), 404)["code"] == "not_found"
        response = client.get(CHAT)
        error(response, 405)
        assert response.headers["allow"] == "POST, OPTIONS"
        response = client.post("/v1/models")
        error(response, 405)
        assert response.headers["allow"] == "GET, HEAD, OPTIONS"
        assert client.head(CHAT).status_code == 405
        assert client.options(CHAT).headers["allow"] == "POST, OPTIONS"
        error(client.request("DELETE", "/v1/models/x"), 405)


def test_request_ids(live: Live) -> None:
    with live.client() as client:
        ids = [client.get("/health").headers["x-request-id"] for _ in range(2)]
        assert len(set(ids)) == 2
        assert client.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
        for bad in ("a b", "x" * 200, "é"):
            headers = [(b"x-request-id", bad.encode())]
            assert client.get("/health", headers=headers).headers["x-request-id"] not in (bad, "")
        with client.stream("POST", CHAT, json=live.chat(stream=True), headers={"x-request-id": "s-1"}) as response:
            assert response.headers["x-request-id"] == "s-1"
            response.read()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b'{"model": 1}',
        b"\xff\xfe",
        b'{"model": "m", "messages": [[[[[[',
        b"[" * 5000,
    ],
)
def test_bodies_that_are_no_request(live: Live, body: bytes) -> None:
    with live.client() as client:
        error(client.post(CHAT, content=body, headers={"content-type": "application/json"}), 400)


def test_types_and_encodings_of_bodies(live: Live) -> None:
    body = json.dumps(live.chat(max_tokens=1)).encode()
    with live.client() as client:
        for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"):
            error(client.post(CHAT, content=body, headers={"content-type": kind}), 415)
        error(client.post(CHAT, content=body, headers={"content-encoding": "gzip"}), 415)
        for kind in ("application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"):
            assert client.post(CHAT, content=body, headers={"content-type": kind}).status_code == 200
        assert client.post(CHAT, content=body).status_code == 200
        chunked = client.post(CHAT, content=iter([body[:5], body[5:]]), headers={"content-type": "application/json"})
        assert chunked.status_code == 200


def test_a_body_that_is_announced_too_large_is_not_read(live: Live) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {33 << 20}\r\n\r\n"
    answer = raw(live, head.encode())
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'"code":"body_too_large"' in answer


def test_a_refusal_that_leaves_a_body_ends_the_connection(live: Live) -> None:
    kept: list[bool] = []
    with live.client() as client:
        for size in (100, 300_000) * 30:
            # Without the header the connection would be used again, and the next request be lost.
            refused = client.post("/v1/nowhere", content=b" " * size, headers={"content-type": "application/json"})
            assert refused.status_code == 404
            kept.append("connection" not in refused.headers)
            assert refused.headers.get("connection", "close") == "close"
        whole = client.post(CHAT, content=b" " * 300_000, headers={"content-type": "application/json"})
        assert error(whole, 400) and "connection" not in whole.headers
    assert kept == [True, False] * 30


def test_a_body_that_grows_too_large_is_stopped(demo_model: Path) -> None:
    with serving(demo_model, "--max-body", "1000B", "--body-timeout", "0.5", "--max-model-len", "512") as small:
        with small.client() as client:
            parts = iter([b" " * 600] * 3)
            error(client.post(CHAT, content=parts, headers={"content-type": "application/json"}), 413)
        slow = raw(small, b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{", 5)
        assert slow.startswith(b"HTTP/1.1 408")
        assert b'"code":"body_timeout"' in slow


def test_hosts_and_origins(live: Live, demo_model: Path) -> None:
    with live.client() as client:
        error(client.get("/v1/models", headers={"host": "evil.example"}), 403)
        assert client.get("/v1/models", headers={"host": "localhost:1234"}).status_code == 200
        response = client.options(CHAT, headers={"origin": "https://app.example"})
        assert "access-control-allow-origin" not in response.headers
    options = ("--cors-origin", "https://app.example", "--max-model-len", "512", "--allowed-host", "ai.example")
    with serving(demo_model, *options) as open_to, open_to.client() as client:
        good = client.options(CHAT, headers={"origin": "https://app.example"})
        assert good.headers["access-control-allow-origin"] == "https://app.example"
        assert "POST" in good.headers["access-control-allow-methods"]
        assert "authorization" in good.headers["access-control-allow-headers"]
        # Clients that run in browsers have headers of their own.
        own = {"origin": "https://app.example", "access-control-request-headers": "authorization,x-stainless-lang"}
        allowed = client.options(CHAT, headers=own).headers["access-control-allow-headers"]
        assert allowed == "authorization,x-stainless-lang"
        bad = client.options(CHAT, headers={"origin": "https://other.example"})
        assert "access-control-allow-origin" not in bad.headers
        assert {bad.headers["vary"], good.headers["vary"], client.get("/health").headers["vary"]} == {"origin"}
        assert client.get("/v1/models", headers={"host": "ai.example"}).status_code == 200


def test_keys(demo_model: Path) -> None:
    environment = {"FASTCHAT_API_KEY": "secret-1,secret-2"}
    with serving(demo_model, "--max-model-len", "512", environment=environment) as closed:
        with closed.client() as client:
            for path in (
                "/v1/models",
                "/v1/models/x",
                "/v1/nothing",
                "/nothing",
                CHAT,
                "/v1/completions",
                "/v1/tokenize",
                "/tokenize",
                "/version",
                "/ping",
            ):
                response = client.get(path)
                assert error(response, 401)["code"] == "invalid_api_key"
                assert response.headers["www-authenticate"] == "Bearer"
            assert client.get("/health").status_code == 200
            assert client.get("/metrics").status_code == 200
        assert [model.id for model in closed.openai("secret-2").models.list()] == [closed.model]
        with pytest.raises(openai.AuthenticationError):
            closed.openai("wrong").models.list()


def test_odd_requests_do_no_harm(live: Live) -> None:
    for request in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /%00%ff/../x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nConnection: close\r\n\r\n{",
        b"\x16\x03\x01\x02\x00",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Big: " + b"x" * 20_000 + b"\r\n\r\n",
    ):
        raw(live, request, 0.5)
    with live.client() as client:
        assert client.get("/health").status_code == 200
