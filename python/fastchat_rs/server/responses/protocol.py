"""The wire types of /v1/responses: msgspec Structs and nothing else. `None` is absent."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from fastchat_rs.server.protocol import Length, Positive, Probability, Tokens


def _null() -> Raw:
    """JSON that is kept as it is, absent."""
    return Raw(b"null")


class Part(Struct, kw_only=True):
    """A piece of an item's content. Which types an item may have is checked in translate.py, which names the place."""

    type: str
    text: str | None = None
    image_url: str | None = None
    refusal: str | None = None


class Item(Struct, kw_only=True):
    """An entry of `input`: a message (with or without its type), a call, its output, or reasoning."""

    type: str = "message"
    role: str | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None
    summary: list[Part] | None = None


class ToolSpec(Struct, kw_only=True):
    """A tool. Only functions of the client are served."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedChoice(Struct, kw_only=True):
    """`tool_choice` that names a function."""

    type: str
    name: str | None = None


class TextFormat(Struct, kw_only=True):
    """What the answer has to be; `schema`, `name` and `strict` belong to json_schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema: Raw = msgspec.field(default_factory=_null)
    strict: bool | None = None


class TextConfig(Struct, kw_only=True):
    """How the answer is written."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(Struct, kw_only=True):
    """How the model thinks."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class StreamOptions(Struct, kw_only=True):
    """Nothing is obfuscated here."""

    include_obfuscation: bool | None = None


class ResponsesRequest(Struct, kw_only=True):
    """POST /v1/responses."""

    model: str
    input: str | list[Item]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: Length | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    top_logprobs: Tokens | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: str | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    include: list[str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, str] | None = None
    # Kept by OpenAI: refused when they are given.
    conversation: Any = None
    prompt: Any = None
    context_management: Any = None
    # Accepted, no effect here.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    max_tool_calls: Positive | None = None


class OutputTopLogprob(Struct):
    """A candidate of a step."""

    token: str
    logprob: float
    bytes: list[int]


class OutputLogprob(Struct):
    """A step."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[OutputTopLogprob]


class OutputText(Struct, tag_field="type", tag="output_text"):
    """What the model says."""

    text: str
    annotations: list[Any] = []
    logprobs: list[OutputLogprob] = []


class ReasoningText(Struct, tag_field="type", tag="reasoning_text"):
    """What it thinks."""

    text: str


class MessageItem(Struct, tag_field="type", tag="message"):
    """An answer in words."""

    id: str
    status: str
    content: list[OutputText]
    role: str = "assistant"


class ReasoningItem(Struct, tag_field="type", tag="reasoning"):
    """Thoughts, as they are: there is no summary."""

    id: str
    status: str
    content: list[ReasoningText]
    summary: list[Any] = []


class FunctionCallItem(Struct, tag_field="type", tag="function_call"):
    """A call; `arguments` is JSON as text."""

    id: str
    status: str
    call_id: str
    name: str
    arguments: str


OutputItem = MessageItem | ReasoningItem | FunctionCallItem
OutputPart = OutputText | ReasoningText


class InputDetails(Struct):
    """Part of `Usage`."""

    cached_tokens: int
    # To write into the cache costs nobody anything.
    cache_write_tokens: int = 0


class OutputDetails(Struct):
    """Part of `Usage`."""

    reasoning_tokens: int


class Usage(Struct):
    """What was read and written."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputDetails
    output_tokens_details: OutputDetails


class Failure(Struct):
    """Why a response failed."""

    code: str
    message: str


class Incomplete(Struct):
    """Why a response ended early."""

    reason: str


Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class Response(Struct, kw_only=True):
    """Reply of /v1/responses. What the request said is said again."""

    id: str
    object: str = "response"
    created_at: int
    status: Status
    background: bool
    error: Failure | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None = None
    reasoning: ReasoningConfig
    store: bool
    temperature: float
    text: TextConfig
    tool_choice: str | NamedChoice
    tools: list[ToolSpec]
    top_p: float
    truncation: str = "disabled"
    usage: Usage | None = None
    user: str | None = None


class Deleted(Struct):
    """Reply of DELETE."""

    id: str
    object: str = "response"
    deleted: bool = True
