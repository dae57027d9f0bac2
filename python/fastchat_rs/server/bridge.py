"""Engine events for asyncio: one doorbell per event loop, one wake-up per engine step. No HTTP words here.

The server's only door to the compiled engine; everything it needs from there is re-exported here.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from fastchat_rs._engine import (
    CancelledError,
    ChatEvent,
    ChatFormat,
    ChatParser,
    ContextLengthError,
    Delta,
    Embedder,
    Engine,
    EngineError,
    EngineStats,
    Image,
    InternalError,
    InvalidRequestError,
    MediaPrompt,
    ModelInfo,
    OverloadedError,
    PromptLogprobs,
    RequestHandle,
    SamplingParams,
    StructuredOutput,
    ThinkingBudget,
    TokenLogprobs,
    UnsupportedModelError,
    WeightsError,
    __version__,
    automatic_kv_memory,
    is_encoder,
)
from fastchat_rs._engine import inspect as inspect_model

__all__ = [
    "Bridge",
    "CancelledError",
    "ChatEvent",
    "ChatFormat",
    "ChatParser",
    "ContextLengthError",
    "Delta",
    "Embedder",
    "Engine",
    "EngineError",
    "EngineStats",
    "Generation",
    "Image",
    "InternalError",
    "InvalidRequestError",
    "MediaPrompt",
    "ModelInfo",
    "OverloadedError",
    "PromptLogprobs",
    "SamplingParams",
    "StructuredOutput",
    "ThinkingBudget",
    "TokenLogprobs",
    "UnsupportedModelError",
    "WeightsError",
    "__version__",
    "automatic_kv_memory",
    "inspect_model",
    "is_encoder",
]

T = TypeVar("T")

# Tokenising is short and releases the GIL; more threads would only take turns on the engine's cores.
_SUBMIT_THREADS = 4


class Generation:
    """The requests of one caller (one per prompt) and their news. Closing it frees what the engine holds for them."""

    def __init__(self, bridge: "Bridge", handles: Sequence[RequestHandle]) -> None:
        self._bridge = bridge
        self.handles = list(handles)
        self._waiter: asyncio.Future[None] | None = None
        self._stopped: Callable[[], Exception] | None = None
        self.aborted = False
        self.submitted_at = time.monotonic()

    @property
    def prompt_token_ids(self) -> list[list[int]]:
        """Token ids of each prompt."""
        return [handle.prompt_token_ids for handle in self.handles]

    @property
    def finished(self) -> bool:
        """True once every choice of every prompt has ended and was read."""
        return all(handle.finished for handle in self.handles)

    @property
    def started(self) -> bool:
        """True once every prompt has left the queue."""
        return all(handle.started for handle in self.handles)

    def prompt_logprobs(self, prompt: int) -> PromptLogprobs | None:
        """Log-probabilities of a prompt; there from its first delta on."""
        return self.handles[prompt].prompt_logprobs()

    async def news(self, timeout: float) -> list[tuple[int, Delta]]:
        """The next deltas with the index of their prompt; empty after `timeout` seconds, at the end, or once aborted.

        Raises the engine's error when a choice failed, or what `stop` was given.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        while True:
            if self._stopped is not None:
                raise self._stopped()
            news = [(index, delta) for index, handle in enumerate(self.handles) for delta in handle.take()]
            for _, delta in news:
                if delta.error is not None and not self.aborted:
                    raise delta.error
            if news or self.aborted or self.finished:
                return news
            remaining = until - loop.time()
            if remaining <= 0:
                return []
            self._waiter = loop.create_future()
            timer = loop.call_later(remaining, self.ring)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None

    def ring(self) -> None:
        """Wakes the reader to look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def abort(self) -> None:
        """Ends the requests because nobody listens any more."""
        self.aborted = True
        for handle in self.handles:
            handle.abort()
        self.ring()

    def stop(self, reason: Callable[[], Exception]) -> None:
        """Ends the requests and makes the reader raise `reason()`.

        Made there and then: an exception kept elsewhere would keep the reader's frames, and so its stream, open.
        """
        self._stopped = reason
        self.abort()

    def close(self) -> None:
        """Must be called once, at the end."""
        if not self.finished:
            for handle in self.handles:
                handle.abort()
        self._bridge.forget(self, self.handles)


class Bridge:
    """One event loop's end of one engine. Made and used on that loop's thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._executor = ThreadPoolExecutor(_SUBMIT_THREADS, thread_name_prefix="fastchat-submit")
        self._doorbell = engine.subscribe()
        self._by_id: dict[int, Generation] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._doorbell.fileno(), self._on_doorbell)

    async def submit(
        self,
        prompts: Sequence[str | Sequence[int] | MediaPrompt],
        params: SamplingParams,
        *,
        add_special_tokens: bool = True,
        cache_salt: str | None = None,
        priority: int = 0,
        tenant: str | None = None,
    ) -> Generation:
        """Tokenises and submits on a worker thread; raises the engine's typed errors."""
        submit = partial(
            self._doorbell.submit,
            params=params,
            add_special_tokens=add_special_tokens,
            cache_salt=cache_salt,
            priority=priority,
            tenant=tenant,
        )
        handles = await self.offload(lambda: [submit(prompt) for prompt in prompts])
        generation = Generation(self, handles)
        # News that rang before this line is not lost: the first `news` looks before it waits.
        self._by_id.update((handle.id, generation) for handle in handles)
        return generation

    async def offload(self, work: Callable[[], T]) -> T:
        """Runs CPU work (templates, tokenising, big JSON) off the event loop."""
        return await self._loop.run_in_executor(self._executor, work)

    def generations(self) -> set[Generation]:
        """What is in flight."""
        return set(self._by_id.values())

    def forget(self, generation: Generation, handles: Sequence[RequestHandle]) -> None:
        """Called by `Generation.close`."""
        for handle in handles:
            if self._by_id.get(handle.id) is generation:
                del self._by_id[handle.id]

    def close(self) -> None:
        """Stops listening; the engine itself is left as it is."""
        if not self._loop.is_closed():
            self._loop.remove_reader(self._doorbell.fileno())
        self._doorbell.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _on_doorbell(self) -> None:
        for request_id in self._doorbell.ready():
            generation = self._by_id.get(request_id)
            if generation is not None:
                generation.ring()
