"""The life of the server process: port, socket options, signals, drain. Knows no routes."""

import asyncio
import fcntl
import gc
import os
import resource
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from fastchat_rs.config import ServeConfig, parse_bytes
from fastchat_rs.errors import ConfigError
from fastchat_rs.server.api_error import ApiError
from fastchat_rs.server.app import App
from fastchat_rs.server.guard import Guard
from fastchat_rs.server.loading import load_models
from fastchat_rs.server.state import Limits, Phase, State
from fastchat_rs.server.weights import Loaded

_BACKLOG = 2048
_MAX_CONNECTIONS = 65536
# Files that are not connections: weights, logs, the doorbell, spare.
_RESERVED_FILES = 256
_KEEPALIVE_IDLE, _KEEPALIVE_INTERVAL, _KEEPALIVE_COUNT = 15, 5, 3


def claim_port(host: str, port: int) -> tuple[int, object]:
    """Fails when anybody listens there: granian shares ports silently. Returns the port and a lock to keep."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Connections of an earlier run in TIME_WAIT do not count; listeners still do.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        port = probe.getsockname()[1]
    lock = (Path(tempfile.gettempdir()) / f"fastchat-rs-{os.getuid()}-{port}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: another fastchat-rs is starting there") from error
    return port, lock


def raise_file_limit() -> int:
    """Lifts the soft limit of open files to the hard one; returns how many connections fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return max(soft - _RESERVED_FILES, 16)


def listening_sockets(port: int) -> Iterator[socket.socket]:
    """Our own listening sockets on the port, found among the open files; granian does not hand them out."""
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []:
        try:
            # Never a copy of anything else: closing it would drop the process's locks on that file, SQLite's too.
            if not stat.S_ISSOCK(os.stat(f"/proc/self/fd/{name}").st_mode):
                continue
            number = os.dup(int(name))
        except OSError:
            continue
        try:
            found = socket.socket(fileno=number)
        except OSError:
            os.close(number)
            continue
        with found, suppress(OSError):
            if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and found.getsockname()[1] == port:
                yield found


async def tune_listener(port: int, stall_seconds: float) -> None:
    """Dead peers and clients that stop reading are cut by the kernel; accepted sockets inherit these options."""
    while True:
        tuned = False
        for listener in listening_sockets(port):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if sys.platform == "linux":
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE)
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL)
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_COUNT)
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall_seconds * 1000))
            tuned = True
        if tuned or sys.platform != "linux":
            return
        await asyncio.sleep(0.05)


class Process:
    """One run of the server, whose models somebody has begun to load."""

    def __init__(
        self, config: ServeConfig, announce: Callable[[int, State], None], begun: Sequence[Future[Loaded]]
    ) -> None:
        self._config = config
        self._begun = begun
        self._announce = announce
        self._port, self._lock = claim_port(config.host, config.port)
        self.state = State(config, Limits.of(config), port=self._port)
        self._app = App(self.state)
        self._signalled = asyncio.Event()
        self._signals = 0
        self._server = Server(
            self._app,
            address=config.host,
            port=self._port,
            interface=Interfaces.RSGI,
            http=HTTPModes.http1,
            websockets=False,
            backlog=_BACKLOG,
            backpressure=min(raise_file_limit(), config.max_connections or _MAX_CONNECTIONS),
            http1_settings=HTTP1Settings(
                header_read_timeout=15_000,
                keep_alive=True,
                max_buffer_size=parse_bytes(config.max_header, "max_header"),
            ),
            log_enabled=False,
        )

    async def run(self) -> int:
        """Serves until told to stop; the exit status. Raises what loading raises."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        serving = loop.create_task(self._server.serve())
        tuning = loop.create_task(tune_listener(self._port, self._config.stall_timeout))
        signalled = loop.create_task(self._signalled.wait())
        loading = loop.create_task(load_models(self.state, self._begun))
        # Work from here on is watched; the task ends when the engine is dead.
        dead = loop.create_task(Guard(self._app.context).watch())
        await asyncio.wait({loading, serving, signalled}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done() and not signalled.done():
            loading.result()
            # What was imported and loaded stays: walking it again and again would stop everybody for 0.1 s at a time.
            gc.freeze()
            gc.enable()
            self.state.phase = Phase.READY
            self._announce(self._port, self.state)
            await asyncio.wait({serving, signalled, dead}, return_when=asyncio.FIRST_COMPLETED)
        if dead.done():
            dead.result()
            return 1
        if not signalled.done():
            # granian ended by itself; its exception, when there is one, says why.
            serving.result()
            return 1
        await self._drain()
        self._server.stop()
        # granian waits for its connections without a limit; a stalled reader must not hold us.
        await asyncio.wait({serving}, timeout=1)
        for task in (tuning, dead):
            task.cancel()
        await self._app.accounts.close()
        if self._app.tracer is not None:
            await asyncio.to_thread(self._app.tracer.close)
        return 0

    async def _drain(self) -> None:
        """New work gets 503, running requests get their time, then an error event."""
        self.state.phase = Phase.DRAINING
        loop = asyncio.get_running_loop()
        until = loop.time() + self._config.drain
        while self.state.in_flight and loop.time() < until and self._signals < 2:
            await asyncio.sleep(0.02)
        bridges = {served.bridge for served in self.state.models.values()}
        for generation in {generation for bridge in bridges for generation in bridge.generations()}:
            generation.stop(lambda: ApiError(503, "The server is shutting down", code="draining"))
        for _ in range(50):
            if not self.state.in_flight:
                break
            await asyncio.sleep(0.01)

    def _on_signal(self) -> None:
        self._signals += 1
        self._signalled.set()
