"""What each key has used, in SQLite: usage by day and model, open reservations, budgets. Knows no HTTP.

A reservation and the settling of it are one transaction each, so that after kill -9 the sums are those of the requests
settled before. WAL with synchronous = NORMAL: a process that dies loses nothing, a machine that loses power may lose
the last transactions. Money is counted in billionths of the currency, so that sums are exact.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from fastchat_rs.errors import ConfigError
from fastchat_rs.keystore import KeyRecord, is_database

UNITS = 1_000_000_000
_BUSY_SECONDS = 5.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS usage (
    key TEXT NOT NULL, day TEXT NOT NULL, model TEXT NOT NULL,
    requests INTEGER NOT NULL, prompt INTEGER NOT NULL, completion INTEGER NOT NULL, money INTEGER NOT NULL,
    PRIMARY KEY (key, day, model)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reservation (
    id INTEGER PRIMARY KEY, owner TEXT NOT NULL, key TEXT NOT NULL, day TEXT NOT NULL,
    expires REAL NOT NULL, tokens INTEGER NOT NULL, money INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS reservation_by_key ON reservation (key);
"""


@dataclass(frozen=True)
class Price:
    """Of a million tokens read and written."""

    prompt: float
    completion: float

    def of(self, prompt: int, completion: int) -> int:
        """In billionths: tokens * (price / 1e6) * 1e9."""
        return round((prompt * self.prompt + completion * self.completion) * 1000)


@dataclass(frozen=True)
class Budget:
    """One bound of a key."""

    unit: str
    """tokens or money"""
    period: str
    """day or month"""
    amount: int
    """Tokens, or billionths."""


def budgets(record: KeyRecord) -> list[Budget]:
    """The bounds a key has."""
    wanted = [
        ("tokens", "day", record.tokens_per_day, 1),
        ("tokens", "month", record.tokens_per_month, 1),
        ("money", "day", record.money_per_day, UNITS),
        ("money", "month", record.money_per_month, UNITS),
    ]
    return [Budget(unit, period, round(amount * scale)) for unit, period, amount, scale in wanted if amount is not None]


@dataclass(frozen=True)
class Left:
    """What a budget still has, reservations taken off."""

    budget: Budget
    amount: int

    @property
    def name(self) -> str:
        """For messages."""
        return f"budget of {self.budget.unit} a {self.budget.period}"


@dataclass(frozen=True)
class Entry:
    """What one request used."""

    key: str
    model: str
    day: str
    prompt: int
    completion: int
    money: int
    reservation: int | None = None
    requests: int = 1


@dataclass(frozen=True)
class Row:
    """A line of the usage table."""

    key: str
    day: str
    model: str
    requests: int
    prompt: int
    completion: int
    money: int


def today(now: float) -> str:
    """The day a request is booked on, UTC."""
    return datetime.fromtimestamp(now, timezone.utc).strftime("%Y-%m-%d")


def seconds_left(period: str, now: float) -> int:
    """Until a day or month of UTC is over."""
    at = datetime.fromtimestamp(now, timezone.utc)
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
    if period == "day":
        return max(1, int(midnight + 86400 - now))
    year, month = (at.year + 1, 1) if at.month == 12 else (at.year, at.month + 1)
    return max(1, int(datetime(year, month, 1, tzinfo=timezone.utc).timestamp() - now))


def path_of(keys: Path, usage_db: Path | None) -> Path:
    """Where the ledger of a key store is: where the settings say, in the key database, or beside the key file."""
    if usage_db is not None:
        return usage_db
    return keys if is_database(keys) else keys.with_name(f"{keys.name}.usage.db")


def read(path: Path) -> list[Row]:
    """The usage table of a ledger that a server may be writing."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=_BUSY_SECONDS)) as db:
            return _rows(db)
    except sqlite3.Error as error:
        raise ConfigError(f"usage_db: {path}: {error}") from error


def _rows(db: sqlite3.Connection) -> list[Row]:
    found = db.execute(
        "SELECT key, day, model, requests, prompt, completion, money FROM usage ORDER BY day, key, model"
    )
    return [Row(*row) for row in found]


class Ledger:
    """One connection to the database. Calls from several threads take turns."""

    def __init__(self, path: Path, owner: str) -> None:
        """`owner` names the process's place: what an earlier process there had reserved is free again."""
        self._owner = owner
        self._turn = threading.Lock()
        try:
            if not path.exists():
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
            self._db.execute("DELETE FROM reservation WHERE owner = ? OR expires < ?", (owner, time.time()))
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"usage_db: {path}: {error}") from error

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection, None, None]:
        with self._turn:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def left(self, record: KeyRecord, now: float) -> list[Left]:
        """Of each budget of a key."""
        with self._turn:
            return list(self._left(record, now))

    def _left(self, record: KeyRecord, now: float) -> Iterator[Left]:
        day = today(now)
        for budget in budgets(record):
            column = "prompt + completion" if budget.unit == "tokens" else "money"
            first = day if budget.period == "day" else day[:7] + "-01"
            spent = self._db.execute(
                f"SELECT COALESCE(SUM({column}), 0) FROM usage WHERE key = ? AND day BETWEEN ? AND ?",  # noqa: S608
                (record.id, first, day),
            ).fetchone()[0]
            held = self._db.execute(
                f"SELECT COALESCE(SUM({budget.unit}), 0) FROM reservation "  # noqa: S608
                "WHERE key = ? AND day BETWEEN ? AND ? AND (owner = ? OR expires >= ?)",
                (record.id, first, day, self._owner, now),
            ).fetchone()[0]
            yield Left(budget, budget.amount - spent - held)

    def reserve(self, record: KeyRecord, tokens: int, money: int, now: float, seconds: float) -> int | Left:
        """The reservation's number, or the budget that it does not fit in.

        To other processes it lapses after `seconds`; this one settles its own, and a clock set ahead frees none.
        """
        need = {"tokens": tokens, "money": money}
        with self._transaction() as db:
            for left in self._left(record, now):
                if need[left.budget.unit] > left.amount:
                    return left
            row = db.execute(
                "INSERT INTO reservation (owner, key, day, expires, tokens, money) VALUES (?, ?, ?, ?, ?, ?)",
                (self._owner, record.id, today(now), now + seconds, tokens, money),
            )
            return row.lastrowid or 0

    def settle(self, entries: Iterable[Entry]) -> None:
        """Books what was used and frees what was held for it."""
        with self._transaction() as db:
            for entry in entries:
                if entry.reservation is not None:
                    db.execute("DELETE FROM reservation WHERE id = ?", (entry.reservation,))
                if entry.requests:
                    db.execute(
                        "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key, day, model) DO UPDATE SET "
                        "requests = requests + excluded.requests, prompt = prompt + excluded.prompt, "
                        "completion = completion + excluded.completion, money = money + excluded.money",
                        (
                            *(entry.key, entry.day, entry.model),
                            *(entry.requests, entry.prompt, entry.completion, entry.money),
                        ),
                    )

    def rows(self) -> list[Row]:
        """The usage table, oldest day first."""
        with self._turn:
            return _rows(self._db)

    def held(self) -> int:
        """Open reservations."""
        with self._turn:
            return self._db.execute("SELECT COUNT(*) FROM reservation").fetchone()[0]

    def close(self) -> None:
        """Folds the log into the file."""
        with self._turn:
            self._db.close()
