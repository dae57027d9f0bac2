"""The wire types of /v1/messages: msgspec Structs and nothing else. `None` is absent."""

from typing import Any, Literal

from msgspec import Raw, Struct

from fastchat_rs.server.protocol import ErrorBody, Length, Positive, Probability, Tokens


class Text(Struct, kw_only=True, tag_field="type", tag="text"):
    """Words."""

    text: str


class Base64Source(Struct, kw_only=True, tag_field="type", tag="base64"):
    """An image in the body."""

    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str


class UrlSource(Struct, kw_only=True, tag_field="type", tag="url"):
    """An image elsewhere."""

    url: str


class Image(Struct, kw_only=True, tag_field="type", tag="image"):
    """A picture."""

    source: Base64Source | UrlSource


class Thinking(Struct, kw_only=True, tag_field="type", tag="thinking"):
    """What the model thought; nothing is signed here."""

    thinking: str
    signature: str = ""


class ToolUse(Struct, kw_only=True, tag_field="type", tag="tool_use"):
    """A call."""

    id: str
    name: str
    input: Any


class ToolResult(Struct, kw_only=True, tag_field="type", tag="tool_result"):
    """What a call gave."""

    tool_use_id: str
    content: str | list[Text | Image] | None = None
    is_error: bool | None = None


Block = Text | Image | Thinking | ToolUse | ToolResult


class InputMessage(Struct, kw_only=True):
    """One turn."""

    role: Literal["user", "assistant"]
    content: str | list[Block]


class ToolSpec(Struct, kw_only=True):
    """A tool of the client; those that run on Anthropic's servers have other types."""

    name: str
    type: Literal["custom"] | None = None
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class ToolChoice(Struct, kw_only=True):
    """`name` belongs to the type tool."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(Struct, kw_only=True):
    """Whether the model thinks first."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Positive | None = None
    display: str | None = None


class OutputFormat(Struct, kw_only=True):
    """What the answer has to be."""

    type: Literal["json_schema"]
    schema: Raw


class OutputConfig(Struct, kw_only=True):
    """How the answer is to be."""

    format: OutputFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class Metadata(Struct, kw_only=True):
    """Who asks."""

    user_id: str | None = None


class CountRequest(Struct, kw_only=True):
    """POST /v1/messages/count_tokens, and what it has in common with /v1/messages."""

    model: str
    messages: list[InputMessage]
    system: str | list[Text] | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    # Run on Anthropic's servers: refused when they are given.
    mcp_servers: list[Any] | None = None
    context_management: dict[str, Any] | None = None
    # No effect: what is common to prompts is found without marks.
    cache_control: dict[str, Any] | None = None


class MessagesRequest(CountRequest, kw_only=True):
    """POST /v1/messages."""

    max_tokens: Length
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: Probability | None = None
    top_p: Probability | None = None
    top_k: Tokens | None = None
    metadata: Metadata | None = None
    service_tier: str | None = None
    container: Any = None
    inference_geo: str | None = None


class CountReply(Struct):
    """Reply of /v1/messages/count_tokens."""

    input_tokens: int


class Usage(Struct):
    """`input_tokens` leaves out what came from the cache."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
Answer = Text | Thinking | ToolUse


class Reply(Struct, tag_field="type", tag="message"):
    """Reply of /v1/messages."""

    id: str
    model: str
    content: list[Answer]
    usage: Usage
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    role: Literal["assistant"] = "assistant"


class MessageStart(Struct, tag_field="type", tag="message_start"):
    """First event of a stream."""

    message: Reply


class ContentBlockStart(Struct, tag_field="type", tag="content_block_start"):
    """A block begins, empty."""

    index: int
    content_block: Answer


class TextDelta(Struct, tag_field="type", tag="text_delta"):
    """More words."""

    text: str


class ThinkingDelta(Struct, tag_field="type", tag="thinking_delta"):
    """More thoughts."""

    thinking: str


class InputJsonDelta(Struct, tag_field="type", tag="input_json_delta"):
    """More of a call's input."""

    partial_json: str


BlockDelta = TextDelta | ThinkingDelta | InputJsonDelta


class ContentBlockDelta(Struct, tag_field="type", tag="content_block_delta"):
    """More of a block."""

    index: int
    delta: BlockDelta


class ContentBlockStop(Struct, tag_field="type", tag="content_block_stop"):
    """A block is complete."""

    index: int


class Ending(Struct):
    """Why an answer ended."""

    stop_reason: StopReason | None
    stop_sequence: str | None


class MessageDelta(Struct, tag_field="type", tag="message_delta"):
    """The end of a message."""

    delta: Ending
    usage: Usage


class MessageStop(Struct, tag_field="type", tag="message_stop"):
    """Last event of a stream."""


class Error(Struct, tag_field="type", tag="error"):
    """Every error, whole and in a stream."""

    error: ErrorBody


Event = MessageStart | ContentBlockStart | ContentBlockDelta | ContentBlockStop | MessageDelta | MessageStop | Error
PING = b'event: ping\ndata: {"type":"ping"}\n\n'
