"""Tools of a request: checked, shown to the template, and what `tool_choice` makes of them. Parses no output."""

import json
import re
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from fastchat_rs.server.http import bad_field
from fastchat_rs.server.protocol import ChatRequest, NamedToolChoice, Tool
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


def _check(tools: list[Tool], limit: int) -> None:
    if len(tools) > limit:
        raise bad_field("tools", f"tools: {len(tools)} are more than the limit of {limit}")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        place = f"tools.{index}"
        if tool.type != "function":
            raise bad_field("tools", f"tools: {place}.type must be function", "unsupported")
        name = tool.function.name
        if not _NAME.fullmatch(name):
            raise bad_field(
                "tools", f"tools: {place}.function.name: 1 to 64 letters, digits, dots, dashes, underscores"
            )
        if name in names:
            raise bad_field("tools", f"tools: {place}.function.name: '{name}' is there twice")
        names.add(name)
        if tool.function.parameters is not None:
            check_schema("tools", msgspec.json.encode(tool.function.parameters))


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
    if choice.type != "function":
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
