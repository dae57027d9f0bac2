"""Chat messages and the template's variables: from wire types to what a chat template expects."""

from typing import Any

import msgspec

from fastchat_rs.server.bridge import Bridge
from fastchat_rs.server.http import bad_field
from fastchat_rs.server.protocol import ContentPart, Message
from fastchat_rs.server.sampling import unsupported
from fastchat_rs.server.state import Served
from fastchat_rs.template import ChatTemplate

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_ROLES["function"] = "tool"


def template_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """Checks roles and contents; errors name the place (`messages.<i>.role`)."""
    if not messages:
        raise bad_field("messages", "messages: at least one is needed")
    return [_message(index, message) for index, message in enumerate(messages)]


def _message(index: int, message: Message) -> dict[str, Any]:
    place = f"messages.{index}"
    role = _ROLES.get(message.role)
    if role is None:
        raise bad_field(f"{place}.role", f"{place}.role: must be one of {', '.join(_ROLES)}")
    shaped: dict[str, Any] = {"role": role, "content": _content(place, message.content)}
    if message.content is None:
        if role != "assistant" or not message.tool_calls:
            raise bad_field(f"{place}.content", f"{place}.content: is needed for role {message.role}")
        shaped["content"] = ""
    if message.tool_calls and role == "assistant":
        shaped["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    for name in ("name", "tool_call_id", "reasoning_content"):
        value = getattr(message, name)
        if value is not None:
            shaped[name] = value
    return shaped


def _content(place: str, content: str | list[ContentPart] | None) -> str | None:
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for index, part in enumerate(content):
        where = f"{place}.content.{index}"
        if part.type == "image_url":
            unsupported(f"{where}.image_url", "an image with this model")
        if part.type != "text":
            raise bad_field(f"{where}.type", f"{where}.type: must be text or image_url")
        if part.text is None:
            raise bad_field(f"{where}.text", f"{where}.text: is needed")
        texts.append(part.text)
    return "\n".join(texts)


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    """Templates print arguments as JSON, so the text of the wire becomes an object where it is one."""
    function = call.get("function")
    if not isinstance(function, dict):
        return call
    function = dict(function)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    arguments = function.get("arguments")  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    if isinstance(arguments, str):
        try:
            function["arguments"] = msgspec.json.decode(arguments)
        except msgspec.DecodeError:
            pass
    return {**call, "function": function}


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


async def render(
    bridge: Bridge,
    template: ChatTemplate,
    messages: list[dict[str, Any]],
    variables: dict[str, Any],
    *,
    add_generation_prompt: bool,
    continue_final_message: bool,
) -> str:
    """Renders off the event loop."""

    def work() -> str:
        return template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
        )

    return await bridge.offload(work)
