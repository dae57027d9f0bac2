"""GET /openapi.json, generated from the wire types: what protocol.py says is what the document says."""

from functools import cache
from typing import Any

import msgspec

from fastchat_rs.server import protocol
from fastchat_rs.server.bridge import __version__
from fastchat_rs.server.handle import Context
from fastchat_rs.server.http import Reply, Request, encode_json
from fastchat_rs.server.receipt import HEADER

# path -> method, summary, type of the body, type of the reply
_OPERATIONS: list[tuple[str, str, str, type[msgspec.Struct] | None, type[msgspec.Struct] | None]] = [
    ("/v1/chat/completions", "post", "Answer a conversation", protocol.ChatRequest, protocol.ChatCompletion),
    ("/v1/chat/completions/{id}/events", "get", "Go on with a stream that was cut off", None, None),
    ("/v1/completions", "post", "Go on from a text", protocol.CompletionRequest, protocol.Completion),
    ("/v1/embeddings", "post", "Texts to vectors", protocol.EmbeddingRequest, protocol.EmbeddingReply),
    ("/v1/models", "get", "Names of the models", None, protocol.ModelList),
    ("/v1/models/{id}", "get", "One model", None, protocol.ModelCard),
    ("/v1/tokenize", "post", "Text to token ids", protocol.TokenizeRequest, protocol.TokenizeReply),
    ("/v1/detokenize", "post", "Token ids to text", protocol.DetokenizeRequest, protocol.DetokenizeReply),
    ("/health", "get", "Whether requests are served", None, None),
    ("/metrics", "get", "Prometheus text", None, None),
    ("/openapi.json", "get", "This document", None, None),
]

_HEADERS = {HEADER: {"description": "What was clamped or had no effect", "schema": {"type": "string"}}}
_TALK = {"model": "demo", "messages": [{"role": "user", "content": "What is the weather in Paris?"}]}
_WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
_PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
# path -> bodies by name
EXAMPLES: dict[str, dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": {
        "plain": {**_TALK, "max_tokens": 64},
        "stream": {**_TALK, "stream": True, "stream_options": {"include_usage": True}},
        "tools": {**_TALK, "tools": [{"type": "function", "function": _WEATHER}], "tool_choice": "auto"},
        "json_schema": {
            **_TALK,
            "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": _PERSON}},
        },
    },
    "/v1/completions": {
        "plain": {"model": "demo", "prompt": "The capital of France is", "max_tokens": 8},
        "choice": {"model": "demo", "prompt": "Is water wet?", "choice": ["yes", "no"]},
    },
    "/v1/embeddings": {"plain": {"model": "minilm", "input": ["A cat sleeps.", "The market fell."]}},
    "/v1/tokenize": {"plain": {"model": "demo", "prompt": "Hello"}},
    "/v1/detokenize": {"plain": {"model": "demo", "tokens": [1, 2, 3]}},
}


async def openapi(context: Context, request: Request) -> Reply:
    """The document."""
    return Reply(document())


@cache
def document() -> bytes:
    """The bytes of the document."""
    kinds = [kind for _, _, _, body, reply in _OPERATIONS for kind in (body, reply) if kind is not None]
    kinds += [protocol.ErrorReply, protocol.ChatCompletionChunk]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    schema = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, Any] = {}
    for path, method, summary, body, reply in _OPERATIONS:
        good: dict[str, Any] = {"description": "Success", "headers": _HEADERS if body else {}}
        if reply is not None:
            good["content"] = {"application/json": {"schema": schema[reply]}}
        if reply is protocol.ChatCompletion:
            good["content"]["text/event-stream"] = {"schema": schema[protocol.ChatCompletionChunk]}
        bad = {"description": "Error", "content": {"application/json": {"schema": schema[protocol.ErrorReply]}}}
        operation: dict[str, Any] = {"summary": summary, "responses": {"200": good, "default": bad}}
        if body is not None:
            examples = {name: {"value": value} for name, value in EXAMPLES[path].items()}
            content = {"application/json": {"schema": schema[body], "examples": examples}}
            operation["requestBody"] = {"required": True, "content": content}
        if "{id}" in path:
            parameter: dict[str, Any] = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
            operation["parameters"] = [parameter]
        if path.endswith("/events"):
            after: dict[str, Any] = {"name": "after", "in": "query", "schema": {"type": "integer", "minimum": 0}}
            operation["parameters"].append({**after, "description": "How many events the client has"})
            good["content"] = {"text/event-stream": {"schema": schema[protocol.ChatCompletionChunk]}}
        if path.startswith("/v1/"):
            operation["security"] = [{"key": []}, {}]
        paths[path] = {method: operation}
    return encode_json(
        {
            "openapi": "3.1.0",
            "info": {"title": "fastchat_rs", "version": __version__},
            "servers": [{"url": "/"}, {"url": "/api"}],
            "paths": paths,
            "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        }
    )
