"""Whole answers of deterministic requests, exact matches only: bounded, per key, in memory or in a SQLite file.

A row is the bytes that went out with the id and time they went out with; a hit gets new ones. Anything wrong with the
file costs hits, never an answer.
"""

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

import msgspec

log = logging.getLogger("fastchat_rs")

T = TypeVar("T")

HEADER = "x-fastchat-cache"
MEMORY = "memory"
# Of the room for all answers.
_LARGEST_PART = 16
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answer (
    key BLOB PRIMARY KEY, id TEXT NOT NULL, created INTEGER NOT NULL, body BLOB NOT NULL, used REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS answer_by_use ON answer (used);
"""


def cache_key(body: bytes, *parts: str | None) -> bytes:
    """Of a request: its JSON with sorted keys, and all that decides the answer besides."""
    canonical = msgspec.json.encode(msgspec.json.decode(body), order="sorted")
    hash = blake2b(canonical, digest_size=32)
    for part in parts:
        # The length keeps neighbours apart.
        raw = (part or "").encode()
        hash.update(len(raw).to_bytes(8, "little") + raw)
    return hash.digest()


class ResponseCache:
    """`place` is `memory` or the path of a database that this server alone writes."""

    def __init__(self, place: str, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fastchat-cache")
        self._db = _open(":memory:" if place == MEMORY else place)
        self._size: int = self._db.execute("SELECT COALESCE(SUM(LENGTH(body)), 0) FROM answer").fetchone()[0]
        self.hits = 0
        self.misses = 0

    @property
    def size(self) -> int:
        """Bytes of all answers."""
        return self._size

    async def get(self, key: bytes, answer_id: str, created: int) -> bytes | None:
        """The answer with a new id and time."""
        row = await self._run(lambda: self._get(key))
        if row is None:
            self.misses += 1
            return None
        self.hits += 1
        id, old, body = row
        return body.replace(id.encode(), answer_id.encode()).replace(_created(old), _created(created))

    async def put(self, key: bytes, answer_id: str, created: int, body: bytes) -> None:
        """Keeps an answer; the ones that were not asked for the longest make room."""
        if len(body) <= self._max_bytes // _LARGEST_PART:
            await self._run(lambda: self._put(key, answer_id, created, body))

    async def clear(self) -> None:
        """Under pressure."""
        await self._run(lambda: self._shrink(0))

    def _get(self, key: bytes) -> tuple[str, int, bytes] | None:
        row = self._db.execute("SELECT id, created, body FROM answer WHERE key = ?", (key,)).fetchone()
        if row is not None:
            # A full disk stops this write; what was read is good.
            with suppress(sqlite3.OperationalError):
                self._db.execute("UPDATE answer SET used = ? WHERE key = ?", (time.time(), key))
        return row

    def _put(self, key: bytes, answer_id: str, created: int, body: bytes) -> None:
        self._shrink(self._max_bytes - len(body))
        row = (key, answer_id, created, body, time.time())
        self._size += len(body) * self._db.execute("INSERT OR IGNORE INTO answer VALUES (?, ?, ?, ?, ?)", row).rowcount

    def _shrink(self, room: int) -> None:
        while self._size > room:
            oldest = self._db.execute("SELECT key, LENGTH(body) FROM answer ORDER BY used LIMIT 1").fetchone()
            if oldest is None:
                self._size = 0
                return
            self._db.execute("DELETE FROM answer WHERE key = ?", (oldest[0],))
            self._size -= oldest[1]

    async def _run(self, work: Callable[[], T]) -> T | None:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            log.error("response_cache: %s", error)
            return None


def _created(seconds: int) -> bytes:
    return b'"created":%d' % seconds


def _open(place: str) -> sqlite3.Connection:
    try:
        return _connect(place)
    except sqlite3.DatabaseError as error:
        # It is a cache: what cannot be read is made new.
        log.error("response_cache: %s: %s; it is made new", place, error)
        for ending in ("", "-wal", "-shm"):
            Path(place + ending).unlink(missing_ok=True)
        return _connect(place)


def _connect(place: str) -> sqlite3.Connection:
    if place != ":memory:" and not Path(place).exists():
        # SQLite would make it readable by all.
        os.close(os.open(place, os.O_CREAT | os.O_RDWR, 0o600))
    db = sqlite3.connect(place, check_same_thread=False, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.executescript(_SCHEMA)
    return db
