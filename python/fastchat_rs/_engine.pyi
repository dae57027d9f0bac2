"""Typed face of the compiled engine (crates/fastchat-py): small plain values per call, no tensors.

Every method that can wait or work releases the GIL. Properties are read-only. Only `server/bridge.py`, `llm.py`,
`device.py` and `convert.py` import this module.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Final, Literal, final

__version__: str

class EngineError(Exception):
    """Base of every error the engine raises on purpose. `str(error)` is one line that is safe to show to a client."""

class InvalidRequestError(EngineError):
    """A value of a request is wrong. `param` names the field as `SamplingParams` and `submit` spell it."""

    param: str

class ContextLengthError(EngineError):
    """The prompt alone does not fit in the context or in the cache."""

    limit: int
    prompt_tokens: int

class OverloadedError(EngineError):
    """The waiting queue is full; try again later."""

class UnsupportedModelError(EngineError):
    """The model's configuration names something this engine does not do."""

class WeightsError(EngineError):
    """A model file is missing, damaged, or does not match its configuration."""

class CancelledError(EngineError):
    """The request was aborted, or the engine was shut down before it ended."""

class InternalError(EngineError):
    """The engine failed; the request is lost, the process goes on."""

_FinishReason = Literal["stop", "length", "abort", "error"]

@final
class StructuredOutput:
    """What a completion has to be; immutable, cheap to pass on. Nothing is compiled here.

    `Engine.submit` compiles it and raises `InvalidRequestError` with param `structured` and one line that names the
    keyword when it cannot be enforced. A choice under it ends with `stop` as soon as the value is complete.
    """

    @staticmethod
    def json_schema(schema: str) -> StructuredOutput:
        """A JSON value that the schema accepts. `InvalidRequestError` (param `structured`) if it is no JSON text."""
    @staticmethod
    def json_object() -> StructuredOutput:
        """Any JSON object."""
    @staticmethod
    def regex(pattern: str) -> StructuredOutput:
        """A text that the whole pattern matches."""
    @staticmethod
    def lark(grammar: str) -> StructuredOutput:
        """A text that `start` of the grammar derives."""
    @staticmethod
    def choice(choices: Sequence[str]) -> StructuredOutput:
        """Exactly one of the texts."""

@final
class ThinkingBudget:
    """How long one output may think; made by `ChatFormat.thinking_budget`."""

    tokens: Final[int]

@final
class SamplingParams:
    """How to choose tokens; immutable. Ranges are checked here, limits that need the model at `submit`.

    Raises `InvalidRequestError` whose `param` is the keyword's name.
    `top_k` -1 (the default) or 0 is off; `logprobs` k adds the k most likely tokens of each step; `prompt_logprobs` -1
    asks for the whole float32 matrix; `logit_bias` maps a token id to a number added to its logit; `max_tokens=None` is
    the remaining context (a larger number than that is clamped to it); `seed` is any signed 64-bit integer.
    A number that no such field can hold (n=-1) is Python's own OverflowError, a wrong type its TypeError.
    """

    def __new__(
        cls,
        *,
        n: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = -1,
        min_p: float = 0.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        include_stop_str_in_output: bool = False,
        ignore_eos: bool = False,
        max_tokens: int | None = None,
        min_tokens: int = 0,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        logit_bias: Mapping[int, float] | None = None,
        skip_special_tokens: bool = True,
        structured: StructuredOutput | None = None,
        thinking: ThinkingBudget | None = None,
    ) -> SamplingParams: ...
    n: Final[int]
    temperature: Final[float]
    top_p: Final[float]
    top_k: Final[int]
    min_p: Final[float]
    presence_penalty: Final[float]
    frequency_penalty: Final[float]
    repetition_penalty: Final[float]
    seed: Final[int | None]
    stop: Final[list[str]]
    stop_token_ids: Final[list[int]]
    include_stop_str_in_output: Final[bool]
    ignore_eos: Final[bool]
    max_tokens: Final[int | None]
    min_tokens: Final[int]
    logprobs: Final[int | None]
    prompt_logprobs: Final[int | None]
    logit_bias: Final[dict[int, float]]
    skip_special_tokens: Final[bool]
    structured: Final[StructuredOutput | None]
    thinking: Final[ThinkingBudget | None]

@final
class TokenLogprobs:
    """Log-probabilities of one step under the raw model distribution (before temperature and penalties)."""

    token_id: Final[int]
    logprob: Final[float]
    rank: Final[int]
    """1 = the most likely token."""
    top: Final[list[tuple[int, float]]]
    """The k most likely (token id, log-probability), best first."""

@final
class PromptLogprobs:
    """Log-probabilities of prompt tokens 1.. given those before them; row i belongs to token i + 1."""

    tokens: Final[list[TokenLogprobs]]
    """One entry per prompt token from the second on (empty when the whole matrix was asked for)."""
    matrix: Final[bytes | None]
    """`rows * vocab_size` little-endian float32, row-major, when `prompt_logprobs` was -1."""
    rows: Final[int]

@final
class Delta:
    """News of one choice since the last `take`, merged into one piece. `text` never ends inside a code point."""

    index: Final[int]
    text: Final[str]
    token_ids: Final[list[int]]
    logprobs: Final[list[TokenLogprobs] | None]
    finish_reason: Final[_FinishReason | None]
    stop_reason: Final[str | int | None]
    """The stop string or stop token id that ended the choice; None for eos and for length."""
    prompt_tokens: Final[int]
    completion_tokens: Final[int]
    """Tokens of this choice so far."""
    cached_tokens: Final[int]
    """Prompt tokens that came from the prefix cache."""
    error: Final[EngineError | None]
    """Why the choice ended with finish reason `error` or `abort`."""

@final
class RequestHandle:
    """One request in flight. Dropping the last reference aborts it, as does `abort`."""

    id: Final[int]
    prompt_token_ids: Final[list[int]]
    finished: Final[bool]
    """True once every choice has ended and its last delta was taken."""
    started: Final[bool]
    """True once it has left the queue and entered its first step."""
    def take(self) -> list[Delta]:
        """What has come since the last call, at most one delta per choice; never waits."""
    def wait(self, timeout: float | None = None) -> list[Delta]:
        """As `take`, but waits (without the GIL) until there is news, the request has ended, or `timeout` seconds."""
    def prompt_logprobs(self) -> PromptLogprobs | None:
        """Available from the first delta on when asked for; None otherwise."""
    def abort(self) -> None:
        """Frees the cache blocks within one step, wherever the request is. Twice does no harm."""

@final
class Subscription:
    """A doorbell for an event loop: `fileno()` becomes readable once per engine step that has news for its handles."""

    def fileno(self) -> int: ...
    def ready(self) -> list[int]:
        """Drains the doorbell and returns the ids of the handles with news; never waits."""
    def submit(
        self,
        prompt: str | Sequence[int] | MediaPrompt,
        params: SamplingParams,
        *,
        add_special_tokens: bool = True,
        cache_salt: str | None = None,
        priority: int = 0,
        tenant: str | None = None,
    ) -> RequestHandle:
        """As `Engine.submit`, with the news of this handle announced here."""
    def close(self) -> None: ...

ChatEventKind = Literal["content", "reasoning", "tool_call", "arguments"]

@final
class ChatEvent:
    """A piece of an answer. A call is one `tool_call` event followed by its `arguments` fragments."""

    kind: Final[ChatEventKind]
    text: Final[str]
    """Content, reasoning, the function's name (`tool_call`), or the next fragment of its arguments' JSON."""
    index: Final[int]
    """Of the tool call, from 0; 0 for content and reasoning."""

@final
class ChatParser:
    """Takes one choice's text apart as it comes; what it yields does not depend on how the text was cut."""

    def push(self, text: str) -> list[ChatEvent]: ...
    def finish(self) -> list[ChatEvent]:
        """What was held back; the parser is done after it."""

@final
class ChatFormat:
    """What a chat template says of how its model writes reasoning and tool calls."""

    reasoning: Final[bool]
    """The model writes its reasoning in a block of its own."""
    tools: Final[str]
    """Name of the call syntax ("hermes", ...), "json" where the template shows none."""
    needs_special_tokens: Final[bool]
    """Markers are special tokens: `skip_special_tokens` must be False for the parser to see them."""
    def parser(self, prompt: str, *, tools: str | None, reasoning: bool = True) -> ChatParser:
        """`prompt` is the rendered one (a block it leaves open counts), `tools` the JSON text of the OpenAI list.

        With `tools=None` call syntax is plain text, with `reasoning=False` a reasoning block is (channels are none in
        any case: what was not asked for becomes content). `InvalidRequestError` (param `tools`) when it is no list.
        """
    def constrain(
        self,
        prompt: str,
        *,
        tools: str,
        choice: str,
        parallel: bool,
        structured: StructuredOutput | None = None,
    ) -> StructuredOutput:
        """An answer that calls tools in the model's own syntax, after thinking where it thinks.

        `choice` is "required" or a function's name; `parallel` allows more than one call. `structured` speaks of
        content, which such an answer does not have. Raises `InvalidRequestError` (param `tools` or `tool_choice`)
        when that cannot be enforced.
        """
    def after_thinking(self, prompt: str, structured: StructuredOutput) -> StructuredOutput:
        """The same output, starting after the reasoning block where the model thinks."""
    def thinking_budget(self, prompt: str, tokens: int) -> ThinkingBudget | None:
        """A bound on the reasoning block of an output: after `tokens` of it the closing marker follows, whatever the
        model would have written. None where the model does not think.
        """

@final
class Image:
    """A picture as a caller has it; immutable. `submit` decodes it and raises `InvalidRequestError` (`images.<i>`).

    `detail` is "auto", "low" or "high"; low takes as few tokens as the model's rule allows.
    """

    @staticmethod
    def encoded(data: bytes, *, detail: str = "auto") -> Image:
        """A PNG, JPEG, WebP or GIF file; of what moves the first frame, upright as its EXIF orientation says."""
    @staticmethod
    def pixels(data: bytes, width: int, height: int, channels: int, *, detail: str = "auto") -> Image:
        """Rows of pixels from the top, 1 (grey), 3 (RGB) or 4 (RGBA) bytes each."""

@final
class MediaPrompt:
    """A prompt with places for pictures; immutable.

    `segments` are pairs of a text (or token ids) and whether it is literal. A text that is not may name control tokens,
    and stands for the next picture where it names the model's `image_marker`; a literal one is text throughout.
    """

    def __new__(cls, segments: Sequence[tuple[str | Sequence[int], bool]], images: Sequence[Image]) -> MediaPrompt: ...

@final
class EngineStats:
    """Counters since the start and gauges of now."""

    alive: Final[bool]
    running: Final[int]
    waiting: Final[int]
    free_blocks: Final[int]
    total_blocks: Final[int]
    block_size: Final[int]
    steps: Final[int]
    prompt_tokens: Final[int]
    generation_tokens: Final[int]
    cached_tokens: Final[int]
    """Prompt tokens served from the prefix cache."""
    preemptions: Final[int]
    draft_tokens: Final[int]
    """Tokens that prompt lookup proposed."""
    accepted_tokens: Final[int]
    """Those of them that were chosen."""
    forced_tokens: Final[int]
    """Tokens appended without a step, because a grammar or a thinking budget left no other."""
    graph_steps: Final[int]
    overlapped_steps: Final[int]
    """Steps that were replayed as graphs."""
    graph_failure: Final[str | None]
    """Why no more graphs are captured; steps of other sizes run eagerly."""
    disk_hits: Final[int]
    """Blocks read from the prefix cache on disk."""
    disk_written: Final[int]
    """Blocks written to it."""
    disk_damaged: Final[int]
    """Files of it that were not what was written, and are deleted."""
    disk_dropped: Final[int]
    """Blocks that could not be written, or not in time."""
    disk_bytes: Final[int]
    """Bytes that its directory holds."""

@final
class ModelInfo:
    """What was loaded; constant for the life of the engine."""

    chat_template: Final[str | None]
    bos_token: Final[str | None]
    eos_token: Final[str | None]
    bos_token_id: Final[int | None]
    eos_token_ids: Final[list[int]]
    has_tokenizer: Final[bool]
    max_model_len: Final[int]
    vocab_size: Final[int]
    """Width of a row of logits."""
    fingerprint: Final[str]
    """Hash of weights, kernels and settings that decide the output."""
    generation_defaults: Final[dict[str, float]]
    """What the model's generation_config.json says of the fields of `SamplingParams`."""
    kernels: Final[str]
    takes_images: Final[bool]
    """Whether prompts may have pictures."""
    image_marker: Final[str | None]
    """Spelling of the token that stands for a picture in a chat template's text."""
    spec_json: Final[str]
    """The resolved decoder description, as JSON."""
    prefix_disk: Final[str]
    """Whether blocks are kept on disk, in one line."""
    graphs: Final[str]
    """Whether decode steps become graphs, in one line."""

@final
class Engine:
    """One loaded model with its own thread. `model` is a .gguf file or a folder with config.json and *.safetensors."""

    def __new__(
        cls,
        model: str,
        *,
        device: str = "auto",
        cuda_libraries: Sequence[str] = ...,
        bf16_products: bool | None = None,
        max_model_len: int | None = None,
        kv_memory: int | None = None,
        kv_dtype: Literal["f16", "bf16", "f32"] | None = None,
        max_batch_tokens: int = 512,
        max_num_seqs: int = 256,
        max_queue: int = 512,
        enable_prefix_caching: bool = True,
        speculation: bool = True,
        enforce_eager: bool = False,
        mask_timeout: float = 1.0,
        threads: int | None = None,
        skip_tokenizer_init: bool = False,
        num_blocks: int | None = None,
        quantize: str | None = None,
        mmproj: PathLike[str] | str | None = None,
        prefix_cache_dir: PathLike[str] | str | None = None,
        prefix_cache_size: int = ...,
        tensor_parallel_size: int = 1,
    ) -> Engine:
        """Loads the weights and starts the engine thread. `kv_memory` in bytes; None lets the engine choose.

        `quantize` rounds matrices stored as floats to q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k or q6_k.
        `mmproj` is the file of the tower of a GGUF model that takes pictures; None takes the one beside the model.
        `prefix_cache_dir` keeps blocks of the prefix cache over a restart, at most `prefix_cache_size` bytes of them.
        `enforce_eager` runs every step launch by launch. `tensor_parallel_size` GPUs compute the model together.
        `cuda_libraries` are folders to look for NVIDIA's libraries in before the system's.
        `bf16_products` rounds inputs of bf16 weights to bf16 where the device multiplies that; None does on a GPU.
        """
    def submit(
        self,
        prompt: str | Sequence[int] | MediaPrompt,
        params: SamplingParams,
        *,
        add_special_tokens: bool = True,
        cache_salt: str | None = None,
        priority: int = 0,
        tenant: str | None = None,
    ) -> RequestHandle:
        """Tokenises and checks on the calling thread, then hands over. A lower `priority` is served first.

        Requests of one `tenant` wait for each other; tenants share the engine evenly.
        """
    def count_tokens(self, prompt: str | Sequence[int] | MediaPrompt, *, add_special_tokens: bool = True) -> int:
        """Tokens of a prompt, those of its pictures by their headers. Raises as `submit`, if not for damaged pixels."""
    def subscribe(self) -> Subscription: ...
    def encode(self, text: str, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...
    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text, as bytes (a part of a code point is possible); special tokens by name."""
    def token_to_id(self, token: str) -> int | None: ...
    def fence(self, text: str, mark: str) -> str:
        """The text with every name of a control token between two marks, to be split there once it is rendered."""
    def chat_format(self, chat_template: str) -> ChatFormat:
        """Reads the source of a chat template; an unknown one has no reasoning and the "json" fallback."""
    def stats(self) -> EngineStats: ...
    def info(self) -> ModelInfo: ...
    def shutdown(self) -> None:
        """Ends every request with `CancelledError` and joins the thread. Twice does no harm."""

@final
class Embedder:
    """One loaded encoder with its own thread. `model` is a folder with config.json and *.safetensors."""

    def __new__(
        cls,
        model: str,
        *,
        device: str = "auto",
        cuda_libraries: Sequence[str] = ...,
        bf16_products: bool | None = None,
        max_model_len: int | None = None,
        max_batch_tokens: int = 2048,
        max_queue: int = 65536,
        threads: int | None = None,
        skip_tokenizer_init: bool = False,
        quantize: str | None = None,
    ) -> Embedder:
        """Loads the weights and starts the engine thread."""
    def embed(
        self, inputs: Sequence[str | Sequence[int]], *, add_special_tokens: bool = True
    ) -> tuple[list[bytes], list[int]]:
        """Vectors as little-endian f32, and the tokens of each text. Waits; the GIL is free meanwhile."""
    def score(
        self, query: str, documents: Sequence[str], *, max_tokens_per_doc: int | None = None
    ) -> tuple[list[float], list[int]]:
        """How well each document answers the query, and the tokens read for it. For cross-encoders; waits."""
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...
    makes_scores: Final[bool]
    """A cross-encoder, which has `score` and no `embed`."""
    max_model_len: Final[int]
    vocab_size: Final[int]
    dimensions: Final[int]
    fingerprint: Final[str]
    kernels: Final[str]
    alive: Final[bool]
    def shutdown(self) -> None:
        """Ends every request with `CancelledError` and joins the thread. Twice does no harm."""

def is_encoder(model: str) -> bool:
    """Whether a model holds an encoder, for `Embedder`, and not a decoder, for `Engine`."""

def check_kernels(
    device: str, *, cuda_libraries: Sequence[str] = ...
) -> tuple[str, list[tuple[str, float, float, str | None]]]:
    """Every operation of a device's kernels against the plain default on the CPU.

    The name of the kernels, and per operation its name, largest relative difference, what that may be, and its error.
    """

def probe_device(
    device: str, *, cuda_libraries: Sequence[str] = ...
) -> tuple[str, float, float, tuple[int, int] | None]:
    """The name of the kernels, bytes a second of a copy, operations a second of a matrix product, and the free and all
    bytes of the device's own memory."""

def automatic_kv_memory(weights: int) -> int:
    """Budget of all caches when nothing is said, for several models whose `weights` bytes are not loaded yet."""

def inspect(model: str, mmproj: PathLike[str] | str | None = None) -> str:
    """Resolved description, tensor kinds and byte counts of a model as JSON, without loading its weights."""

def machine_limits(threads: int | None = None) -> tuple[float, float, str]:
    """Bytes read and 8-bit operations a second, measured for a third of a second; the name of the kernels."""

def convert(model: str, out: str, kind: str | None = None) -> str:
    """Writes a model as the GGUF file `out`; what was written, as JSON.

    `kind` is f32, f16, bf16 or one that `Engine` rounds to; None keeps what is stored.
    """
