"""A messages request -> the chat route's request. Knows no output."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fastchat_rs.server.anthropic.protocol import (
    Base64Source,
    Block,
    CountRequest,
    Image,
    InputMessage,
    MessagesRequest,
    OutputFormat,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
)
from fastchat_rs.server.api_error import bad_field
from fastchat_rs.server.protocol import (
    ChatRequest,
    ContentPart,
    FunctionName,
    FunctionSpec,
    JsonSchemaFormat,
    Message,
    NamedToolChoice,
    ResponseFormat,
    Tool,
)
from fastchat_rs.server.sampling import unsupported

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_ELSEWHERE = ("mcp_servers", "container", "context_management")
# Roles that may say a block.
_ASSISTANT = (Text, Thinking, ToolUse)
_USER = (Text, Image, ToolResult)


@dataclass
class Translated:
    """The request in the chat route's words, and how to speak of it in the client's."""

    body: ChatRequest
    names: dict[str, str]
    unused: list[str] = field(default_factory=list[str])
    """Fields that have no effect here."""


def translated(body: CountRequest) -> Translated:
    """Refuses by name what has no counterpart."""
    for name in _ELSEWHERE:
        if getattr(body, name, None):
            unsupported(name, "what runs on Anthropic's servers")
    if not body.messages:
        raise bad_field("messages", "messages: at least one is needed")
    messages, names = _messages(body)
    chat = ChatRequest(model=body.model, messages=messages, tools=_tools(body))
    last = messages[-1]
    chat.continue_final_message = True if last.role == "assistant" and not last.tool_calls else None
    _set_tool_choice(chat, body)
    _set_output(chat, body)
    unused = ["cache_control"] if body.cache_control is not None else []
    # Without being asked to, the model does not think; where a template has no such switch there is nothing to tell.
    asked = body.thinking is not None and body.thinking.type != "disabled"
    chat.enable_thinking = asked
    if asked and body.thinking is not None:
        chat.thinking_budget = body.thinking.budget_tokens
    if isinstance(body, MessagesRequest):
        _set_sampling(chat, body)
        if body.inference_geo is not None:
            unused.append("inference_geo")
    names |= {
        "enable_thinking": "" if body.thinking is None else "thinking",
        "thinking_budget": "thinking.budget_tokens",
        "response_format": "output_format" if body.output_format is not None else "output_config",
        "reasoning_effort": "output_config",
        "stop": "stop_sequences",
        "parallel_tool_calls": "tool_choice",
        "continue_final_message": "messages",
    }
    return Translated(chat, names, unused)


def _set_sampling(chat: ChatRequest, body: MessagesRequest) -> None:
    chat.max_tokens = body.max_tokens
    chat.stream = body.stream
    chat.stop = body.stop_sequences
    chat.temperature, chat.top_p, chat.top_k = body.temperature, body.top_p, body.top_k
    chat.service_tier = body.service_tier
    if body.metadata is not None:
        chat.metadata = {}


def _set_tool_choice(chat: ChatRequest, body: CountRequest) -> None:
    choice = body.tool_choice
    if choice is None:
        return
    if choice.type == "tool":
        if choice.name is None:
            raise bad_field("tool_choice", "tool_choice: type tool needs a name")
        chat.tool_choice = NamedToolChoice(function=FunctionName(name=choice.name))
    else:
        chat.tool_choice = _CHOICES[choice.type]
    if choice.disable_parallel_tool_use:
        chat.parallel_tool_calls = False


def _set_output(chat: ChatRequest, body: CountRequest) -> None:
    form: OutputFormat | None = body.output_format
    if body.output_config is not None:
        if form is not None and body.output_config.format is not None:
            raise bad_field("output_format", "output_format: output_config has a format too")
        form = body.output_config.format or form
        effort = body.output_config.effort
        chat.reasoning_effort = "xhigh" if effort == "max" else effort
    if form is not None:
        chat.response_format = ResponseFormat(type="json_schema", json_schema=JsonSchemaFormat(schema=form.schema))


def _tools(body: CountRequest) -> list[Tool] | None:
    return [
        Tool(function=FunctionSpec(name=tool.name, description=tool.description, parameters=tool.input_schema))
        for tool in body.tools or []
    ] or None


def _messages(body: CountRequest) -> tuple[list[Message], dict[str, str]]:
    """The turns, and from where each of them comes."""
    messages: list[Message] = []
    names: dict[str, str] = {}
    if body.system:
        text = body.system if isinstance(body.system, str) else "\n".join(block.text for block in body.system)
        messages.append(Message(role="system", content=text))
        names["messages.0"] = "system"
    for index, turn in enumerate(body.messages):
        for message in _turn(f"messages.{index}", turn):
            if message.role == "user" and messages and messages[-1].role == "user":
                # Turns of one role that follow each other are one.
                _parts(messages[-1]).extend(_parts(message))
            else:
                names[f"messages.{len(messages)}"] = f"messages.{index}"
                messages.append(message)
    return messages, names


def _parts(message: Message) -> list[ContentPart]:
    if not isinstance(message.content, list):
        message.content = [ContentPart(type="text", text=message.content)]
    return message.content


def _turn(place: str, turn: InputMessage) -> Iterator[Message]:
    if isinstance(turn.content, str):
        yield Message(role=turn.role, content=turn.content)
        return
    allowed = _allowed(turn.role)
    for number, block in enumerate(turn.content):
        if not isinstance(block, allowed):
            where = f"{place}.content.{number}.type"
            raise bad_field(where, f"{where}: role {turn.role} has no such block")
    if turn.role == "assistant":
        yield _assistant(turn.content)
        return
    parts: list[ContentPart] = []
    for block in turn.content:
        if isinstance(block, ToolResult):
            if parts:
                yield Message(role="user", content=parts)
                parts = []
            yield _result(block)
        elif isinstance(block, Text | Image):
            parts.append(_part(block))
    if parts or not turn.content:
        yield Message(role="user", content=parts)


def _allowed(role: str) -> tuple[type, ...]:
    return _ASSISTANT if role == "assistant" else _USER


def _assistant(blocks: list[Block]) -> Message:
    texts = [block.text for block in blocks if isinstance(block, Text)]
    thoughts = [block.thinking for block in blocks if isinstance(block, Thinking)]
    calls: list[dict[str, Any]] = [
        {"id": block.id, "function": {"name": block.name, "arguments": block.input}}
        for block in blocks
        if isinstance(block, ToolUse)
    ]
    return Message(
        role="assistant",
        content="".join(texts),
        reasoning_content="\n".join(thoughts) if thoughts else None,
        tool_calls=calls or None,
    )


def _result(block: ToolResult) -> Message:
    content = block.content or ""
    parts = [ContentPart(type="text", text=content)] if isinstance(content, str) else [_part(one) for one in content]
    if block.is_error:
        parts.insert(0, ContentPart(type="text", text="The call failed:"))
    return Message(role="tool", tool_call_id=block.tool_use_id, content=parts)


def _part(block: Text | Image) -> ContentPart:
    if isinstance(block, Text):
        return ContentPart(type="text", text=block.text)
    source = block.source
    url = f"data:{source.media_type};base64,{source.data}" if isinstance(source, Base64Source) else source.url
    return ContentPart(type="image_url", image_url={"url": url})
