"""The wire types: msgspec Structs and nothing else. `None` is absent; ranges that need no model or limit are here."""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

Tokens = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Probability = Annotated[float, Meta(ge=0, le=1)]


class StreamOptions(Struct, kw_only=True):
    """Only with `stream`."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingFields(Struct, kw_only=True):
    """Fields that chat and text completions share."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    min_tokens: Tokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Probability | None = None
    n: Positive | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Tokens] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    # Accepted, no effect here.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    # Structured output.
    response_format: Any = None
    regex: Any = None
    guided_regex: Any = None
    grammar: Any = None
    guided_grammar: Any = None
    guided_json: Any = None
    choice: Any = None
    guided_choice: Any = None
    structured_outputs: Any = None


class ContentPart(Struct, kw_only=True):
    """A piece of a message's content."""

    type: str
    text: str | None = None
    image_url: Any = None


class Message(Struct, kw_only=True):
    """One turn. Which fields a role may have is checked in chat.py, so that the error names the place."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class ChatRequest(SamplingFields, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Message] | None = None
    prompt: str | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Tokens | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None


class CompletionRequest(SamplingFields, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[Tokens]] | None = None
    max_tokens: Tokens | None = None
    logprobs: Tokens | None = None
    prompt_logprobs: Tokens | None = None
    echo: bool | None = None
    best_of: Positive | None = None
    suffix: str | None = None
    add_special_tokens: bool | None = None


class TokenizeRequest(Struct, kw_only=True):
    """POST /v1/tokenize."""

    model: str
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Struct, kw_only=True):
    """POST /v1/detokenize."""

    model: str
    tokens: list[Tokens]
    skip_special_tokens: bool | None = None


class PromptTokensDetails(Struct):
    """Part of `Usage`."""

    cached_tokens: int = 0


class CompletionTokensDetails(Struct):
    """Part of `Usage`."""

    reasoning_tokens: int = 0


class Usage(Struct):
    """What was read and written."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails = msgspec.field(default_factory=PromptTokensDetails)
    completion_tokens_details: CompletionTokensDetails = msgspec.field(default_factory=CompletionTokensDetails)


class TopLogprob(Struct):
    """One candidate of a step."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(Struct):
    """One step of a chat choice."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    """Logprobs of a chat choice or of a chunk of it."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class CompletionLogprobs(Struct):
    """The legacy shape: four lists of equal length."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class PromptLogprob(Struct):
    """One candidate at one place of the prompt (vLLM's shape)."""

    logprob: float
    rank: int
    decoded_token: str


class AssistantMessage(Struct):
    """The answer of a choice."""

    content: str | None
    role: str = "assistant"
    refusal: None = None


class MessageDelta(Struct):
    """What a chunk adds to a choice."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChoice(Struct):
    """A choice of a whole chat reply."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatChunkChoice(Struct):
    """A choice in a chunk."""

    index: int
    delta: MessageDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class CompletionChoice(Struct):
    """A choice of a text completion, whole or in a chunk."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | UnsetType = UNSET


class ChatCompletion(Struct):
    """Reply of the chat route."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    object: str = "chat.completion"


class ChatCompletionChunk(Struct):
    """Event of a chat stream. `usage` is there only when usage was asked for."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None | UnsetType = UNSET
    object: str = "chat.completion.chunk"


class Completion(Struct):
    """Reply of the completions route, and event of its stream."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None | UnsetType = UNSET
    object: str = "text_completion"


class ErrorBody(Struct):
    """What went wrong; `param` names the field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Struct):
    """Every error of every route, and the last event of a stream that failed."""

    error: ErrorBody


class ModelCard(Struct):
    """One entry of /v1/models."""

    id: str
    created: int
    max_model_len: int
    object: str = "model"
    owned_by: str = "fastchat_rs"


class ModelList(Struct):
    """Reply of /v1/models."""

    data: list[ModelCard]
    object: str = "list"


class TokenizeReply(Struct):
    """Reply of /v1/tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeReply(Struct):
    """Reply of /v1/detokenize."""

    prompt: str
