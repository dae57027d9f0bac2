"""Clients that leave, and streams that wait: everything is free again, and the next request is answered at once."""

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from live import Live, raw, serving

CHAT = "/v1/chat/completions"


def connect(live: Live, body: dict[str, object]) -> socket.socket:
    """A request on its way."""
    connection = socket.create_connection(("127.0.0.1", live.port), timeout=30)
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def answered(live: Live) -> float:
    """Seconds until a small request is answered."""
    began = time.monotonic()
    response = live.post(CHAT, live.chat(max_tokens=2))
    assert response.status_code == 200
    return time.monotonic() - began


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_aborts(live: Live, stream: bool) -> None:
    before = live.idle()
    connection = connect(live, live.chat("Go on forever.", stream=stream, max_tokens=1900, ignore_eos=True))
    until = time.monotonic() + 5
    while not live.metrics()["fastchat_requests_running"]:
        assert time.monotonic() < until
    if stream:
        assert connection.recv(100)
    connection.close()
    after = live.idle(3)
    assert after["fastchat_kv_blocks_free"] == before["fastchat_kv_blocks_free"]
    assert after["fastchat_generation_tokens_total"] - before["fastchat_generation_tokens_total"] < 1500
    assert answered(live) < 1


def test_leaving_with_the_body_half_sent(live: Live) -> None:
    connection = socket.create_connection(("127.0.0.1", live.port))
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    connection.close()
    assert answered(live) < 1


@pytest.fixture(scope="module")
def full(demo_model: Path) -> Iterator[Live]:
    """A server whose cache is small and has been full: its pages take memory from their first use on."""
    with serving(demo_model, "--max-model-len", "2048", "--kv-memory", "128MiB") as server:
        blocks = server.metrics()["fastchat_kv_blocks_total"]
        for start in range(int(blocks * 16 / 1900) + 1):
            prompt = [1000 + (start * 7919 + place) % 40000 for place in range(1900)]
            response = server.post("/v1/completions", {"model": server.model, "prompt": prompt, "max_tokens": 1})
            assert response.status_code == 200, response.text
        yield server


@pytest.mark.timeout(300)
def test_two_hundred_leave_at_random_points(full: Live) -> None:
    live = full
    rng = random.Random(5)
    answered(live)
    before, memory = live.idle(), live.memory()

    def one(seed: int) -> None:
        mine = random.Random(seed)
        prompt = " ".join(mine.choices(("red", "green", "blue", "seven", "cat"), k=mine.choice((5, 50, 400))))
        body = live.chat(prompt, stream=mine.random() < 0.7, max_tokens=300, ignore_eos=True, n=mine.choice((1, 1, 3)))
        connection = connect(live, body)
        connection.settimeout(mine.choice((0.0001, 0.01, 0.1, 0.4, 1.0)))
        try:
            while connection.recv(4096):
                if mine.random() < 0.1:
                    break
        except (TimeoutError, BlockingIOError):
            pass
        if mine.random() < 0.5:
            # A reset instead of a farewell.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.close()

    for _ in range(10):
        threads = [threading.Thread(target=one, args=(rng.random(),)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    after = live.idle(10)
    assert after["fastchat_kv_blocks_free"] == before["fastchat_kv_blocks_free"]
    assert after["fastchat_requests_open"] <= 1
    assert answered(live) < 1
    assert live.memory() - memory < 64 << 20


def test_a_waiting_stream_sends_comments(live: Live) -> None:
    body = live.chat(f"{time.time()} " + "word " * 700, stream=True, max_tokens=2)
    # Others keep the engine busy, so that the first token takes longer than a heartbeat.
    received = b""
    with ExitStack() as open_connections:
        for other in range(2):
            busy = live.chat(f"{other} " * 300, max_tokens=64, ignore_eos=True)
            open_connections.enter_context(connect(live, busy))
        connection = open_connections.enter_context(connect(live, body))
        while b"[DONE]" not in received:
            part = connection.recv(65536)
            assert part
            received += part
    assert b": ping\n\n" in received
    assert received.startswith(b"HTTP/1.1 200")
    assert b"\nid:" not in received and b"retry:" not in received


def test_a_second_request_on_the_connection(live: Live) -> None:
    content = json.dumps(live.chat(max_tokens=1)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
    both = f"{head}\r\n".encode() + content + f"{head}Connection: close\r\n\r\n".encode() + content
    assert raw(live, both, 30).count(b"HTTP/1.1 200") == 2
