"""The common walk of the generating routes: decode the body, submit, watch the client, answer, clean up."""

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

from fastchat_rs.server.bridge import ContextLengthError, Generation, InvalidRequestError, MediaPrompt, SamplingParams
from fastchat_rs.server.decode import BodyDecoder
from fastchat_rs.server.errors import to_api_error
from fastchat_rs.server.fetch import ImageFetcher
from fastchat_rs.server.http import Request
from fastchat_rs.server.metrics import Metrics
from fastchat_rs.server.receipt import Notes
from fastchat_rs.server.responses.store import ResponseStore
from fastchat_rs.server.state import Served, State
from fastchat_rs.server.stream import Answer, Shape, Watcher
from fastchat_rs.server.structured import reworded
from fastchat_rs.server.usage import UsageCounter

T = TypeVar("T")

# Larger bodies are decoded on a worker thread: about a millisecond of JSON.
_INLINE_BYTES = 256 * 1024


class _IdFields(TypedDict):
    id: str
    created: int
    model: str
    system_fingerprint: str


@dataclass(frozen=True)
class Ids:
    """What all chunks of an answer have in common."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    @classmethod
    def new(cls, prefix: str, model: str, served: Served) -> "Ids":
        """A fresh id, now."""
        return cls(prefix + uuid.uuid4().hex, int(time.time()), model, served.fingerprint)

    def fields(self) -> _IdFields:
        """As keyword arguments of the reply types."""
        return {
            "id": self.id,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }


@dataclass(frozen=True)
class Submission:
    """What goes to the engine, and how the answer goes out."""

    prompts: Sequence[str | Sequence[int] | MediaPrompt]
    params: SamplingParams
    add_special_tokens: bool
    cache_salt: str | None
    priority: int
    stream: bool
    prompt_field: str
    """The field an engine's complaint about the prompt is about."""
    max_tokens_field: str = "max_tokens"
    structured_field: str = "response_format"
    """The field an engine's complaint about the constraint is about."""


class Context:
    """What a handler is given besides the request."""

    def __init__(self, state: State, metrics: Metrics) -> None:
        self.state = state
        self.metrics = metrics
        self.responses = ResponseStore(state.limits.response_bytes)
        self.images = ImageFetcher(state.config.allowed_image_domains)
        self.background: set[asyncio.Task[None]] = set()
        """What is made while no client waits."""

    async def decode(self, request: Request, decoder: BodyDecoder[T]) -> T:
        """Reads and decodes the body."""
        self.state.must_serve()
        body = await request.body(self.state.limits.body)
        depth = self.state.limits.json_depth
        if len(body) < _INLINE_BYTES:
            decoded = decoder.decode(body, depth)
            request.unknown_fields = decoder.unknown(body)
            return decoded
        return await asyncio.to_thread(decoder.decode, body, depth)


async def answer(
    context: Context,
    request: Request,
    served: Served,
    submission: Submission,
    notes: Notes,
    shape: Callable[[Generation, UsageCounter], Shape],
) -> None:
    """Submits and sends. Leaving, the deadline and every error free what the engine holds."""
    watcher = Watcher(request.proto)
    try:
        try:
            generation = await served.bridge.submit(
                submission.prompts,
                submission.params,
                add_special_tokens=submission.add_special_tokens,
                cache_salt=submission.cache_salt,
                priority=submission.priority,
            )
        except (InvalidRequestError, ContextLengthError) as error:
            raise _worded(error, request, submission) from error
        try:
            watcher.guard(generation)
            lengths = [len(ids) for ids in generation.prompt_token_ids]
            usage = UsageCounter(sum(lengths))
            room = served.info.max_model_len - max(lengths)
            if (submission.params.max_tokens or 0) > room:
                notes.clamped(submission.max_tokens_field, room)
            notes.announce(request)
            out = Answer(request, context.state, context.metrics, generation, shape(generation, usage))
            await (out.stream() if submission.stream else out.whole())
        finally:
            generation.close()
    finally:
        watcher.cancel()


def _worded(error: Any, request: Request, submission: Submission) -> Exception:
    worded = to_api_error(error, request.id)
    if worded.param in ("messages", "prompt"):
        worded.param = submission.prompt_field
    return reworded(worded, submission.structured_field)
