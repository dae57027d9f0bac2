"""The common walk of the generating routes: decode the body, submit, watch the client, answer, clean up."""

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict, TypeVar

from fastchat_rs.server.accounts import Cost, Lease
from fastchat_rs.server.bridge import ContextLengthError, Generation, InvalidRequestError, SamplingParams
from fastchat_rs.server.decode import BodyDecoder
from fastchat_rs.server.errors import to_api_error
from fastchat_rs.server.http import Request
from fastchat_rs.server.metrics import Metrics
from fastchat_rs.server.receipt import Notes
from fastchat_rs.server.sampling import with_max_tokens
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

    prompts: Sequence[str | Sequence[int]]
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

    async def decode(self, request: Request, decoder: BodyDecoder[T]) -> T:
        """Reads and decodes the body."""
        self.state.must_serve()
        body = await request.body(self.state.limits.body)
        depth = self.state.limits.json_depth
        if len(body) < _INLINE_BYTES:
            decoded = decoder.decode(body, depth)
            request.unknown_fields = decoder.unknown(body)
        else:
            decoded = await asyncio.to_thread(decoder.decode, body, depth)
        model = getattr(decoded, "model", None)
        if isinstance(model, str):
            self.state.must_allow(request, model)
        return decoded


async def answer(
    context: Context,
    request: Request,
    served: Served,
    submission: Submission,
    notes: Notes,
    shape: Callable[[Generation, UsageCounter], Shape],
) -> None:
    """Submits and sends. Leaving, the deadline and every error free what the engine and the key's limits hold."""
    watcher = Watcher(request.proto)
    usage: UsageCounter | None = None
    try:
        try:
            submission = await _reserved(request.lease, served, submission, notes)
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
        await _settle(request.lease, usage, watcher.gone)


async def _settle(lease: Lease | None, usage: UsageCounter | None, gone: bool) -> None:
    """Books what has been computed; a client that left pays for its prompt, one that was refused for nothing."""
    if lease is None:
        return
    if usage is not None and (usage.begun or gone):
        await lease.settle(usage.prompt_tokens, usage.completion_tokens)
    else:
        await lease.settle(0, 0, requests=0)


async def _reserved(lease: Lease | None, served: Served, submission: Submission, notes: Notes) -> Submission:
    """Holds the tokens a request may use, when its key is limited by them."""
    if lease is None:
        return submission
    if not lease.counts_ahead:
        lease.on(served.name)
        return submission
    encode, special = served.bridge.engine.encode, submission.add_special_tokens

    def count() -> list[Sequence[int]]:
        return [encode(text, add_special_tokens=special) if isinstance(text, str) else text for text in prompts]

    prompts = submission.prompts
    tokens = await served.bridge.offload(count)
    lengths = [len(ids) for ids in tokens]
    params = submission.params
    cost = Cost(
        model=served.name,
        prompt=sum(lengths),
        choices=params.n * len(lengths),
        room=max(served.info.max_model_len - max(lengths), 1),
        max_tokens=params.max_tokens,
    )
    clamped = await lease.reserve(cost)
    if clamped is not None:
        notes.clamped(submission.max_tokens_field, clamped)
        params = with_max_tokens(params, clamped)
    # What was counted is not tokenised again.
    return replace(submission, prompts=tokens, params=params)


def _worded(error: Any, request: Request, submission: Submission) -> Exception:
    worded = to_api_error(error, request.id)
    if worded.param in ("messages", "prompt"):
        worded.param = submission.prompt_field
    return reworded(worded, submission.structured_field)
