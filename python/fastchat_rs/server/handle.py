"""The common walk of the generating routes: decode the body, submit, watch the client, answer, clean up."""

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict, TypeVar

from fastchat_rs.config import parse_bytes
from fastchat_rs.server.accounts import Cost, Lease
from fastchat_rs.server.api_error import ApiError
from fastchat_rs.server.bridge import ContextLengthError, Generation, InvalidRequestError, MediaPrompt, SamplingParams
from fastchat_rs.server.decode import BodyDecoder
from fastchat_rs.server.errors import to_api_error
from fastchat_rs.server.fetch import ImageFetcher
from fastchat_rs.server.http import OPENAI, Reply, Request
from fastchat_rs.server.metrics import Metrics
from fastchat_rs.server.outlet import RESUME_HEADER, Direct, Outlet, Ring, Rings
from fastchat_rs.server.receipt import Notes
from fastchat_rs.server.responsecache import HEADER as CACHE_HEADER
from fastchat_rs.server.responsecache import ResponseCache, cache_key
from fastchat_rs.server.responses.store import ResponseStore
from fastchat_rs.server.sampling import deterministic, with_max_tokens
from fastchat_rs.server.state import Served, State
from fastchat_rs.server.stream import Answer, Leaver, Shape, Watcher
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
    ids: Ids | None = None
    """Of the answer, where it may be cached or resumed."""


class Context:
    """What a handler is given besides the request."""

    def __init__(self, state: State, metrics: Metrics) -> None:
        self.state = state
        self.metrics = metrics
        config = state.config
        self.rings = Rings(config.resume, parse_bytes(config.resume_memory, "resume_memory"))
        self.cache: ResponseCache | None = None
        if config.response_cache is not None:
            size = parse_bytes(config.response_cache_size, "response_cache_size")
            self.cache = ResponseCache(config.response_cache, size)
        self.responses = ResponseStore(state.limits.response_bytes)
        self.images = ImageFetcher(state.config.allowed_image_domains)
        self.background: set[asyncio.Task[None]] = set()
        """What is made while no client waits."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs what outlives its request."""
        task = asyncio.get_running_loop().create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    async def decode(self, request: Request, decoder: BodyDecoder[T]) -> T:
        """Reads and decodes the body."""
        self.state.must_serve()
        body = await request.body(self.state.limits.body)
        if self.cache is not None:
            request.raw = body
        depth = self.state.limits.json_depth

        def work() -> tuple[T, list[str]]:
            return decoder.decode(body, depth), decoder.unknown(body)

        decoded, request.unknown_fields = work() if len(body) < _INLINE_BYTES else await asyncio.to_thread(work)
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
    """Answers from the cache, or submits and sends. A stream that may be resumed runs by itself; this follows it."""
    job = _Job(context, request, served, submission, notes, shape)
    if await job.cached():
        return
    ring = _ring(context, request, submission)
    if ring is None:
        watcher = Watcher(request.proto)
        try:
            await job.run(Direct(request), watcher)
        finally:
            watcher.cancel()
        return
    context.spawn(_produce(job, ring))
    await ring.follow(request, 0, context.state.limits.heartbeat_seconds)


def _ring(context: Context, request: Request, submission: Submission) -> Ring | None:
    wanted = request.header(RESUME_HEADER).lower() == "true"
    # Other dialects count their events otherwise.
    if not (wanted and submission.stream and submission.ids and request.wording is OPENAI):
        return None
    return context.rings.open(submission.ids.id, request.tenant)


async def _produce(job: "_Job", ring: Ring) -> None:
    """Runs a job whose client may come and go."""
    state, lease = job.context.state, job.request.lease
    leaver = Leaver()
    ring.abandon = leaver.leave
    state.in_flight += 1
    if lease is not None:
        lease.hold()
    try:
        await job.run(ring, leaver)
    except Exception as error:
        ring.fail(to_api_error(error, job.request.id))
    finally:
        ring.finish()
        state.in_flight -= 1
        if lease is not None:
            lease.close()


@dataclass
class _Job:
    """One answer to be made."""

    context: Context
    request: Request
    served: Served
    submission: Submission
    notes: Notes
    shape: Callable[[Generation, UsageCounter], Shape]
    key: bytes | None = None
    """In the response cache."""

    async def cached(self) -> bool:
        """Whether the cache had the answer; it is sent then."""
        request, submission, cache = self.request, self.submission, self.context.cache
        if cache is None or submission.ids is None or not deterministic(submission.params):
            return False
        if request.wording is not OPENAI:
            # Other dialects keep what they answered, or say more than ids and times.
            return False
        if "no-store" in request.header("cache-control") or "no-cache" in request.header("cache-control"):
            return False
        template = self.served.template.source if self.served.template else None
        about = (request.tenant, request.scope.path, self.served.fingerprint, template, repr(self.served.defaults))
        # Sorting a large body takes its time.
        self.key = await self.served.bridge.offload(lambda: cache_key(request.raw, *about))
        body = await cache.get(self.key, submission.ids.id, submission.ids.created)
        request.headers_out.append((CACHE_HEADER, "miss" if body is None else "hit"))
        if body is None:
            return False
        self.notes.announce(request)
        if request.lease is not None:
            request.lease.on(self.served.name)
            await request.lease.settle(0, 0)
        if submission.stream:
            out = Direct(request)
            out.begin()
            await out.send(body)
        else:
            request.send(Reply(body))
        return True

    async def run(self, out: Outlet, watcher: Leaver) -> None:
        """Submits and sends. Leaving, the deadline and every error free what the engine and the key's limits hold."""
        request, submission, lease = self.request, self.submission, self.request.lease
        usage: UsageCounter | None = None
        try:
            submission = await _reserved(lease, self.served, submission, self.notes)
            generation = await self.served.bridge.submit(
                submission.prompts,
                submission.params,
                add_special_tokens=submission.add_special_tokens,
                cache_salt=submission.cache_salt,
                priority=submission.priority,
                tenant=request.tenant,
            )
            try:
                watcher.guard(generation)
                lengths = [len(ids) for ids in generation.prompt_token_ids]
                usage = UsageCounter(sum(lengths))
                room = self.served.info.max_model_len - max(lengths)
                if (submission.params.max_tokens or 0) > room:
                    self.notes.clamped(submission.max_tokens_field, room)
                if submission.params.min_tokens > room:
                    self.notes.clamped("min_tokens", room)
                self.notes.announce(request)
                await self._send(out, generation, usage, submission is self.submission)
            finally:
                generation.close()
        except (InvalidRequestError, ContextLengthError) as error:
            raise self._worded(error) from error
        finally:
            if usage is not None and usage.begun:
                request.tokens = usage.prompt_tokens, usage.completion_tokens
            await _settle(lease, usage, watcher.gone)

    async def _send(self, out: Outlet, generation: Generation, usage: UsageCounter, uncut: bool) -> None:
        context, ids = self.context, self.submission.ids
        observed = context.metrics.observe(self.served.name, generation.submitted_at)
        shape = self.shape(generation, usage)
        answer = Answer(self.request, context.state, observed, generation, shape, self._worded)
        parts: list[bytes] = []
        # An answer that a budget cut short is not the answer.
        kept = self.key is not None and context.cache is not None and uncut
        if self.submission.stream:
            if not await answer.stream(out, parts.append if kept else lambda _: None):
                return
        elif (body := await answer.whole()) is not None:
            parts.append(body)
        if kept and parts and context.cache and self.key and ids:
            await context.cache.put(self.key, ids.id, ids.created, b"".join(parts))

    def _worded(self, error: Exception) -> ApiError:
        """The engine's complaint as one about the request's own fields."""
        worded = to_api_error(error, self.request.id)
        if worded.param in ("messages", "prompt"):
            worded.param = self.submission.prompt_field
        return reworded(worded, self.submission.structured_field)


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
    engine, special = served.bridge.engine, submission.add_special_tokens

    def counted(prompt: str | Sequence[int] | MediaPrompt) -> tuple[Sequence[int] | MediaPrompt, int]:
        if isinstance(prompt, MediaPrompt):
            return prompt, engine.count_tokens(prompt)
        ids = engine.encode(prompt, add_special_tokens=special) if isinstance(prompt, str) else prompt
        return ids, len(ids)

    prompts = await served.bridge.offload(lambda: [counted(prompt) for prompt in submission.prompts])
    lengths = [length for _, length in prompts]
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
    return replace(submission, prompts=[prompt for prompt, _ in prompts], params=params)
