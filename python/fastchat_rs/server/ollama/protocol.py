"""The wire types of Ollama's routes: msgspec Structs and nothing else. `None` is absent; `stream` is on unless off."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from fastchat_rs.server.protocol import Penalty, Positive, Probability, Tool


def _null() -> Raw:
    """JSON that is kept as it is, absent."""
    return Raw(b"null")


class Options(Struct, kw_only=True):
    """Sampling. What a server decides when it starts (num_ctx, num_gpu, ..) has no effect."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    top_p: Probability | None = None
    min_p: Probability | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    num_predict: Annotated[int, Meta(ge=-2, le=2**31 - 1)] | None = None
    stop: str | list[str] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    # Refused unless they are off.
    mirostat: int | None = None
    tfs_z: float | None = None
    typical_p: float | None = None
    penalize_newline: bool | None = None
    # No effect here.
    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    num_thread: int | None = None
    num_keep: int | None = None
    main_gpu: int | None = None
    use_mmap: bool | None = None
    numa: bool | None = None
    low_vram: bool | None = None
    repeat_last_n: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None


class Call(Struct, kw_only=True):
    """What is called; the arguments are an object."""

    name: str
    arguments: dict[str, Any]


class ToolCall(Struct, kw_only=True):
    """A call of the model."""

    function: Call
    id: str | None = None


class InputMessage(Struct, kw_only=True):
    """One turn."""

    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class GenerationFields(Struct, kw_only=True):
    """What /api/chat and /api/generate have in common."""

    model: str
    stream: bool | None = None
    format: Raw = msgspec.field(default_factory=_null)
    options: Options | None = None
    think: bool | Literal["low", "medium", "high"] | None = None
    # No effect: models stay.
    keep_alive: str | float | None = None


class ChatBody(GenerationFields, kw_only=True):
    """POST /api/chat."""

    messages: list[InputMessage] | None = None
    tools: list[Tool] | None = None


class GenerateBody(GenerationFields, kw_only=True):
    """POST /api/generate."""

    prompt: str | None = None
    system: str | None = None
    images: list[str] | None = None
    raw: bool | None = None
    # Refused when they are given.
    template: str | None = None
    suffix: str | None = None
    context: list[int] | None = None


class EmbedBody(Struct, kw_only=True):
    """POST /api/embed."""

    model: str
    input: str | list[str]
    truncate: bool | None = None
    dimensions: Positive | None = None
    options: Options | None = None
    keep_alive: str | float | None = None


class LegacyEmbedBody(Struct, kw_only=True):
    """POST /api/embeddings."""

    model: str
    prompt: str
    options: Options | None = None
    keep_alive: str | float | None = None


class ShowBody(Struct, kw_only=True):
    """POST /api/show."""

    model: str
    verbose: bool | None = None


class OutputMessage(Struct):
    """What the model says."""

    content: str
    role: str = "assistant"
    thinking: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class Figures(Struct, kw_only=True):
    """In the last object; durations in nanoseconds."""

    done_reason: str | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET


class ChatReply(Figures, kw_only=True):
    """Reply of /api/chat, and each line of its stream."""

    model: str
    created_at: str
    message: OutputMessage
    done: bool = False


class GenerateReply(Figures, kw_only=True):
    """Reply of /api/generate, and each line of its stream."""

    model: str
    created_at: str
    response: str
    thinking: str | UnsetType = UNSET
    done: bool = False


class EmbedReply(Struct):
    """Reply of /api/embed."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class LegacyEmbedReply(Struct):
    """Reply of /api/embeddings."""

    embedding: list[float]


class Details(Struct):
    """Of a model's files."""

    format: str


class ModelEntry(Struct):
    """A model in a list."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class ModelEntries(Struct):
    """Reply of /api/tags and /api/ps."""

    models: list[ModelEntry]


class ShowReply(Struct):
    """Reply of /api/show."""

    modified_at: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    template: str


class VersionReply(Struct):
    """Reply of /api/version."""

    version: str


class Error(Struct):
    """Every error, whole and as the last line of a stream."""

    error: str
