"""The log: one record one line, nothing secret, and no full disk or stuck pipe that stops anybody."""

import json
import logging
import os
import time
from collections.abc import Iterator

import pytest

from fastchat_rs.config import ServeConfig
from fastchat_rs.server import logs

log = logging.getLogger("fastchat_rs")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    before = (log.handlers, log.propagate, log.level)
    ends = os.pipe()
    yield ends
    log.handlers, log.propagate = before[0], before[1]
    log.setLevel(before[2])
    logs.access.setLevel(logging.NOTSET)
    for end in ends:
        try:
            os.close(end)
        except OSError:
            pass


def lines(pipe: tuple[int, int], writer: logs.LogWriter) -> list[str]:
    writer.flush()
    os.close(pipe[1])
    with os.fdopen(os.dup(pipe[0])) as file:
        return file.read().splitlines()


EVIL = 'x\nfastchat-rs: error: forged\r\x1b[31m"\u2028\ud800'


def test_json(pipe: tuple[int, int]) -> None:
    config = ServeConfig(model="m", log_format="json", access_log=True)
    writer = logs.start(config, pipe[1])
    log.error("%s", EVIL)
    logs.access.info("request", extra={"fields": {"path": EVIL, "status": 200}})
    log.warning("x" * 100_000)
    try:
        raise ValueError(EVIL)
    except ValueError:
        log.exception("failed")
    found = [json.loads(line) for line in lines(pipe, writer)]
    assert [(one["level"], one["event"][:7]) for one in found] == [
        ("error", "x\nfastc"),
        ("info", "request"),
        ("warning", "xxxxxxx"),
        ("error", "failed"),
    ]
    assert found[1]["path"] == EVIL and found[1]["status"] == 200
    assert len(found[2]["event"]) < 9000
    assert "ValueError" in found[3]["trace"]


def test_text(pipe: tuple[int, int]) -> None:
    writer = logs.start(ServeConfig(model="m"), pipe[1])
    log.error("%s", EVIL)
    logs.access.info("request", extra={"fields": {"path": "/"}})
    (line,) = lines(pipe, writer)
    assert line.startswith("fastchat-rs: error: x\\nfastchat-rs: error: forged")
    assert "\x1b" not in line


def test_a_stuck_or_closed_pipe_stops_nobody(pipe: tuple[int, int]) -> None:
    writer = logs.start(ServeConfig(model="m"), pipe[1])
    began = time.monotonic()
    # The pipe takes 64 KB; nobody reads.
    for _ in range(20_000):
        log.error("x" * 100)
    assert time.monotonic() - began < 20
    assert writer.dropped > 5000
    os.set_blocking(pipe[1], False)
    full = os.open("/dev/full", os.O_WRONLY)
    writer = logs.start(ServeConfig(model="m"), full)
    log.error("x")
    writer.flush()
    assert writer.dropped == 1
    os.close(full)


def test_settings_without_secrets() -> None:
    config = ServeConfig(model="m", api_key=["secret"], limits_url="redis://:password@h/0", keys="k.json", port=9)
    shown = logs.settings(config, everything=False)
    assert shown == {"model": "m", "port": 9, "api_key": "(set)", "keys": "k.json", "limits_url": "(set)"}
    everything = logs.settings(config, everything=True)
    assert set(everything) == set(ServeConfig.__struct_fields__)
    assert "secret" not in json.dumps(everything) and "password" not in json.dumps(everything)
