"""What the log says of devices: once, and only where it is news."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from fastchat_rs.device import say_device
from fastchat_rs.server.guard import say_failures


def test_enforce_eager_is_never_silent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fastchat_rs")
    cpu: Any = SimpleNamespace(kernels="cpu-avx2", graphs="off: cpu-avx2 has none")
    gpu: Any = SimpleNamespace(kernels="cuda-sm90", graphs="on, for decode steps of up to 256 sequences")
    say_device("m", cpu, "auto", False)
    assert not caplog.messages
    say_device("m", cpu, "auto", True)
    say_device("m", gpu, "auto", False)
    assert caplog.messages == [
        "graphs of decode steps: m: off: cpu-avx2 has none; enforce_eager changes nothing",
        "graphs of decode steps: m: on, for decode steps of up to 256 sequences",
    ]


def test_products_in_f32_where_bf16_was_asked_for_are_said(caplog: pytest.LogCaptureFixture) -> None:
    for kernels in ("cpu-avx512-bf16", "cuda-sm90", "cpu-avx2"):
        found: Any = SimpleNamespace(kernels=kernels, graphs="")
        say_device("m", found, "bfloat16", False)
        say_device("m", found, "float32", False)
    (message,) = [message for message in caplog.messages if message.startswith("dtype")]
    assert message == "dtype: m: this processor multiplies no bf16 (cpu-avx2); products are in f32"


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
