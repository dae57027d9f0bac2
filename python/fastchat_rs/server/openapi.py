"""GET /openapi.json, generated from the wire types: what the Structs say is what the document says."""

from functools import cache
from typing import Any

import msgspec

from fastchat_rs.server.bridge import __version__
from fastchat_rs.server.handle import Context
from fastchat_rs.server.http import Reply, Request, encode_json
from fastchat_rs.server.operations import OPERATIONS, Operation
from fastchat_rs.server.receipt import HEADER

_HEADERS = {HEADER: {"description": "What was clamped or had no effect", "schema": {"type": "string"}}}
_OPEN = ("/health", "/metrics")


async def openapi(context: Context, request: Request) -> Reply:
    """The document."""
    return Reply(document())


@cache
def document() -> bytes:
    """The bytes of the document."""
    kinds = list(dict.fromkeys(kind for one in OPERATIONS for kind in _kinds(one)))
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    schema = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, Any] = {}
    for one in OPERATIONS:
        paths.setdefault(one.path, {})[one.method] = _operation(one, schema)
    return encode_json(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "fastchat_rs",
                "version": __version__,
                "description": "What is under /v1 is under /api/v1 too.",
            },
            "servers": [{"url": "/"}],
            "paths": paths,
            "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        }
    )


def _kinds(one: Operation) -> list[Any]:
    chunk = one.chunk[1] if one.chunk else None
    return [kind for kind in (one.body, one.reply, one.error, chunk) if kind is not None]


def _operation(one: Operation, schema: dict[Any, Any]) -> dict[str, Any]:
    good: dict[str, Any] = {"description": "Success", "headers": _HEADERS if one.body else {}}
    if one.reply is not None:
        good["content"] = {"application/json": {"schema": schema[one.reply]}}
    if one.chunk is not None:
        content_type, kind = one.chunk
        good.setdefault("content", {})[content_type] = {"schema": schema[kind]}
    bad = {"description": "Error", "content": {"application/json": {"schema": schema[one.error]}}}
    operation: dict[str, Any] = {"summary": one.summary, "responses": {"200": good, "default": bad}}
    if one.body is not None:
        examples = {name: {"value": value} for name, value in one.examples.items()}
        content = {"application/json": {"schema": schema[one.body], "examples": examples}}
        operation["requestBody"] = {"required": True, "content": content}
    if "{id}" in one.path:
        parameter = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
        operation["parameters"] = [parameter]
    for name, text in one.query.items():
        number = {"name": name, "in": "query", "description": text, "schema": {"type": "integer", "minimum": 0}}
        operation.setdefault("parameters", []).append(number)
    if one.path not in _OPEN:
        operation["security"] = [{"key": []}, {}]
    return operation
