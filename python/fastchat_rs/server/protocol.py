"""The wire types: msgspec Structs and nothing else. `None` is absent; ranges that need no model or limit are here."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

Tokens = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
# Of an answer: what is more than the context is clamped, however large.
Length = Annotated[int, Meta(ge=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Probability = Annotated[float, Meta(ge=0, le=1)]


def _null() -> Raw:
    """JSON that is kept as it is, absent."""
    return Raw(b"null")


class StreamOptions(Struct, kw_only=True):
    """Only with `stream`."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchemaFormat(Struct, kw_only=True):
    """`schema` as OpenAI has it; it is enforced with and without `strict`."""

    schema: Raw = msgspec.field(default_factory=_null)
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct, kw_only=True):
    """`json_schema` belongs to the type of that name; `schema` to json_object, as llama.cpp has it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema: Raw = msgspec.field(default_factory=_null)


class StructuredOutputs(Struct, kw_only=True):
    """vLLM's object: exactly one of these."""

    json: Raw = msgspec.field(default_factory=_null)
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class ReceiptOptions(Struct, kw_only=True):
    """`{"applied": true}` puts the receipt into the body too."""

    applied: bool | None = None


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
    fastchat: ReceiptOptions | None = None
    # Structured output: at most one.
    response_format: ResponseFormat | None = None
    regex: str | None = None
    guided_regex: str | None = None
    grammar: str | None = None
    guided_grammar: str | None = None
    guided_json: Raw = msgspec.field(default_factory=_null)
    choice: list[str] | None = None
    guided_choice: list[str] | None = None
    structured_outputs: StructuredOutputs | None = None


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
    function_call: dict[str, Any] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class FunctionSpec(Struct, kw_only=True, omit_defaults=True):
    """A function the client offers. The order of the fields is the one that templates print."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, kw_only=True):
    """One entry of `tools`."""

    type: str | None = None
    function: FunctionSpec


class FunctionName(Struct, kw_only=True):
    """Part of `NamedToolChoice`."""

    name: str


class NamedToolChoice(Struct, kw_only=True):
    """`tool_choice` that names a function."""

    type: str | None = None
    function: FunctionName


class ChatRequest(SamplingFields, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Message] | None = None
    prompt: str | None = None
    max_tokens: Length | None = None
    max_completion_tokens: Length | None = None
    logprobs: bool | None = None
    top_logprobs: Tokens | None = None
    tools: list[Tool] | None = None
    tool_choice: str | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    # What tools and tool_choice were called before; answered in the same words.
    functions: list[FunctionSpec] | None = None
    function_call: str | FunctionName | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    thinking_budget: Tokens | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None


class CompletionRequest(SamplingFields, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | Tokens | list[Tokens]] | None = None
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
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
    tools: list[Tool] | None = None
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


class FunctionCall(Struct):
    """What is called; `arguments` is JSON as text."""

    name: str
    arguments: str


class ToolCall(Struct):
    """A call in a whole message."""

    id: str
    function: FunctionCall
    type: str = "function"


class FunctionCallDelta(Struct):
    """The name comes first and once, then pieces of the arguments."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallDelta(Struct):
    """What a chunk adds to a call."""

    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: FunctionCallDelta | UnsetType = UNSET


class AssistantMessage(Struct):
    """The answer of a choice. The reasoning goes by two names."""

    content: str | None
    role: str = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET
    function_call: FunctionCall | UnsetType = UNSET


class MessageDelta(Struct):
    """What a chunk adds to a choice."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    function_call: FunctionCallDelta | UnsetType = UNSET


class Applied(Struct, omit_defaults=True):
    """One line of the receipt: a field that was clamped (to `value`) or had no effect (because of `reason`)."""

    field: str
    effect: Literal["clamped", "ignored"]
    value: float | int | None = None
    reason: str | None = None


class Receipt(Struct):
    """Part of a reply, or of the first chunk, when the request has `fastchat.applied`."""

    applied: list[Applied]


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
    fastchat: Receipt | UnsetType = UNSET


class ChatCompletionChunk(Struct):
    """Event of a chat stream. `usage` is there only when usage was asked for."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None | UnsetType = UNSET
    object: str = "chat.completion.chunk"
    fastchat: Receipt | UnsetType = UNSET


class Completion(Struct):
    """Reply of the completions route, and event of its stream."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None | UnsetType = UNSET
    object: str = "text_completion"
    fastchat: Receipt | UnsetType = UNSET


class EmbeddingRequest(Struct, kw_only=True):
    """Body of /v1/embeddings: one text or many, as strings or token ids."""

    model: str
    input: str | Annotated[list[str | Tokens | list[Tokens]], Meta(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Positive | None = None
    # Accepted, no effect here.
    user: str | None = None


class EmbeddingItem(Struct):
    """The vector of one text, as numbers or as base64 of little-endian f32."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingUsage(Struct):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingReply(Struct):
    """Reply of /v1/embeddings."""

    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage
    object: str = "list"


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


class VersionReply(Struct):
    """Reply of /version."""

    version: str


class TokenizeReply(Struct):
    """Reply of /v1/tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeReply(Struct):
    """Reply of /v1/detokenize."""

    prompt: str
