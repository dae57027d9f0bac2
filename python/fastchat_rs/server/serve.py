"""The command `serve`: begins to load, then imports and runs the server, logs, and ends the process."""

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fastchat_rs.config import ServeConfig
from fastchat_rs.errors import FastchatError
from fastchat_rs.server import logs
from fastchat_rs.server.bridge import EngineError, __version__
from fastchat_rs.server.weights import begin

if TYPE_CHECKING:
    from fastchat_rs.server.state import State

log = logging.getLogger("fastchat_rs")


def _run(main: Coroutine[Any, Any, int]) -> int:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def serve(config: ServeConfig, announce: Callable[[int, "State"], None]) -> None:
    """Runs the server and ends the process. `announce` is told the port when requests are served."""
    # Most of what is made until requests are served stays; `Process` switches this on again.
    gc.disable()
    begun = begin(config)
    # As long as a small model takes to load, which goes on beside it.
    from fastchat_rs.server.process import Process

    gc.collect()
    writer = logs.start(config)
    found = logs.settings(config, everything=config.log_format == "json")
    if config.log_format == "json":
        log.info("start", extra={"fields": {"version": __version__, "settings": found}})
    else:
        shown = ", ".join(f"{name}={value!r}" for name, value in found.items() if name != "model")
        writer.put(f"fastchat-rs {__version__}: loading {config.model}{' with ' if shown else ''}{shown}")

    async def main() -> int:
        process = Process(config, announce, begun)
        process.state.log_lines_dropped = lambda: writer.dropped
        return await process.run()

    try:
        status = _run(main())
    except (EngineError, FastchatError) as error:
        # By who writes the log: two writers could meet within a line.
        writer.put(f"fastchat-rs: {' '.join(str(error).split())}")
        status = 1
    except Exception:
        log.exception("the server failed")
        status = 1
    writer.flush()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Threads of granian and of the engine may still hold connections or files; nothing of worth is left.
    os._exit(status)
