"""What `LLM` returns, in vLLM's shapes, put together from the engine's deltas. Knows no threads or loops."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastchat_rs._engine import ChatParser, Delta, PromptLogprobs, RequestHandle, TokenLogprobs

FinishReason = Literal["stop", "length", "abort", "error"]
Decode = Callable[[int], str]


@dataclass(frozen=True)
class Logprob:
    """One candidate of a step under the raw model distribution; rank 1 is the most likely."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass(frozen=True)
class Usage:
    """Tokens of one request; a prompt shared by n outputs counts once."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    @property
    def total_tokens(self) -> int:
        """Read and written."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Timings:
    """Seconds from submitting."""

    first_token: float
    total: float


@dataclass(frozen=True)
class ToolCall:
    """A function the model wants called; `arguments` is JSON as text."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ChatMessage:
    """An answer taken apart: what is said, what was thought, what is to be called."""

    content: str
    reasoning: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list[ToolCall])

    @classmethod
    def read(cls, parser: "ChatParser", text: str) -> "ChatMessage":
        """All of a choice's text."""
        parts: dict[str, list[str]] = {"content": [], "reasoning": []}
        names: list[str] = []
        arguments: list[list[str]] = []
        for event in [*parser.push(text), *parser.finish()]:
            if event.kind == "tool_call":
                names.append(event.text)
                arguments.append([])
            elif event.kind == "arguments":
                arguments[event.index].append(event.text)
            else:
                parts[event.kind].append(event.text)
        calls = [ToolCall(name, "".join(pieces)) for name, pieces in zip(names, arguments, strict=True)]
        return cls("".join(parts["content"]), "".join(parts["reasoning"]) or None, calls)


@dataclass(frozen=True)
class CompletionOutput:
    """One answer to a prompt."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None
    """Per token its candidates by id, the chosen one among them; None unless asked for."""
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    """The stop string or stop token id that ended it; None for eos and for length."""
    message: ChatMessage | None = None
    """The text taken apart, in what `LLM.chat` returns."""


@dataclass(frozen=True)
class RequestOutput:
    """Everything about one prompt."""

    request_id: int
    prompt: str | None
    """None when the prompt was given as ids."""
    prompt_token_ids: list[int]
    prompt_logprobs: "NDArray[np.float32] | list[dict[int, Logprob] | None] | None"
    """With `prompt_logprobs=-1` a float32 array [len(prompt) - 1, vocabulary], row i = log-probabilities of token i+1.
    With k >= 0 per prompt token its candidates; the first token has none."""
    outputs: list[CompletionOutput]
    usage: Usage
    timings: Timings

    @property
    def finished(self) -> bool:
        """Whether every output has ended; always so in what `LLM` returns."""
        return all(output.finish_reason is not None for output in self.outputs)


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed answer. `text` never ends inside a code point."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    usage: Usage


def chunk_of(delta: "Delta", decode: Decode) -> Chunk:
    """A delta in the shape of a stream."""
    return Chunk(
        delta.index,
        delta.text,
        delta.token_ids,
        None if delta.logprobs is None else [candidates(step, decode) for step in delta.logprobs],
        delta.finish_reason,
        delta.stop_reason,
        Usage(delta.prompt_tokens, delta.completion_tokens, delta.cached_tokens),
    )


def candidates(step: "TokenLogprobs", decode: Decode) -> dict[int, Logprob]:
    """The most likely tokens of a step, and the chosen one."""
    shaped = {id: Logprob(logprob, rank, decode(id)) for rank, (id, logprob) in enumerate(step.top, start=1)}
    shaped[step.token_id] = Logprob(step.logprob, step.rank, decode(step.token_id))
    return shaped


def prompt_logprobs(got: "PromptLogprobs | None", decode: Decode) -> Any:
    """The engine's log-probabilities of a prompt in one of the two shapes of `RequestOutput`."""
    if got is None:
        return None
    matrix = got.matrix
    if matrix is None:
        return [None, *(candidates(step, decode) for step in got.tokens)]
    # Late: the server starts faster without it.
    import numpy as np

    flat: Any = np.frombuffer(matrix, dtype="<f4")
    return flat.reshape(got.rows, flat.size // got.rows if got.rows else 0)


@dataclass
class _Choice:
    text: list[str] = field(default_factory=list[str])
    token_ids: list[int] = field(default_factory=list[int])
    steps: "list[TokenLogprobs] | None" = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


class Collector:
    """Gathers the deltas of one request."""

    def __init__(self, handle: "RequestHandle", prompt: str | None, decode: Decode) -> None:
        self.handle = handle
        self.generated = 0
        self._prompt = prompt
        self._decode = decode
        self._choices: dict[int, _Choice] = {}
        self._cached = 0
        self._began = time.perf_counter()
        self._first: float | None = None

    def add(self, deltas: "list[Delta]") -> None:
        """Takes news; raises the engine's error when a choice failed."""
        for delta in deltas:
            if delta.error is not None:
                raise delta.error
            if self._first is None and delta.token_ids:
                self._first = time.perf_counter()
            choice = self._choices.setdefault(delta.index, _Choice())
            choice.text.append(delta.text)
            choice.token_ids += delta.token_ids
            self.generated += len(delta.token_ids)
            if delta.logprobs is not None:
                choice.steps = (choice.steps or []) + delta.logprobs
            if delta.finish_reason is not None:
                choice.finish_reason, choice.stop_reason = delta.finish_reason, delta.stop_reason
            self._cached = max(self._cached, delta.cached_tokens)

    def output(self) -> RequestOutput:
        """The whole, once the handle has finished."""
        now = time.perf_counter()
        ids = self.handle.prompt_token_ids
        return RequestOutput(
            request_id=self.handle.id,
            prompt=self._prompt,
            prompt_token_ids=ids,
            prompt_logprobs=prompt_logprobs(self.handle.prompt_logprobs(), self._decode),
            outputs=[self._shaped(index) for index in sorted(self._choices)],
            usage=Usage(len(ids), self.generated, self._cached),
            timings=Timings((self._first or now) - self._began, now - self._began),
        )

    def _shaped(self, index: int) -> CompletionOutput:
        choice = self._choices[index]
        logprobs = None if choice.steps is None else [candidates(step, self._decode) for step in choice.steps]
        text = "".join(choice.text)
        return CompletionOutput(index, text, choice.token_ids, logprobs, choice.finish_reason, choice.stop_reason)
