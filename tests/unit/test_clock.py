"""A clock that is set while requests run: nobody is locked out, nothing is given twice."""

import asyncio
import time
from pathlib import Path

import pytest

from fastchat_rs.keystore import KeyRecord
from fastchat_rs.ledger import Entry, Ledger, today
from fastchat_rs.server.ratelimits import RateLimits

HOUR = 3600.0


class Clock:
    """What the system says it is, `ahead` of the truth, in which a test begins in the middle of a minute."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        real = time.time
        middle = 30 - real() % 60
        monkeypatch.setattr(time, "time", lambda: real() + middle + self.ahead)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("step", [-HOUR, HOUR, 0.0])
def test_limits_a_minute(clock: Clock, step: float) -> None:
    async def main() -> None:
        limits = RateLimits()
        assert [(await limits.request("k", 2)).allowed for _ in range(3)] == [True, True, False]
        held = await limits.tokens("k", 100, 80)
        assert held.allowed and not (await limits.tokens("k", 100, 80)).allowed
        clock.ahead = step
        # A clock that was set begins a new minute, once; without that nothing changes.
        assert (await limits.request("k", 2)).allowed == bool(step)
        # What was held in the old minute is not given back to the new one.
        await limits.correct("k", held, -80)
        assert (await limits.tokens("k", 100, 100)).allowed
        assert not (await limits.tokens("k", 100, 1)).allowed

    asyncio.run(main())


def test_a_slewed_clock_is_no_step(clock: Clock) -> None:
    async def main() -> None:
        limits = RateLimits()
        assert (await limits.request("k", 1)).allowed
        clock.ahead = -1.0
        assert not (await limits.request("k", 1)).allowed

    asyncio.run(main())


@pytest.mark.parametrize("step", [-HOUR, HOUR])
def test_reservations_outlive_a_step(tmp_path: Path, step: float) -> None:
    key = KeyRecord(id="k", name="k", digest="", created=0, tokens_per_month=100)
    noon = 1_798_804_800.0
    book = Ledger(tmp_path / "u.db", "here")
    held = book.reserve(key, 90, 0, noon, 600)
    assert isinstance(held, int)
    later = noon + step
    assert book.left(key, later)[0].amount == 10, "it still runs"
    book.settle([Entry("k", "demo", today(noon), 30, 20, 0, held)])
    assert book.left(key, later)[0].amount == 50
    assert book.held() == 0
    book.close()
