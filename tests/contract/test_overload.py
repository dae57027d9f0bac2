"""Too much of everything: 503 at once, deadlines of the queue and the first token, memory, bytes of a stream."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from live import Live, serving

CHAT = "/v1/chat/completions"
OPTIONS = ("--max-model-len", "1024")


def stream(live: Live, **fields: Any) -> str:
    """The whole text of a stream."""
    with live.client() as client, client.stream("POST", CHAT, json=live.chat(stream=True, **fields)) as response:
        return "\n".join(response.iter_lines())


def test_who_waits_too_long_gets_a_504(demo_model: Path) -> None:
    with serving(demo_model, *OPTIONS, "--max-num-seqs", "1", "--queue-timeout", "0.2") as live:
        threading.Thread(target=stream, args=(live,), kwargs={"max_tokens": 900, "ignore_eos": True}).start()
        until = time.monotonic() + 10
        while not live.metrics()["fastchat_requests_running"]:
            assert time.monotonic() < until
        late = live.post(CHAT, live.chat(max_tokens=1))
        assert late.status_code == 504
        assert late.json()["error"]["code"] == "deadline_exceeded"
        assert "to begin" in late.json()["error"]["message"]
        live.idle(30)
        assert live.post(CHAT, live.chat(max_tokens=1)).status_code == 200


def test_the_deadline_of_the_first_token(demo_model: Path) -> None:
    with serving(demo_model, *OPTIONS, "--first-token-timeout", "0.001", "--no-prefix-caching") as live:
        late = live.post(CHAT, live.chat("word " * 800, max_tokens=1))
        assert late.status_code == 504
        assert "wrote nothing" in late.json()["error"]["message"]
        live.idle()


def test_a_stream_has_a_budget_of_bytes(demo_model: Path) -> None:
    with serving(demo_model, *OPTIONS, "--max-stream", "20KiB") as live:
        text = stream(live, max_tokens=900, ignore_eos=True)
        assert '"code":"stream_too_large"' in text and "[DONE]" not in text
        assert len(text) < 40_000
        assert stream(live, max_tokens=5).endswith("data: [DONE]\n")
        live.idle()


def test_without_memory_new_work_is_refused(demo_model: Path) -> None:
    with serving(demo_model, *OPTIONS, "--memory-limit", "16MiB") as live:
        until = time.monotonic() + 10
        while (response := live.post(CHAT, live.chat(max_tokens=1))).status_code == 200:
            assert time.monotonic() < until
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "overloaded"
        assert response.headers["retry-after"] == "1" and response.headers["connection"] == "close"
        assert live.metrics()["fastchat_memory_pressure"] == 2
        with live.client() as client:
            assert client.get("/health").json() == {"status": "ready"}
        # Nobody's body is read: a large one is refused as fast.
        began = time.monotonic()
        assert live.post(CHAT, {"x": "y" * 1_000_000}).status_code == 503
        assert time.monotonic() - began < 10


def test_connections_are_bounded(demo_model: Path) -> None:
    with serving(demo_model, *OPTIONS, "--max-connections", "2") as live, httpx.Client(base_url=live.url) as first:
        assert first.get("/health").status_code == 200
        with httpx.Client(base_url=live.url) as second:
            assert second.get("/health").status_code == 200
            try:
                httpx.get(f"{live.url}/health", timeout=0.5)
                raise AssertionError("a third connection was answered")
            except httpx.ReadTimeout:
                pass
        assert httpx.get(f"{live.url}/health", timeout=20).status_code == 200


def test_the_log_as_json(demo_model: Path) -> None:
    with serving(demo_model, *OPTIONS, "--log-format", "json", "--access-log", "--api-key", "s3cret") as live:
        with live.client(headers={"authorization": "Bearer s3cret"}) as client:
            client.post(CHAT, json=live.chat("a very private prompt", max_tokens=1), headers={"x-request-id": "r-1"})
            client.get("/v1/%0a%1b%22evil")
        assert live.stop() == 0
    found = [json.loads(line) for line in live.lines if line.startswith("{")]
    start = next(line for line in found if line["event"] == "start")
    assert start["settings"]["max_model_len"] == 1024 and start["settings"]["api_key"] == "(set)"
    requests = {line["request"]: line for line in found if line["event"] == "request"}
    assert requests["r-1"]["status"] == 200 and requests["r-1"]["path"] == CHAT
    assert any(line["path"] == '/v1/\n\x1b"evil' and line["status"] == 404 for line in requests.values())
    assert not any("private" in line or "s3cret" in line for line in live.lines)
