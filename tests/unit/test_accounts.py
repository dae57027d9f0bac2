"""Limits a minute, requests at a time, budgets: what is held, what is booked, what is refused."""

import asyncio
import sqlite3
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from fastchat_rs import ledger
from fastchat_rs.errors import ConfigError
from fastchat_rs.keystore import KeyRecord
from fastchat_rs.ledger import UNITS, Entry, Ledger, Price
from fastchat_rs.llm import SamplingParams, StructuredOutput
from fastchat_rs.server.accounts import Accounts, Cost, Headers
from fastchat_rs.server.api_error import ApiError
from fastchat_rs.server.ratelimits import RateLimits
from fastchat_rs.server.sampling import with_max_tokens


def record(**limits: Any) -> KeyRecord:
    return KeyRecord(id="k", name="k", digest="", created=0, **limits)


def cost(prompt: int = 10, max_tokens: int | None = 20, room: int = 1000, choices: int = 1) -> Cost:
    return Cost("demo", prompt, choices, room, max_tokens)


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "usage.db", "here")


def accounts(book: Ledger | None = None, **prices: Price) -> Accounts:
    return Accounts(RateLimits(), book, prices, 600)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_requests_a_minute() -> None:
    async def main() -> None:
        all_of_it = accounts()
        key = record(requests_per_minute=5)
        headers: Headers = []
        for number in range(5):
            lease = await all_of_it.enter(key, headers := [])
            assert lease is not None
            assert dict(headers)["x-ratelimit-remaining-requests"] == str(4 - number)
            lease.close()
        with pytest.raises(ApiError) as caught:
            await all_of_it.enter(key, headers := [])
        assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
        assert 1 <= int(dict(caught.value.headers)["retry-after"]) <= 60
        assert dict(headers)["x-ratelimit-limit-requests"] == "5"
        assert await all_of_it.enter(None, []) is None

    run(main())


def test_requests_at_a_time() -> None:
    async def main() -> None:
        all_of_it = accounts()
        key = record(max_concurrent=2)
        first, second = [await all_of_it.enter(key, []) for _ in range(2)]
        with pytest.raises(ApiError, match="at a time"):
            await all_of_it.enter(key, [])
        assert first and second
        first.hold()
        first.close()
        with pytest.raises(ApiError, match="at a time"):
            await all_of_it.enter(key, [])
        first.close()
        assert await all_of_it.enter(key, []) is not None

    run(main())


def test_tokens_a_minute_are_held_and_given_back() -> None:
    async def main() -> None:
        all_of_it = accounts()
        key = record(tokens_per_minute=100)

        async def one(what: Cost, used: tuple[int, int]) -> Headers:
            headers: Headers = []
            lease = await all_of_it.enter(key, headers)
            assert lease is not None
            await lease.reserve(what)
            await lease.settle(*used)
            # Only the first call counts.
            await lease.settle(90, 90)
            lease.close()
            return headers

        assert dict(await one(cost(10, 50), (10, 5)))["x-ratelimit-remaining-tokens"] == "40"
        # 15 are used: 85 are left.
        assert dict(await one(cost(10, 50), (10, 70)))["x-ratelimit-remaining-tokens"] == "25"
        with pytest.raises(ApiError) as caught:
            await one(cost(10, 50), (0, 0))
        assert caught.value.code == "rate_limit_exceeded"
        assert "retry-after" in dict(caught.value.headers)
        with pytest.raises(ApiError, match="never fit") as caught:
            await one(cost(101, 1), (0, 0))
        assert dict(caught.value.headers) == {"x-should-retry": "false"}

    run(main())


def test_a_budget_is_never_overdrawn(book: Ledger) -> None:
    async def main() -> None:
        all_of_it = accounts(book)
        key = record(tokens_per_day=100)
        leases = [await all_of_it.enter(key, []) for _ in range(3)]
        first, second, third = leases
        assert first and second and third
        assert await first.reserve(cost(10, 40)) is None
        # An open length takes what is left: 100 - 50 - 10.
        assert await second.reserve(cost(10, None)) == 40
        with pytest.raises(ApiError) as caught:
            await third.reserve(cost(1, 1))
        assert (caught.value.status, caught.value.code) == (429, "insufficient_quota")
        assert "budget" in caught.value.message
        assert dict(caught.value.headers)["x-should-retry"] == "false"
        await first.settle(10, 5)
        await second.settle(10, 0)
        (row,) = book.rows()
        assert (row.requests, row.prompt, row.completion, row.model) == (2, 20, 5, "demo")
        assert book.held() == 0
        assert book.left(key, time.time())[0].amount == 75

    run(main())


def test_money(book: Ledger) -> None:
    async def main() -> None:
        # 2 and 10 for a million: a prompt of 1000 costs 0.002, a token 0.00001.
        all_of_it = accounts(book, demo=Price(2, 10))
        key = record(money_per_month=0.003)
        lease = await all_of_it.enter(key, [])
        assert lease is not None
        assert await lease.reserve(cost(1000, None, room=5000, choices=2)) == 50
        await lease.settle(1000, 100)
        (row,) = book.rows()
        assert row.money == 3_000_000 == 0.003 * UNITS
        again = await all_of_it.enter(key, [])
        assert again is not None
        with pytest.raises(ApiError, match="budget of money a month") as caught:
            await again.reserve(cost(1, 1))
        assert caught.value.code == "insufficient_quota"
        unpriced = await all_of_it.enter(key, [])
        assert unpriced is not None
        with pytest.raises(ApiError, match="no price"):
            await unpriced.reserve(Cost("other", 1, 1, 10, 1))

    run(main())


def test_a_full_disk_loses_no_settlement(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        all_of_it = accounts(book)
        real = book.settle

        def fail(entries: list[Entry]) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(book, "settle", fail)
        entry = Entry("k", "demo", ledger.today(time.time()), 3, 4, 0)
        await all_of_it.settle(entry)
        await all_of_it.settle(entry)
        assert book.rows() == []
        monkeypatch.setattr(book, "settle", real)
        await all_of_it.settle(entry)
        (row,) = book.rows()
        assert (row.requests, row.prompt, row.completion) == (3, 9, 12)

    run(main())


def test_reservations_of_a_dead_process_are_free(tmp_path: Path) -> None:
    key = record(tokens_per_month=100)
    now = time.time()
    first = Ledger(tmp_path / "u.db", "here")
    other = Ledger(tmp_path / "u.db", "there")
    assert isinstance(first.reserve(key, 60, 0, now, 600), int)
    assert isinstance(other.reserve(key, 60, 0, now, 600), ledger.Left)
    assert isinstance(other.reserve(key, 30, 0, now, 600), int)
    # The first dies and starts again; the other's reservation stays.
    again = Ledger(tmp_path / "u.db", "here")
    assert again.left(key, now)[0].amount == 70
    # The other never comes back: its reservation lapses.
    assert again.left(key, now + 601)[0].amount == 100
    for one in (first, other, again):
        one.close()


def test_days_and_months() -> None:
    last = 1_798_761_599.0  # 2026-12-31 23:59:59 UTC
    assert ledger.today(last) == "2026-12-31" and ledger.today(last + 1) == "2027-01-01"
    assert ledger.seconds_left("day", last) == ledger.seconds_left("month", last) == 1
    assert ledger.seconds_left("month", last + 1) == 31 * 86400


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "u.db"
    path.write_bytes(b"x" * 5000)
    with pytest.raises(ConfigError, match=r"u\.db"):
        Ledger(path, "here")


def test_without_redis_a_process_counts_alone() -> None:
    pytest.importorskip("redis", reason="SKIPPED: the redis extra is not installed")

    async def main() -> None:
        # Nothing listens there.
        limits = RateLimits("redis://127.0.0.1:1/0")
        windows = [await limits.request("k", 2) for _ in range(3)]
        assert [window.allowed for window in windows] == [True, True, False]

    run(main())


def test_a_budget_changes_nothing_but_the_length() -> None:
    names = [name for name in dir(SamplingParams) if not name.startswith("_")]
    params = SamplingParams(
        n=2, temperature=0.5, top_p=0.75, top_k=7, min_p=0.25, presence_penalty=0.5, frequency_penalty=-0.5,
        repetition_penalty=1.5, seed=3, stop=["a"], stop_token_ids=[5], include_stop_str_in_output=True,
        ignore_eos=True, max_tokens=50, min_tokens=9, logprobs=2, logit_bias={4: 1.5}, skip_special_tokens=False,
        structured=StructuredOutput.json_object(),
    )  # fmt: skip
    shorter = with_max_tokens(params, 7)
    assert (shorter.max_tokens, shorter.min_tokens) == (7, 7)
    plain = SamplingParams()
    changed = {name for name in names if getattr(params, name) != getattr(plain, name)}
    # Every field but those that need a model or another route has a value of its own here.
    assert set(names) - changed <= {"prompt_logprobs", "thinking"}
    for name in set(names) - {"max_tokens", "min_tokens", "structured"}:
        assert getattr(shorter, name) == getattr(params, name), name
    assert shorter.structured is not None
