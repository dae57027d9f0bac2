"""The log on stderr, as text or JSON. A thread writes it, so that no full disk or stuck pipe stops a request.

What is logged is chosen where it happens: never a prompt, an answer or a key. Here control characters are escaped and
long texts are cut, so that one record stays one line whatever a client put into it.
"""

import json
import logging
import os
import queue
import threading
import time
from typing import Any

from fastchat_rs.config import ServeConfig

access = logging.getLogger("fastchat_rs.access")
"""`access.info("request", extra={"fields": {...}})`"""

_MAX_LINES = 10_000
_MAX_TEXT = 8000
_STDERR = 2
_FLUSH_SECONDS = 1.0
# Settings that hold secrets.
_HIDDEN = ("api_key", "limits_url")


class LogWriter:
    """Writes lines in order; drops and counts what it cannot keep."""

    def __init__(self, descriptor: int = _STDERR) -> None:
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes] = queue.Queue(_MAX_LINES)
        self.dropped = 0
        threading.Thread(target=self._write, name="fastchat-log", daemon=True).start()

    def put(self, line: str) -> None:
        """Never waits."""
        try:
            self._lines.put_nowait(line.encode("utf-8", "backslashreplace") + b"\n")
        except queue.Full:
            self.dropped += 1

    def flush(self, seconds: float = _FLUSH_SECONDS) -> None:
        """Waits for what is left, but not for ever."""
        until = time.monotonic() + seconds
        while self._lines.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.005)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:
                self.dropped += 1
            finally:
                self._lines.task_done()


class _Handler(logging.Handler):
    def __init__(self, writer: LogWriter, *, as_json: bool) -> None:
        super().__init__()
        self._writer = writer
        self._as_json = as_json

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = getattr(record, "fields", {})
        text = _cut(record.getMessage())
        trace = ""
        if record.exc_info:
            trace = _cut(logging.Formatter().formatException(record.exc_info))
        if self._as_json:
            line = {"time": round(record.created, 3), "level": record.levelname.lower(), "event": text, **fields}
            self._writer.put(json.dumps({**line, "trace": trace} if trace else line))
        elif fields:
            self._writer.put(json.dumps({"time": round(record.created, 3), **fields}))
        else:
            self._writer.put(f"fastchat-rs: {record.levelname.lower()}: {_escaped(text)}")
            for line in trace.splitlines():
                self._writer.put(f"fastchat-rs:   {_escaped(line)}")


def start(config: ServeConfig, descriptor: int = _STDERR) -> LogWriter:
    """From now on the package's log goes to stderr in the wanted format."""
    writer = LogWriter(descriptor)
    logger = logging.getLogger("fastchat_rs")
    logger.handlers = [_Handler(writer, as_json=config.log_format == "json")]
    logger.propagate = False
    logger.setLevel(logging.INFO)
    access.setLevel(logging.INFO if config.access_log else logging.WARNING)
    return writer


def settings(config: ServeConfig, *, everything: bool) -> dict[str, Any]:
    """The configuration as it is used, secrets left out; only what differs from the defaults unless `everything`."""
    found: dict[str, Any] = {}
    for name, default in zip(config.__struct_fields__, _defaults(), strict=True):
        value = getattr(config, name)
        if everything or value != default:
            found[name] = "(set)" if name in _HIDDEN and value else value
    return found


def _defaults() -> list[Any]:
    """Of every field, in order."""
    blank = ServeConfig(model="")
    return [getattr(blank, name) for name in blank.__struct_fields__]


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}... ({len(text)} characters)"


def _escaped(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
