"""Chat messages and the template's variables: from wire types to what a chat template expects."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec

from fastchat_rs.server.api_error import bad_field
from fastchat_rs.server.bridge import Bridge
from fastchat_rs.server.protocol import ContentPart, Message
from fastchat_rs.server.state import Served
from fastchat_rs.template import ChatTemplate

if TYPE_CHECKING:
    from fastchat_rs.server.images import Pictures

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_ROLES["function"] = "tool"


def template_messages(messages: list[Message], pictures: "Pictures | None" = None) -> list[dict[str, Any]]:
    """Checks roles and contents, and mends the history of calls; errors name the place (`messages.<i>.role`).

    Without `pictures` a part that is one is refused.
    """
    if not messages:
        raise bad_field("messages", "messages: at least one is needed")
    shaped = [_message(index, message, pictures) for index, message in enumerate(messages)]
    _repair_ids(shaped)
    return shaped


def _message(index: int, message: Message, pictures: "Pictures | None") -> dict[str, Any]:
    place = f"messages.{index}"
    role = _ROLES.get(message.role)
    if role is None:
        raise bad_field(f"{place}.role", f"{place}.role: must be one of {', '.join(_ROLES)}")
    content = _content(place, message.content, pictures)
    if content is None and role not in ("assistant", "tool"):
        raise bad_field(f"{place}.content", f"{place}.content: is needed for role {message.role}")
    # Templates add it to other text: null would print as None.
    shaped: dict[str, Any] = {"role": role, "content": content or ""}
    if role == "assistant":
        calls = list(message.tool_calls or [])
        if message.function_call is not None:
            calls.append({"function": message.function_call})
        if calls:
            shaped["tool_calls"] = [_tool_call(place, number, call) for number, call in enumerate(calls)]
        reasoning = message.reasoning if message.reasoning_content is None else message.reasoning_content
        if reasoning is not None:
            shaped["reasoning_content"] = reasoning
    for name in ("name", "tool_call_id"):
        value = getattr(message, name)
        if value is not None:
            shaped[name] = value
    return shaped


def _content(
    place: str, content: str | list[ContentPart] | None, pictures: "Pictures | None"
) -> str | list[dict[str, Any]] | None:
    if not isinstance(content, list):
        return content
    parts: list[dict[str, Any]] = []
    for index, part in enumerate(content):
        where = f"{place}.content.{index}"
        if part.type == "image_url":
            if pictures is None:
                raise bad_field(where, f"{where}: this route does not support image input", "unsupported")
            parts.append(pictures.part(where, part))
            continue
        if part.type != "text":
            raise bad_field(f"{where}.type", f"{where}.type: must be text or image_url")
        if part.text is None:
            raise bad_field(f"{where}.text", f"{where}.text: is needed")
        parts.append({"type": "text", "text": part.text})
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _tool_call(place: str, number: int, call: dict[str, Any]) -> dict[str, Any]:
    """An id and a name are certain to be there, and the arguments are an object: what templates rely on."""
    given = call.get("function")
    function = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    name = function.get("name")
    if not isinstance(name, str) or not name:
        where = f"{place}.tool_calls.{number}.function.name"
        raise bad_field(where, f"{where}: is needed")
    id = call.get("id")
    return {
        "id": id if isinstance(id, str) and id else f"call_{place.rpartition('.')[2]}_{number}",
        "type": "function",
        "function": {"name": name, "arguments": _arguments(function.get("arguments"))},
    }


def _arguments(given: Any) -> dict[str, Any]:
    """Text of the wire as the object that it should be; what is none is kept under a name of its own."""
    value: Any = given
    if isinstance(given, str):
        try:
            value = msgspec.json.decode(given) if given.strip() else {}
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            value = given
    if value is None:
        return {}
    return value if isinstance(value, dict) else {"input": value}  # pyright: ignore[reportUnknownVariableType]


def _repair_ids(messages: list[dict[str, Any]]) -> None:
    """A result without an id answers the first call that has no answer yet."""
    open_calls: list[tuple[str, str]] = []
    for message in messages:
        for call in message.get("tool_calls", ()):
            open_calls.append((call["id"], call["function"]["name"]))
        if message["role"] != "tool":
            continue
        id = message.get("tool_call_id")
        place = next((place for place, (known, _) in enumerate(open_calls) if id in (None, known)), None)
        if place is not None:
            known, name = open_calls.pop(place)
            message["tool_call_id"] = known
            message.setdefault("name", name)
        elif id is None:
            message["tool_call_id"] = "call_unknown"


def chat_template(served: Served) -> ChatTemplate:
    """The model's template, or a 400 that says what to do without one."""
    if served.template is None:
        raise bad_field(
            "messages",
            "messages: this model has no chat template; send `prompt`, or use /v1/completions",
            "unsupported",
        )
    return served.template


def template_variables(template: ChatTemplate, kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """`chat_template_kwargs`: only variables that the template reads itself."""
    for name in kwargs or {}:
        if name not in template.variables:
            field = "chat_template_kwargs"
            raise bad_field(field, f"{field}: the model's template has no variable '{name[:100]}'")
    return dict(kwargs or {})


def goes_on(messages: list[dict[str, Any]], wanted: bool | None, begins: bool | None) -> bool:
    """`continue_final_message`, beside `add_generation_prompt`: only the assistant's own words can be gone on with."""
    field = "continue_final_message"
    if wanted and begins:
        raise bad_field(field, f"{field} excludes add_generation_prompt")
    if wanted and messages[-1]["role"] != "assistant":
        raise bad_field(field, f"{field}: the last message must be the assistant's")
    return bool(wanted)


@dataclass(frozen=True)
class Rendering:
    """How a conversation becomes a prompt."""

    variables: dict[str, Any]
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False


async def render(bridge: Bridge, template: ChatTemplate, messages: list[dict[str, Any]], how: Rendering) -> str:
    """Renders off the event loop."""

    def work() -> str:
        return template.render(
            messages,
            tools=how.tools,
            add_generation_prompt=how.add_generation_prompt,
            continue_final_message=how.continue_final_message,
            variables=how.variables,
        )

    return await bridge.offload(work)
