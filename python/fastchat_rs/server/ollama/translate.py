"""A request of Ollama's -> the chat route's request. Knows no output."""

from dataclasses import dataclass

from msgspec import Raw

from fastchat_rs.server.api_error import bad_field
from fastchat_rs.server.ollama.protocol import ChatBody, GenerateBody, GenerationFields, InputMessage, Options
from fastchat_rs.server.protocol import ChatRequest, ContentPart, JsonSchemaFormat, Message, ResponseFormat
from fastchat_rs.server.sampling import unsupported

_NAMES = {
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
    **{
        name: f"options.{name}"
        for name in (
            *("temperature", "top_k", "top_p", "min_p", "seed", "stop"),
            *("presence_penalty", "frequency_penalty"),
        )
    },
    "response_format": "format",
    "enable_thinking": "think",
    "reasoning_effort": "think",
}
# Values by which an option does nothing.
_OFF = {"mirostat": 0, "tfs_z": 1.0, "typical_p": 1.0, "penalize_newline": False}
_NO_EFFECT = (
    *("num_ctx", "num_batch", "num_gpu", "num_thread", "num_keep", "main_gpu", "use_mmap", "numa", "low_vram"),
    *("repeat_last_n", "mirostat_tau", "mirostat_eta"),
)
# How the base64 text of an image begins -> its type.
_IMAGES = {"iVBORw0K": "png", "/9j/": "jpeg", "R0lGOD": "gif", "UklGR": "webp"}


@dataclass
class Translated:
    """The request in the chat route's words, and how to speak of it in the client's."""

    body: ChatRequest
    names: dict[str, str]
    unused: list[str]


def chat(body: ChatBody) -> Translated:
    """POST /api/chat."""
    chat = _common(body)
    chat.messages = [_message(f"messages.{index}", one) for index, one in enumerate(body.messages or [])]
    chat.tools = body.tools or None
    return Translated(chat, _NAMES, _unused(body))


def generate(body: GenerateBody) -> Translated:
    """POST /api/generate."""
    for name, what in (
        ("template", "a template from a client"),
        ("suffix", "filling in before a suffix"),
        ("context", "an encoded conversation; /api/chat takes one as messages"),
    ):
        if getattr(body, name):
            unsupported(name, what)
    chat = _common(body)
    prompt = body.prompt or ""
    if body.raw:
        for name in ("system", "images"):
            if getattr(body, name):
                unsupported(name, "with raw, which has no template,")
        chat.prompt = prompt
        return Translated(chat, _NAMES, _unused(body))
    system = [Message(role="system", content=body.system)] if body.system else []
    user = InputMessage(role="user", content=prompt, images=body.images)
    chat.messages = [*system, _message("images", user)]
    names = {**_NAMES, f"messages.{len(system)}": "prompt", "messages": "prompt"}
    return Translated(chat, {"messages.0": "system", **names} if system else names, _unused(body))


def _common(body: GenerationFields) -> ChatRequest:
    chat = ChatRequest(model=body.model)
    chat.stream = body.stream is not False
    chat.response_format = _format(bytes(body.format).strip())
    if isinstance(body.think, str):
        chat.reasoning_effort = body.think
    else:
        chat.enable_thinking = body.think
    if body.options is not None:
        _set_options(chat, body.options)
    return chat


def _set_options(chat: ChatRequest, options: Options) -> None:
    for name, off in _OFF.items():
        if getattr(options, name) not in (None, off):
            unsupported(f"options.{name}", f"a value other than {off}")
    if options.num_predict == 0:
        raise bad_field("options.num_predict", "options.num_predict: 0 asks for nothing; -1 is no limit")
    if options.num_predict is not None and options.num_predict > 0:
        chat.max_tokens = options.num_predict
    chat.temperature = options.temperature
    chat.top_k, chat.top_p, chat.min_p = options.top_k, options.top_p, options.min_p
    chat.seed, chat.stop = options.seed, options.stop
    chat.repetition_penalty = options.repeat_penalty
    chat.presence_penalty, chat.frequency_penalty = options.presence_penalty, options.frequency_penalty


def _unused(body: GenerationFields) -> list[str]:
    unused = ["keep_alive"] if body.keep_alive is not None else []
    options = body.options
    return unused + [f"options.{name}" for name in _NO_EFFECT if options and getattr(options, name) is not None]


def _format(raw: bytes) -> ResponseFormat | None:
    """Nothing, `"json"`, or a schema."""
    if raw in (b"null", b'""'):
        return None
    if raw == b'"json"':
        return ResponseFormat(type="json_object")
    if not raw.startswith(b"{"):
        raise bad_field("format", 'format: must be "json" or a schema')
    return ResponseFormat(type="json_schema", json_schema=JsonSchemaFormat(schema=Raw(raw)))


def _message(place: str, message: InputMessage) -> Message:
    parts = [_image(place, index, data) for index, data in enumerate(message.images or [])]
    text = message.content or ""
    return Message(
        role=message.role,
        content=[*parts, ContentPart(type="text", text=text)] if parts else text,
        reasoning_content=message.thinking,
        tool_calls=[
            {"id": call.id, "function": {"name": call.function.name, "arguments": call.function.arguments}}
            for call in message.tool_calls or []
        ]
        or None,
        tool_call_id=message.tool_call_id,
        name=message.tool_name,
    )


def _image(place: str, index: int, data: str) -> ContentPart:
    kind = next((kind for start, kind in _IMAGES.items() if data.startswith(start)), None)
    if kind is None:
        where = f"{place}.images.{index}"
        raise bad_field(where, f"{where}: not the base64 of a PNG, JPEG, GIF or WebP image")
    return ContentPart(type="image_url", image_url={"url": f"data:image/{kind};base64,{data}"})
