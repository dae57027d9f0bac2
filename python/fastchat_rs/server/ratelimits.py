"""Requests and tokens a minute, counted by the `limits` library in memory or in Redis. Knows no keys' records, no HTTP.

Requests use a sliding window of two counters a key: no minute of the clock sees more than the limit, and what a burst
took comes back bit by bit in the next one. Tokens use a fixed window, because only there a reservation can be given
back. When Redis fails, this process counts alone until it answers again. When the clock is set back, this process
counts anew: its windows would end that much later and lock keys out.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from fastchat_rs.errors import ConfigError

if TYPE_CHECKING:
    from limits import RateLimitItemPerMinute
    from limits.aio.storage import MemoryStorage, RedisStorage
    from limits.aio.strategies import RateLimiter

log = logging.getLogger("fastchat_rs")

T = TypeVar("T")

# Redis must not hold a request for longer, and is left alone for a while once it failed.
_REDIS_SECONDS = 0.5
_AWAY_SECONDS = 5.0
# What the clock may be slewed by between two requests.
_STEP_SECONDS = 2.0
_REQUESTS, _TOKENS = "requests", "tokens"


@dataclass(frozen=True)
class Window:
    """How a limit stands."""

    allowed: bool
    limit: int
    remaining: int
    reset_at: float
    """Seconds since 1970."""
    count: int = 0
    """How often counting has begun anew before it."""

    @property
    def reset_seconds(self) -> int:
        """From now, rounded up."""
        return max(0, int(self.reset_at - time.time() + 0.999))


class _Counters:
    """Both strategies over one storage."""

    def __init__(self, storage: "MemoryStorage | RedisStorage") -> None:
        from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter

        self.storage = storage
        self.requests: RateLimiter = SlidingWindowCounterRateLimiter(storage)
        self.tokens: RateLimiter = FixedWindowRateLimiter(storage)


class RateLimits:
    """Counts by key. `url` is redis://... (shared by replicas), or None for this process alone."""

    def __init__(self, url: str | None = None) -> None:
        self._shared = None if url is None else _Counters(_redis(url))
        self._away_until = 0.0
        # Moves when the clock is set, and while the machine sleeps.
        self._clock = time.time() - time.monotonic()
        self._count = 0

    @cached_property
    def _alone(self) -> _Counters:
        from limits.aio.storage import MemoryStorage

        return _Counters(MemoryStorage())

    def prepare(self) -> None:
        """Imports the library now, which takes a tenth of a second; servers without keys never do."""
        _ = self._alone

    async def request(self, key: str, limit: int) -> Window:
        """One request of a key."""
        item = _per_minute(limit)

        async def hit(counters: _Counters) -> Window:
            allowed = await counters.requests.hit(item, _REQUESTS, key)
            stats = await counters.requests.get_window_stats(item, _REQUESTS, key)
            return Window(allowed, limit, max(0, stats.remaining), stats.reset_time, self._count)

        return await self._counted(hit)

    async def tokens(self, key: str, limit: int, cost: int) -> Window:
        """Takes `cost` tokens, or nothing when they do not fit."""
        item = _per_minute(limit)

        async def take(counters: _Counters) -> Window:
            allowed = await counters.tokens.test(item, _TOKENS, key, cost=cost)
            if allowed and not await counters.tokens.hit(item, _TOKENS, key, cost=cost):
                # Somebody was faster between the two.
                allowed = False
                await counters.storage.incr(item.key_for(_TOKENS, key), item.get_expiry(), amount=-cost)
            stats = await counters.tokens.get_window_stats(item, _TOKENS, key)
            return Window(allowed, limit, max(0, stats.remaining), stats.reset_time, self._count)

        return await self._counted(take)

    async def correct(self, key: str, window: Window, difference: int) -> None:
        """After the fact: more tokens than taken, or fewer (below 0), which count only while their window lasts."""
        await self._watch_clock()
        over = time.time() >= window.reset_at or window.count != self._count
        if difference == 0 or (difference < 0 and over):
            return
        item = _per_minute(window.limit)

        async def change(counters: _Counters) -> None:
            await counters.storage.incr(item.key_for(_TOKENS, key), item.get_expiry(), amount=difference)

        await self._counted(change)

    async def _watch_clock(self) -> None:
        clock = time.time() - time.monotonic()
        back, self._clock = self._clock - clock, clock
        if back > _STEP_SECONDS:
            log.warning("the clock was set back by %.0f s; limits a minute count anew", back)
            self._count += 1
            await self._alone.storage.reset()

    async def _counted(self, work: Callable[[_Counters], Awaitable[T]]) -> T:
        await self._watch_clock()
        if self._shared is not None and time.monotonic() >= self._away_until:
            try:
                return await work(self._shared)
            except self._shared.storage.base_exceptions as error:
                self._away_until = time.monotonic() + _AWAY_SECONDS
                log.error("limits_url: Redis failed (%s); limits count for this process alone", type(error).__name__)
        return await work(self._alone)


def _per_minute(limit: int) -> "RateLimitItemPerMinute":
    from limits import RateLimitItemPerMinute

    return RateLimitItemPerMinute(limit)


def _redis(url: str) -> "RedisStorage":
    from limits.aio.storage import RedisStorage

    try:
        return RedisStorage(
            f"async+{url}",
            implementation="redispy",
            key_prefix="fastchat",
            socket_timeout=_REDIS_SECONDS,
            socket_connect_timeout=_REDIS_SECONDS,
        )
    except Exception as error:
        # The library's errors for a missing package and for a bad URL have no common base.
        raise ConfigError(f"limits_url: {error}; Redis needs `pip install fastchat-rs[redis]`") from error
