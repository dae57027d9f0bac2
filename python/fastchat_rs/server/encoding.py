"""The common walk of the encoders' routes: hold the tokens, work within the deadline, book. Knows no fields."""

import asyncio
from collections.abc import Callable, Sequence

from fastchat_rs.server.accounts import Cost, Lease
from fastchat_rs.server.api_error import ApiError
from fastchat_rs.server.handle import Context
from fastchat_rs.server.http import Reply, Request
from fastchat_rs.server.state import Embedding

Texts = Sequence[str | list[int]]


async def encoded(
    context: Context, request: Request, served: Embedding, texts: Texts, work: Callable[[], tuple[int, Reply]]
) -> Reply:
    """Runs `work`, which says how many tokens it read. `texts` is about what it will read."""
    await _reserve(request.lease, served, texts)
    seconds = context.state.limits.request_seconds
    tokens, requests = 0, 0
    try:
        running = asyncio.get_running_loop().run_in_executor(served.pool, work)
        tokens, reply = await asyncio.wait_for(running, seconds)
        requests = 1
        return reply
    except asyncio.TimeoutError:
        message = f"The request took longer than {seconds:g} s, the server's limit"
        raise ApiError(504, message, code="deadline_exceeded") from None
    finally:
        if request.lease is not None:
            await request.lease.settle(tokens, 0, requests)


async def _reserve(lease: Lease | None, served: Embedding, texts: Texts) -> None:
    """Holds the tokens of a request, when its key is limited by them."""
    if lease is None:
        return
    if not lease.counts_ahead:
        lease.on(served.name)
        return
    encode = served.embedder.encode

    def count() -> int:
        return sum(len(encode(text)) if isinstance(text, str) else len(text) for text in texts)

    tokens = await asyncio.get_running_loop().run_in_executor(served.pool, count)
    await lease.reserve(Cost(served.name, tokens, choices=0, room=0, max_tokens=0))
