"""What the log says of graphs: once, and only where it is news."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from fastchat_rs.device import say_graphs
from fastchat_rs.server.guard import say_failures


def test_enforce_eager_is_never_silent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fastchat_rs")
    cpu: Any = SimpleNamespace(kernels="cpu-avx2", graphs="off: cpu-avx2 has none")
    gpu: Any = SimpleNamespace(kernels="cuda-sm90", graphs="on, for decode steps of up to 256 sequences")
    say_graphs("m", cpu, False)
    assert not caplog.messages
    say_graphs("m", cpu, True)
    say_graphs("m", gpu, False)
    assert caplog.messages == [
        "graphs of decode steps: m: off: cpu-avx2 has none; enforce_eager changes nothing",
        "graphs of decode steps: m: on, for decode steps of up to 256 sequences",
    ]


def test_a_failed_capture_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    failure: list[str | None] = [None]
    engine = SimpleNamespace(stats=lambda: SimpleNamespace(graph_failure=failure[0]))
    served: Any = SimpleNamespace(name="m", bridge=SimpleNamespace(engine=engine))
    said: set[str] = set()
    say_failures([served], said)
    assert not caplog.messages
    failure[0] = "a decode step of 8 sequences: no memory"
    for _ in range(3):
        say_failures([served], said)
    assert len(caplog.messages) == 1 and "a decode step of 8 sequences: no memory" in caplog.messages[0]
