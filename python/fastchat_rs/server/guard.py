"""The watch over the running server: memory in two steps, a dead engine, streams that nobody came back to."""

import asyncio
import logging
import time
from collections.abc import Iterable
from pathlib import Path

from fastchat_rs.config import ServeConfig, parse_bytes
from fastchat_rs.server.handle import Context
from fastchat_rs.server.state import Pressure, Served

log = logging.getLogger("fastchat_rs")

_LOOK_SECONDS = 0.25
# Between looks of /health and the end, so that a balancer sees it and waiting clients get their errors.
_DEAD_SECONDS = 2.0
_SOFT, _HARD = 0.90, 0.95
# Steps down a little later than up, so that it does not flutter.
_SLACK = 0.03
_KIB = 1024


def memory_limit(config: ServeConfig, root: Path = Path("/")) -> int | None:
    """The setting, or the smaller of the cgroup's and the machine's; None where nothing says."""
    if config.memory_limit is not None:
        return parse_bytes(config.memory_limit, "memory_limit")
    found: list[int] = []
    for name in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _text(root / name).strip()
        if text.isdecimal():
            found.append(int(text))
    total = _field(_text(root / "proc/meminfo"), "MemTotal")
    return min([*found, *([total] if total else [])], default=None)


def memory_used(root: Path = Path("/")) -> int:
    """What only the end of the process would give back: not the pages of mapped weight files."""
    status = _text(root / "proc/self/status")
    return _field(status, "RssAnon") + _field(status, "RssShmem")


def pressure(used: int, limit: int | None, before: Pressure) -> Pressure:
    """Of the memory, given how it was."""
    if limit is None:
        return Pressure.NONE
    part = used / limit
    for level, mark in ((Pressure.HARD, _HARD), (Pressure.SOFT, _SOFT)):
        if part >= mark - (_SLACK if before.value >= level.value else 0):
            return level
    return Pressure.NONE


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""


def _field(text: str, name: str) -> int:
    line = next((line for line in text.splitlines() if line.startswith(f"{name}:")), "")
    number = line.partition(":")[2].split()
    return int(number[0]) * _KIB if number else 0


def say_failures(models: Iterable[Served], said: set[str]) -> None:
    """Of graphs, once for each model: it goes on without them."""
    for served in models:
        failure = served.bridge.engine.stats().graph_failure
        if failure is not None and served.name not in said:
            said.add(served.name)
            log.warning("graphs: %s: no more are captured, other steps run eagerly: %s", served.name, failure)


class Guard:
    """Looks four times a second; its task ends when the engine is dead."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._limit = memory_limit(context.state.config)
        self._eager: set[str] = set()

    async def watch(self) -> None:
        """Until the engine dies."""
        dead_since: float | None = None
        while True:
            await self._look_at_memory()
            self._context.rings.sweep()
            self._note()
            say_failures(self._context.state.models.values(), self._eager)
            if self._context.state.health != "dead":
                dead_since = None
            elif dead_since is None:
                dead_since = time.monotonic()
                log.error("the engine is dead: every request gets an error, and the server ends")
            elif time.monotonic() - dead_since >= _DEAD_SECONDS:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    def _note(self) -> None:
        """For /metrics."""
        state, cache = self._context.state, self._context.cache
        state.resume_bytes = self._context.rings.size
        if cache is not None:
            state.cache_bytes, state.cache_hits, state.cache_misses = cache.size, cache.hits, cache.misses

    async def _look_at_memory(self) -> None:
        state = self._context.state
        before, used = state.pressure, memory_used()
        state.memory_used = used
        state.pressure = pressure(used, self._limit, before)
        if state.pressure is before:
            return
        log.warning("memory: %d of %s bytes are used, pressure is now %s", used, self._limit, state.pressure.name)
        if state.pressure is not Pressure.NONE:
            self._context.rings.clear()
            if self._context.cache is not None:
                await self._context.cache.clear()
