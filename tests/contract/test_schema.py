"""Requests drawn from the server's own OpenAPI document, right and nearly right: no 5xx, no hang, and errors of
the promised shape and size."""

import json
import time
from functools import cache
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastchat_rs.server.openapi import document
from live import Live

DOCUMENT: dict[str, Any] = json.loads(document())
POSTS = [path for path, methods in DOCUMENT["paths"].items() if "requestBody" in methods.get("post", {})]
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
# Fields that would make an answer long -> how large they may be.
LENGTHS = {
    "max_tokens": 3,
    "max_completion_tokens": 3,
    "max_output_tokens": 3,
    "num_predict": 3,
    "n": 2,
    "min_tokens": 3,
}
# Without them an answer would be as long as the context.
NEEDED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"max_tokens": 3, "max_completion_tokens": 3},
    "/v1/responses": {"max_output_tokens": 3},
    "/api/chat": {"options": {"num_predict": 3}},
    "/api/generate": {"options": {"num_predict": 3}},
}
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.large_base_example]
MOST_SECONDS = 30
MOST_ERROR_BYTES = 32 * 1024


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """Follows a reference."""
    while "$ref" in schema:
        schema = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def values(schema: dict[str, Any], depth: int = 6) -> st.SearchStrategy[Any]:
    """Values that the schema accepts."""
    schema = resolved(schema)
    if depth == 0:
        return st.none()
    if "anyOf" in schema:
        return st.one_of([values(one, depth - 1) for one in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if kind == "string":
        return st.text(min_size=schema.get("minLength", 0), max_size=12)
    if kind == "integer":
        return st.integers(schema.get("minimum", -(2**63)), schema.get("maximum", 2**63 - 1))
    if kind == "number":
        low = schema.get("minimum", schema.get("exclusiveMinimum"))
        return st.floats(low, schema.get("maximum"), allow_nan=False, allow_infinity=False)
    if kind == "boolean":
        return st.booleans()
    if kind == "null":
        return st.none()
    if kind == "array":
        return st.lists(values(schema.get("items", {}), depth - 1), min_size=schema.get("minItems", 0), max_size=2)
    if kind == "object" and "properties" in schema:
        properties = {name: values(one, depth - 1) for name, one in schema["properties"].items()}
        required = {name: properties.pop(name) for name in schema.get("required", [])}
        return st.fixed_dictionaries(required, optional=properties)
    if kind == "object":
        return st.dictionaries(st.text(max_size=6), values(schema.get("additionalProperties") or {}, 1), max_size=2)
    return JSON


@cache
def bodies(path: str) -> st.SearchStrategy[dict[str, Any]]:
    """Of a route: as the document says, or with one field of any kind."""
    body = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    examples = [example["value"] for example in body["examples"].values()]
    properties = resolved(body["schema"])["properties"]
    fields = st.dictionaries(st.sampled_from(sorted(properties)), st.none(), min_size=1, max_size=3)

    def drawn(names: dict[str, None]) -> st.SearchStrategy[dict[str, Any]]:
        changed = {name: st.one_of(values(properties[name]), values(properties[name]), JSON) for name in names}
        return st.builds(merged, st.sampled_from(examples), st.fixed_dictionaries(changed))

    return fields.flatmap(drawn)


def merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """An example with some of its fields replaced."""
    return {**base, **more}


def bounded(value: Any) -> Any:
    """The same with answers that are short."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return {
            name: min(inner, LENGTHS[name]) if name in LENGTHS and type(inner) is int else bounded(inner)
            for name, inner in fields.items()
        }
    return [bounded(inner) for inner in cast("list[Any]", value)] if isinstance(value, list) else value


def short(path: str, sent: dict[str, Any]) -> dict[str, Any]:
    """With the field that bounds the answer, where a request left it out."""
    for name, needed in NEEDED.get(path, {}).items():
        has = sent.get(name)
        if has is None:
            sent[name] = needed
        elif isinstance(has, dict):
            options = cast("dict[str, Any]", has)
            sent[name] = options if options.get("num_predict") else {**options, **needed}
    return bounded(sent)


@pytest.mark.parametrize("path", POSTS)
def test_nothing_that_the_document_allows_breaks_the_server(live: Live, path: str) -> None:
    names = st.sampled_from([live.model, live.model, live.model, "nobody"])
    with live.client() as client:

        @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=SLOW)
        @given(bodies(path), names)
        def one(drawn: dict[str, Any], model: str) -> None:
            sent = {**drawn, "model": model if isinstance(drawn.get("model"), str) else drawn.get("model")}
            started = time.monotonic()
            response = client.post(path, json=short(path, sent))
            assert time.monotonic() - started < MOST_SECONDS
            assert response.status_code in (200, 400, 404), (sent, response.text)
            if response.status_code == 200:
                assert len(response.content) < 4 * 2**20
                return
            assert len(response.content) < MOST_ERROR_BYTES
            error: Any = response.json()["error"]
            if path.startswith("/api/"):
                assert isinstance(error, str) and error
            else:
                assert {"message", "type", "param", "code"} == set(error) and error["param"], (sent, error)

        one()
    live.idle(30)


def test_every_get_answers(live: Live) -> None:
    with live.client() as client:
        for path, methods in DOCUMENT["paths"].items():
            for method in methods.keys() & {"get", "delete"}:
                response = client.request(method, path.replace("{id}", "nothing"))
                assert response.status_code == (404 if "{id}" in path else 200), (method, path)
