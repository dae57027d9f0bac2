"""Tools of a request: checked, shown to the template, and what `tool_choice` makes of them. Parses no output."""

import json
import re
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from fastchat_rs.server.api_error import bad_field
from fastchat_rs.server.protocol import ChatRequest, FunctionName, NamedToolChoice, Tool
from fastchat_rs.server.receipt import Notes
from fastchat_rs.server.structured import check_schema

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# Keywords by which an object may have properties beside those in `properties`.
_OPENING = {
    "additionalProperties",
    "patternProperties",
    "propertyNames",
    "minProperties",
    "unevaluatedProperties",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "$ref",
}
_CHOICES = ("none", "auto", "required")


@dataclass(frozen=True)
class ToolUse:
    """The tools that the model may call."""

    shown: list[dict[str, Any]]
    """As templates print them."""
    forced: str | None
    """`required`, a function's name, or None when the model decides."""
    parallel: bool
    legacy: bool = False
    """They came as `functions`; a call is answered as `function_call`."""

    @property
    def json(self) -> str:
        """For the engine, which reads names and schemas."""
        return json.dumps(self.shown)

    @property
    def closed_json(self) -> str:
        """The same for a grammar: arguments have no properties that a schema does not name, unless it invites them."""
        functions = [tool["function"] for tool in self.shown]
        return json.dumps([{"function": {**one, "parameters": _closed(one["parameters"])}} for one in functions])


def tool_use(body: ChatRequest, limit: int, notes: Notes) -> ToolUse | None:
    """None when nothing can be called."""
    if body.functions is not None or body.function_call is not None:
        return _functions(body, limit, notes)
    tools = body.tools or []
    _check(tools, limit)
    choice = _choice(body.tool_choice, [tool.function.name for tool in tools])
    if not tools:
        for field in ("tool_choice", "parallel_tool_calls"):
            if getattr(body, field) is not None:
                notes.ignored(field, "there are no tools")
        return None
    if choice == "none":
        notes.ignored("tools", "tool_choice is none")
        return None
    return ToolUse(
        shown=[_shown(tool) for tool in tools],
        forced=None if choice == "auto" else choice,
        parallel=body.parallel_tool_calls is not False,
    )


def offered(tools: list[Tool] | None, limit: int) -> list[dict[str, Any]] | None:
    """As templates print them, where nothing is to be answered."""
    _check(tools or [], limit)
    return [_shown(tool) for tool in tools or []] or None


def _functions(body: ChatRequest, limit: int, notes: Notes) -> ToolUse | None:
    """`functions` and `function_call` mean tools and tool_choice with at most one call."""
    for field in ("tools", "tool_choice", "parallel_tool_calls"):
        if getattr(body, field) is not None:
            raise bad_field(field, f"{field}: excludes functions and function_call, which it has replaced")
    functions = body.functions or []
    tools = [Tool(function=function) for function in functions]
    _check(tools, limit, "functions")
    names = [function.name for function in functions]
    choice = body.function_call
    if isinstance(choice, str) and choice not in ("none", "auto"):
        raise bad_field("function_call", "function_call: must be none, auto or an object that names a function")
    if isinstance(choice, FunctionName) and choice.name not in names:
        raise bad_field("function_call", f"function_call: '{choice.name[:64]}' is not among the functions")
    if not functions:
        for field in ("functions", "function_call"):
            if getattr(body, field) is not None:
                notes.ignored(field, "there are no functions")
        return None
    if choice == "none":
        notes.ignored("functions", "function_call is none")
        return None
    return ToolUse(
        shown=[_shown(tool) for tool in tools],
        forced=choice.name if isinstance(choice, FunctionName) else None,
        parallel=False,
        legacy=True,
    )


def _check(tools: list[Tool], limit: int, field: str = "tools") -> None:
    if len(tools) > limit:
        raise bad_field(field, f"{field}: {len(tools)} are more than the limit of {limit}")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        place = f"{field}.{index}"
        if tool.type not in (None, "function"):
            raise bad_field(field, f"{field}: {place}.type must be function", "unsupported")
        place = place if field == "functions" else f"{place}.function"
        name = tool.function.name
        if not _NAME.fullmatch(name):
            raise bad_field(field, f"{field}: {place}.name: 1 to 64 letters, digits, dots, dashes, underscores")
        if name in names:
            raise bad_field(field, f"{field}: {place}.name: '{name}' is there twice")
        names.add(name)
        if tool.function.parameters is not None:
            check_schema(field, msgspec.json.encode(tool.function.parameters))


def _choice(choice: str | NamedToolChoice | None, names: list[str]) -> str:
    field = "tool_choice"
    if choice is None:
        return "auto"
    if isinstance(choice, str):
        if choice not in _CHOICES:
            raise bad_field(field, f"{field}: must be {', '.join(_CHOICES)} or an object that names a function")
        if choice == "required" and not names:
            raise bad_field(field, f"{field}: required needs tools")
        return choice
    if choice.type not in (None, "function"):
        raise bad_field(field, f"{field}: type must be function", "unsupported")
    if choice.function.name not in names:
        raise bad_field(field, f"{field}: '{choice.function.name[:64]}' is not among the tools")
    return choice.function.name


def _shown(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = msgspec.to_builtins(tool.function)
    function.pop("strict", None)
    # Templates walk through it.
    function.setdefault("parameters", {"type": "object", "properties": {}})
    return {"type": "function", "function": function}


def _closed(schema: Any) -> Any:
    """Narrower than the schema, which leaves everything open by default: small models would fill it with anything."""
    if not isinstance(schema, dict):
        return schema
    closed = {**cast("dict[str, Any]", schema)}
    properties = closed.get("properties")
    if isinstance(properties, dict):
        inner = cast("dict[str, Any]", properties)
        closed["properties"] = {name: _closed(value) for name, value in inner.items()}
        if not closed.keys() & _OPENING:
            closed["additionalProperties"] = False
    if "items" in closed:
        closed["items"] = _closed(closed["items"])
    return closed
