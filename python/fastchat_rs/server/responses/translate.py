"""A responses request -> the chat route's request. Knows no output but as history."""

from dataclasses import dataclass

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
from fastchat_rs.server.responses.protocol import (
    FunctionCallItem,
    Item,
    NamedChoice,
    OutputItem,
    Part,
    ReasoningItem,
    ResponsesRequest,
    ToolSpec,
)
from fastchat_rs.server.sampling import unsupported

LOGPROBS = "message.output_text.logprobs"
# What can be asked for beside it speaks of tools and of thoughts that are kept secret: there are none to include.
_INCLUDES = {
    LOGPROBS,
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
}
_KEPT_ELSEWHERE = ("conversation", "prompt", "context_management")
_UNUSED = ("safety_identifier", "prompt_cache_key", "prompt_cache_retention", "max_tool_calls", "stream_options")
_NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text",
    "reasoning_effort": "reasoning",
    "logprobs": "top_logprobs",
    "messages": "input",
}


@dataclass
class Translated:
    """The request in the chat route's words, and how to speak of it in the client's."""

    body: ChatRequest
    history: list[Message]
    """Without the instructions, which hold for one response only."""
    names: dict[str, str]
    unused: list[str]


def translated(body: ResponsesRequest, earlier: list[Message]) -> Translated:
    """`earlier` is the conversation that is gone on with. Refuses by name what has no counterpart."""
    for name in _KEPT_ELSEWHERE:
        if getattr(body, name) is not None:
            unsupported(name, "what is kept by OpenAI")
    if body.truncation == "auto":
        unsupported("truncation", "leaving out parts of a conversation")
    if body.background and body.stream:
        unsupported("background", "a stream of a response made in the background")
    if body.background and body.store is False:
        raise bad_field("store", "store: a response made in the background has to be stored")
    history = list(earlier)
    places = _add(history, body.input)
    messages = history
    if body.instructions is not None:
        messages = [Message(role="system", content=body.instructions), *history]
    shift = len(messages) - len(history)
    names = {"messages.0": "instructions"} if shift else {}
    names |= {f"messages.{index + shift}": place for index, place in places.items()}
    names |= {f"messages.{index + shift}": "previous_response_id" for index in range(len(earlier))}
    chat = ChatRequest(model=body.model, messages=messages, tools=_tools(body.tools))
    _set(chat, body)
    unused = [name for name in _UNUSED if getattr(body, name) is not None]
    if body.text is not None and body.text.verbosity is not None:
        unused.append("text.verbosity")
    if body.reasoning is not None and (body.reasoning.summary or body.reasoning.generate_summary):
        unused.append("reasoning.summary")
    for name in body.include or []:
        if name not in _INCLUDES:
            raise bad_field("include", f"include: '{name[:100]}' is not known")
        if name != LOGPROBS:
            unused.append("include")
    return Translated(chat, history, {**names, **_NAMES}, unused)


def _set(chat: ChatRequest, body: ResponsesRequest) -> None:
    chat.stream = body.stream
    chat.max_completion_tokens = body.max_output_tokens
    chat.temperature, chat.top_p = body.temperature, body.top_p
    chat.parallel_tool_calls = body.parallel_tool_calls
    chat.user, chat.service_tier = body.user, body.service_tier
    chat.reasoning_effort = body.reasoning.effort if body.reasoning is not None else None
    if body.top_logprobs is not None or LOGPROBS in (body.include or []):
        chat.logprobs, chat.top_logprobs = True, body.top_logprobs
    choice = body.tool_choice
    chat.tool_choice = _named(choice) if isinstance(choice, NamedChoice) else choice
    form = body.text.format if body.text is not None else None
    if form is not None:
        schema = JsonSchemaFormat(schema=form.schema, name=form.name, strict=form.strict)
        chat.response_format = ResponseFormat(
            type=form.type, json_schema=schema if form.type == "json_schema" else None
        )


def _named(choice: NamedChoice) -> NamedToolChoice:
    if choice.type != "function":
        unsupported("tool_choice", f"type {choice.type[:64]}")
    if choice.name is None:
        raise bad_field("tool_choice", "tool_choice: type function needs a name")
    return NamedToolChoice(function=FunctionName(name=choice.name))


def _tools(tools: list[ToolSpec] | None) -> list[Tool] | None:
    made: list[Tool] = []
    for index, tool in enumerate(tools or []):
        if tool.type != "function":
            unsupported("tools", f"tools.{index}.type {tool.type[:64]}")
        if tool.name is None:
            raise bad_field("tools", f"tools: tools.{index}.name is needed")
        made.append(
            Tool(function=FunctionSpec(name=tool.name, description=tool.description, parameters=tool.parameters))
        )
    return made or None


def _add(history: list[Message], given: str | list[Item]) -> dict[int, str]:
    """Adds the input; from where each new message comes."""
    if isinstance(given, str):
        history.append(Message(role="user", content=given))
        return {len(history) - 1: "input"}
    if not given:
        raise bad_field("input", "input: at least one item is needed")
    places: dict[int, str] = {}
    for index, item in enumerate(given):
        place = f"input.{index}"
        before = len(history)
        _add_item(history, place, item)
        if len(history) > before:
            places[before] = place
    return places


def _add_item(history: list[Message], place: str, item: Item) -> None:
    if item.type == "message":
        if item.role is None:
            raise bad_field(f"{place}.role", f"{place}.role: is needed")
        parts = _parts(place, item.content)
        if item.role == "assistant":
            _assistant(history, call=False).content = parts
        else:
            history.append(Message(role=item.role, content=parts))
    elif item.type == "reasoning":
        thoughts = [part.text or "" for part in item.content] if isinstance(item.content, list) else []
        thoughts = thoughts or [part.text or "" for part in item.summary or []]
        if thoughts:
            history.append(Message(role="assistant", reasoning_content="\n".join(thoughts)))
    elif item.type == "function_call":
        for name in ("call_id", "name", "arguments"):
            if getattr(item, name) is None:
                raise bad_field(f"{place}.{name}", f"{place}.{name}: is needed")
        function = {"name": item.name, "arguments": item.arguments}
        message = _assistant(history, call=True)
        message.tool_calls = [*(message.tool_calls or []), {"id": item.call_id, "function": function}]
    elif item.type == "function_call_output":
        if item.call_id is None:
            raise bad_field(f"{place}.call_id", f"{place}.call_id: is needed")
        history.append(Message(role="tool", tool_call_id=item.call_id, content=_parts(place, item.output)))
    else:
        unsupported(f"{place}.type", f"an item of type {item.type[:64]}")


def _assistant(history: list[Message], *, call: bool) -> Message:
    """The message that an item of the assistant's is a part of: thoughts, words and calls in a row are one."""
    if history and history[-1].role == "assistant":
        last = history[-1]
        if call or (last.content is None and not last.tool_calls):
            # The message may also be kept with an earlier response.
            history[-1] = Message(
                role="assistant",
                content=last.content,
                reasoning_content=last.reasoning_content,
                tool_calls=last.tool_calls,
            )
            return history[-1]
    history.append(Message(role="assistant"))
    return history[-1]


def _parts(place: str, content: str | list[Part] | None) -> str | list[ContentPart] | None:
    if not isinstance(content, list):
        return content
    parts: list[ContentPart] = []
    for index, part in enumerate(content):
        where = f"{place}.content.{index}"
        if part.type == "input_image":
            if part.image_url is None:
                unsupported(f"{where}.type", "an image that is kept by OpenAI")
            parts.append(ContentPart(type="image_url", image_url={"url": part.image_url}))
            continue
        if part.type not in ("input_text", "output_text", "text", "refusal"):
            unsupported(f"{where}.type", f"content of type {part.type[:64]}")
        text = part.refusal if part.type == "refusal" else part.text
        if text is None:
            raise bad_field(f"{where}.text", f"{where}.text: is needed")
        parts.append(ContentPart(type="text", text=text))
    return parts


def as_history(output: list[OutputItem]) -> list[Message]:
    """What the model said, as later responses read it."""
    history: list[Message] = []
    for item in output:
        if isinstance(item, ReasoningItem):
            text = "".join(part.text for part in item.content)
            history.append(Message(role="assistant", reasoning_content=text))
        elif isinstance(item, FunctionCallItem):
            message = _assistant(history, call=True)
            function = {"name": item.name, "arguments": item.arguments}
            message.tool_calls = [*(message.tool_calls or []), {"id": item.call_id, "function": function}]
        else:
            _assistant(history, call=False).content = "".join(part.text for part in item.content)
    return history
