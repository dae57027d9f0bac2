"""What a caller may use: requests and tokens a minute, requests at a time, budgets. Reserve, answer, settle.

A request's lease is made before its body is read and given back when it is over, however it ends. Tokens are reserved
when the prompt is known and settled before the last byte of an answer leaves: what a client has whole is booked.
"""

import asyncio
import logging
import math
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fastchat_rs import ledger
from fastchat_rs.config import ServeConfig, parse_prices
from fastchat_rs.errors import ConfigError
from fastchat_rs.keystore import KeyRecord
from fastchat_rs.ledger import Entry, Ledger, Left, Price
from fastchat_rs.server.api_error import ApiError
from fastchat_rs.server.ratelimits import RateLimits, Window

log = logging.getLogger("fastchat_rs")

T = TypeVar("T")

# Reserved of a minute's tokens for an answer whose length the client left open; settling corrects it.
_ASSUMED_TOKENS = 512
# Settlements kept in memory while the disk refuses them.
_MAX_UNSAVED = 100_000

Headers = list[tuple[str, str]]


@dataclass(frozen=True)
class Cost:
    """Of one request, before it runs."""

    model: str
    prompt: int
    choices: int
    room: int
    """Most tokens of one choice."""
    max_tokens: int | None
    """What the client asked for."""

    def completion(self, each: int) -> int:
        """Of all choices."""
        return self.choices * min(each, self.room)


class Accounts:
    """Of all keys of one server."""

    def __init__(
        self, limits: RateLimits, book: Ledger | None, prices: dict[str, Price], request_seconds: float
    ) -> None:
        self.limits = limits
        self.book = book
        self._prices = prices
        # Longer than any request can hold it; a dead server's reservations lapse.
        self.reserve_seconds = request_seconds + 60
        self._open: Counter[str] = Counter()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fastchat-ledger")
        self._unsaved: list[Entry] = []

    def price(self, model: str) -> Price | None:
        """Its own, or the one for all models."""
        return self._prices.get(model, self._prices.get("*"))

    async def enter(self, record: KeyRecord | None, headers: Headers) -> "Lease | None":
        """The lease of a request, or 429. `headers` are those of the reply."""
        if record is None:
            return None
        if record.max_concurrent is not None and self._open[record.id] >= record.max_concurrent:
            raise _too_many(f"This key may have {record.max_concurrent} requests at a time", 1)
        # Counted before anything is awaited: the next request must see it.
        lease = Lease(self, record, headers)
        try:
            if record.requests_per_minute is not None:
                window = await self.limits.request(record.id, record.requests_per_minute)
                headers += _window_headers("requests", window)
                if not window.allowed:
                    message = f"This key may send {window.limit} requests a minute"
                    raise _too_many(message, max(1, window.reset_seconds))
        except BaseException:
            lease.close()
            raise
        return lease

    def count(self, key: str, change: int) -> None:
        """Requests at a time."""
        self._open[key] += change
        if self._open[key] <= 0:
            del self._open[key]

    async def booked(self, work: Callable[[], T]) -> T:
        """Runs work on the ledger off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def settle(self, entry: Entry) -> None:
        """Books it; when the disk refuses, with a later one."""
        book = self.book
        if book is None:
            return
        entries = [*self._unsaved, entry]
        self._unsaved = []
        try:
            await self.booked(lambda: book.settle(entries))
        except sqlite3.Error as error:
            self._unsaved = (entries + self._unsaved)[-_MAX_UNSAVED:]
            log.error("usage_db: %s; %d settlements wait", error, len(self._unsaved))

    async def close(self) -> None:
        """Books what waits and closes the ledger."""
        book = self.book
        if book is None:
            return
        entries, self._unsaved = self._unsaved, []
        try:
            await self.booked(lambda: (book.settle(entries), book.close()))
        except sqlite3.Error as error:
            log.error("usage_db: %s; %d settlements are lost", error, len(entries))


def open_accounts(config: ServeConfig, port: int) -> Accounts:
    """From the settings. Without a key store there is nothing to count."""
    book = None
    if config.keys is not None:
        path = ledger.path_of(Path(config.keys), None if config.usage_db is None else Path(config.usage_db))
        book = Ledger(path, owner=f"{socket.gethostname()}/{config.host}/{port}")
    elif config.usage_db is not None or config.limits_url is not None:
        raise ConfigError("keys: usage_db and limits_url belong to keys with limits; name their file with --keys")
    prices = {model: Price(*numbers) for model, numbers in parse_prices(config.price).items()}
    limits = RateLimits(config.limits_url)
    if config.keys is not None:
        limits.prepare()
    return Accounts(limits, book, prices, config.request_timeout)


class Lease:
    """What one request holds of its key."""

    def __init__(self, accounts: Accounts, record: KeyRecord, headers: Headers) -> None:
        self._accounts = accounts
        self._record = record
        self._headers = headers
        self._day = ledger.today(time.time())
        self._cost: Cost | None = None
        self._window: Window | None = None
        self._taken = 0
        self._reservation: int | None = None
        self._holders = 1
        self._settled = False
        accounts.count(record.id, 1)

    @property
    def counts_ahead(self) -> bool:
        """Whether tokens must be known before the request may run."""
        return self._record.tokens_per_minute is not None or self._record.budgeted

    async def reserve(self, cost: Cost) -> int | None:
        """Holds tokens and money, or 429. The most tokens of a choice where a budget leaves less than was asked for."""
        self._cost = cost
        limit = self._record.tokens_per_minute
        if limit is not None:
            each = _ASSUMED_TOKENS if cost.max_tokens is None else cost.max_tokens
            taken = cost.prompt + cost.completion(each)
            window = await self._accounts.limits.tokens(self._record.id, limit, taken)
            self._headers += _window_headers("tokens", window)
            if not window.allowed:
                raise _too_many_tokens(taken, window)
            self._window, self._taken = window, taken
        if self._record.budgeted:
            try:
                return await self._reserve_budget(cost)
            except BaseException:
                await self.settle(0, 0, requests=0)
                raise
        return None

    async def _reserve_budget(self, cost: Cost) -> int | None:
        accounts, record, book = self._accounts, self._record, self._accounts.book
        if book is None:
            raise RuntimeError("keys with budgets come with a ledger; this is a bug")
        price = accounts.price(cost.model)
        if price is None:
            if record.money_per_day or record.money_per_month:
                raise ApiError(403, f"Model '{cost.model}' has no price, which this key's budget needs", param="model")
            price = Price(0, 0)
        now = time.time()
        self._day = ledger.today(now)

        def work() -> tuple[int | Left, int | None]:
            # An open length takes what is there; a given one must fit.
            each = cost.max_tokens
            clamped = None
            if each is None:
                each = min([cost.room, *(_affordable(left, cost, price) for left in book.left(record, now))])
                each = max(each, 1)
                clamped = each if each < cost.room else None
            completion = cost.completion(each)
            money = price.of(cost.prompt, completion)
            tokens = cost.prompt + completion
            return book.reserve(record, tokens, money, now, accounts.reserve_seconds), clamped

        try:
            held, clamped = await accounts.booked(work)
        except sqlite3.Error as error:
            log.error("usage_db: %s", error)
            raise ApiError(503, "Budgets cannot be checked now", code="overloaded", retry_after=5) from error
        if isinstance(held, Left):
            raise _exhausted(held, now)
        self._reservation = held
        return clamped

    async def settle(self, prompt: int, completion: int, requests: int = 1) -> None:
        """Books what was used and gives the rest back. Only the first call counts."""
        if self._settled:
            return
        self._settled = True
        accounts, record = self._accounts, self._record
        if self._window is not None:
            await accounts.limits.correct(record.id, self._window, prompt + completion - self._taken)
        model = self._cost.model if self._cost else ""
        price = accounts.price(model) or Price(0, 0)
        if requests or self._reservation is not None:
            money = price.of(prompt, completion)
            await accounts.settle(
                Entry(record.id, model, self._day, prompt, completion, money, self._reservation, requests)
            )

    def on(self, model: str) -> None:
        """Names the model of a request that reserves nothing."""
        self._cost = self._cost or Cost(model, 0, 0, 0, None)

    def hold(self) -> None:
        """One more that must `close`."""
        self._holders += 1

    def close(self) -> None:
        """Called once by each holder."""
        self._holders -= 1
        if self._holders == 0:
            self._accounts.count(self._record.id, -1)


def _affordable(left: Left, cost: Cost, price: Price) -> int:
    """Tokens of one choice that a budget has left."""
    if left.budget.unit == "tokens":
        return (left.amount - cost.prompt) // cost.choices
    each = price.completion * 1000 * cost.choices
    return cost.room if each == 0 else math.floor((left.amount - price.of(cost.prompt, 0)) / each)


def _window_headers(unit: str, window: Window) -> Headers:
    return [
        (f"x-ratelimit-limit-{unit}", str(window.limit)),
        (f"x-ratelimit-remaining-{unit}", str(window.remaining)),
        (f"x-ratelimit-reset-{unit}", f"{window.reset_seconds}s"),
    ]


def _too_many(message: str, seconds: int) -> ApiError:
    return ApiError(429, f"{message}; try again in {seconds} s", code="rate_limit_exceeded", retry_after=seconds)


def _too_many_tokens(taken: int, window: Window) -> ApiError:
    message = (
        f"This key may use {window.limit} tokens a minute; this request needs {taken}, {window.remaining} are left"
    )
    if taken > window.limit:
        error = ApiError(429, f"{message}; it can never fit", code="rate_limit_exceeded")
        error.headers.append(("x-should-retry", "false"))
        return error
    return _too_many(message, max(1, window.reset_seconds))


def _exhausted(left: Left, now: float) -> ApiError:
    over = ledger.seconds_left(left.budget.period, now)
    scale = ledger.UNITS if left.budget.unit == "money" else 1
    rest, whole = (f"{amount / scale:.6g}" for amount in (max(left.amount, 0), left.budget.amount))
    message = f"This key's {left.name} is used up: {rest} of {whole} are left; it is renewed in {over} s"
    error = ApiError(429, message, code="insufficient_quota")
    error.headers.append(("x-should-retry", "false"))
    return error
