"""Starting, draining, stopping, and not starting."""

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from live import Live, events, serving

CHAT = "/v1/chat/completions"
OPTIONS = ("--max-model-len", "1024")


class Reader(threading.Thread):
    """Reads a stream to its end in the background."""

    def __init__(self, live: Live, tokens: int) -> None:
        super().__init__(daemon=True)
        self.live, self.tokens = live, tokens
        self.begun = threading.Event()
        self.chunks: list[dict[str, Any]] = []
        self.text = ""
        self.start()
        assert self.begun.wait(20)

    def run(self) -> None:
        body = self.live.chat("Go on.", stream=True, max_tokens=self.tokens, ignore_eos=True)
        with self.live.client() as client, client.stream("POST", CHAT, json=body) as response:
            for line in response.iter_lines():
                self.begun.set()
                self.text += line + "\n"


def test_sigterm_lets_running_requests_end(demo_model: Path) -> None:
    with serving(demo_model, *OPTIONS) as live:
        reader = Reader(live, 200)
        live.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        with live.client() as client:
            health = client.get("/health")
            assert (health.status_code, health.json()) == (503, {"status": "draining"})
            refused = client.post(CHAT, json=live.chat())
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "draining"
            assert int(refused.headers["retry-after"]) > 0
        assert live.process.wait(30) == 0
        reader.join(10)
        assert reader.text.rstrip().endswith("data: [DONE]")
        assert '"finish_reason":"length"' in reader.text


def test_what_does_not_end_in_time_gets_an_error_event(demo_model: Path) -> None:
    with serving(demo_model, *OPTIONS, "--drain", "0.2") as live:
        reader = Reader(live, 900)
        began = time.monotonic()
        assert live.stop() == 0
        assert time.monotonic() - began < 5
        reader.join(10)
        last = reader.text.rstrip().splitlines()[-1]
        assert last.startswith('data: {"error":')
        assert '"code":"draining"' in last
        assert "[DONE]" not in reader.text


def test_a_second_signal_means_now(demo_model: Path) -> None:
    with serving(demo_model, *OPTIONS) as live:
        Reader(live, 900)
        live.process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        began = time.monotonic()
        assert live.stop(10) == 0
        assert time.monotonic() - began < 4


def test_an_idle_server_stops_at_once(demo_model: Path) -> None:
    with serving(demo_model, *OPTIONS) as live, live.client() as client:
        client.get("/health")
        began = time.monotonic()
        assert live.stop() == 0
        assert time.monotonic() - began < 2


def test_the_deadline_of_a_request(demo_model: Path) -> None:
    with serving(demo_model, *OPTIONS, "--request-timeout", "0.3") as live:
        late = live.post(CHAT, live.chat(max_tokens=900, ignore_eos=True))
        assert late.status_code == 504
        assert late.json()["error"]["code"] == "deadline_exceeded"
        reader = Reader(live, 900)
        reader.join(20)
        assert '"code":"deadline_exceeded"' in reader.text
        assert live.idle()["fastchat_kv_blocks_free"] == live.metrics()["fastchat_kv_blocks_total"]


def test_a_full_queue_is_a_503(demo_model: Path) -> None:
    with serving(demo_model, *OPTIONS, "--max-queue", "2", "--max-num-seqs", "1") as live:
        readers = [Reader(live, 300)]
        statuses: list[httpx.Response] = []
        body = live.chat(max_tokens=1)
        posts = [threading.Thread(target=lambda: statuses.append(live.post(CHAT, body))) for _ in range(6)]
        for post in posts:
            post.start()
        for post in posts:
            post.join(60)
        readers[0].join(60)
        refused = [response for response in statuses if response.status_code == 503]
        assert refused
        assert {response.status_code for response in statuses} == {200, 503}
        assert refused[0].json()["error"]["code"] == "overloaded"
        assert int(refused[0].headers["retry-after"]) > 0


def test_an_answer_while_the_engine_is_loading(demo_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "fastchat_rs", "serve", str(demo_model), "--port", str(port), *OPTIONS]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            seen: set[tuple[int, str]] = set()
            until = time.monotonic() + 30
            while (200, "ready") not in seen:
                assert time.monotonic() < until
                try:
                    response = httpx.get(f"http://127.0.0.1:{port}/health")
                    seen.add((response.status_code, response.json()["status"]))
                except httpx.TransportError:
                    pass
            assert seen <= {(503, "loading"), (200, "ready")}
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["no-such-model"], "no-such-model"),
        (["DEMO", "--port", "99999"], "port"),
        (["DEMO", "--kv-memory", "lots"], "kv_memory"),
        (["DEMO", "--alias", "a=b"], "alias"),
        (["DEMO", "--chat-template", "/nowhere.jinja"], "chat_template"),
        (["BROKEN"], "broken.gguf"),
        (["FOLDER"], "config.json"),
    ],
)
def test_what_cannot_start_says_why_in_one_line(
    arguments: list[str], named: str, demo_model: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(demo_model.read_bytes()[:5000])
    empty = tmp_path / "folder"
    empty.mkdir()
    paths = {"DEMO": str(demo_model), "BROKEN": str(broken), "FOLDER": str(empty)}
    command = [sys.executable, "-m", "fastchat_rs", "serve", *(paths.get(word, word) for word in arguments)]
    if "--port" not in arguments:
        command += ["--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if ": loading" not in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("fastchat-rs: ")
    assert named in lines[0]


def test_a_port_that_is_taken(live: Live, demo_model: Path) -> None:
    command = [sys.executable, "-m", "fastchat_rs", "serve", str(demo_model), "--port", str(live.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert f"127.0.0.1:{live.port}" in done.stderr


def test_events_helper_refuses_bad_framing() -> None:
    response = httpx.Response(
        200, headers={"content-type": "text/event-stream", "cache-control": "no-cache"}, text="x\n\n"
    )
    with pytest.raises(AssertionError):
        list(events(response))


def test_the_prefix_cache_on_disk_outlives_the_server(demo_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "blocks"
    options = (*OPTIONS, "--prefix-cache-dir", str(folder), "--prefix-cache-size", "256MiB")
    answers: list[dict[str, Any]] = []
    hits: list[float] = []
    for _ in range(2):
        with serving(demo_model, *options) as live:
            assert any("prefix_cache_dir=" in line for line in live.lines)
            answers.append(live.post(CHAT, live.chat("Tell a long story. " * 20)).json())
            hits.append(live.metrics()["fastchat_prefix_disk_hits_total"])
            assert live.stop() == 0
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert cached[0] == 0 and cached[1] >= 64
    assert hits == [0, cached[1] / 16]
    assert answers[0]["choices"][0]["message"] == answers[1]["choices"][0]["message"]
