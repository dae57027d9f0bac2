"""Two replicas on a local Ray: the same beginning goes to the same replica, streams stream, leaving frees."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

CHAT = "/v1/chat/completions"
REPLICA = "x-fastchat-replica"
_SERVER = """
import sys
import ray
from ray import serve
from fastchat_rs.ray import build

ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
settings = {"model": sys.argv[1], "min_replicas": "2", "max_replicas": 2, "max_model_len": 1024, "kv_memory": "32MiB"}
serve.run(build({**settings, "threads": 1, "api_key": ["secret"], "max_body": "100KB"}))
print("ready", flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
"""


@pytest.fixture(scope="module")
def cluster(demo_model: Path) -> Iterator[str]:
    """Its URL."""
    if importlib.util.find_spec("ray") is None:
        print("SKIPPED: ray is not installed; `pip install fastchat-rs[ray]` and run this test again", file=sys.stderr)
        pytest.skip("ray is not installed")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(demo_model), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
    )
    try:
        assert process.stdout is not None and process.stdin is not None
        assert any(line == "ready\n" for line in process.stdout), "Ray did not start"
        yield f"http://127.0.0.1:{port}"
        process.stdin.close()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # pyright: ignore[reportOptionalMemberAccess]


def body(content: str, **fields: Any) -> dict[str, Any]:
    return {
        "model": "smollm2-135m-instruct-q4_1",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 8,
        **fields,
    }


def client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=60, headers={"authorization": "Bearer secret"})


@pytest.mark.timeout(300)
def test_replicas(cluster: str) -> None:
    with client(cluster) as http:
        assert http.get("/health").json() == {"status": "ready"}
        assert http.get("/v1/models").json()["data"]
        assert httpx.post(cluster + CHAT, json=body("x"), timeout=60).status_code == 401
        assert http.post(CHAT, json=body("x" * 200_000)).status_code == 413
        assert http.get("/nothing").status_code == 404
        whole = http.post(CHAT, json=body("Say hello.", temperature=0)).json()
        assert whole["usage"]["completion_tokens"] > 0


@pytest.mark.timeout(300)
def test_equal_beginnings_share_a_replica(cluster: str) -> None:
    used: Counter[str] = Counter()
    cached = 0
    with client(cluster) as http:
        for number in range(12):
            system = f"You are helper number {number}. " + "Be kind. " * 150
            places: set[str] = set()
            for turn in range(3):
                messages = [{"role": "system", "content": system}, {"role": "user", "content": f"Turn {turn}"}]
                response = http.post(CHAT, json=body("", messages=messages, max_tokens=1))
                assert response.status_code == 200, response.text
                places.add(response.headers[REPLICA])
                cached += response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert len(places) == 1
            used.update(places)
    # Chance puts all twelve on one of two in one of 2048 runs; ids of replicas differ from run to run.
    assert len(used) == 2
    assert cached > 12 * 2 * 200


@pytest.mark.timeout(300)
def test_streams_and_leaving(cluster: str) -> None:
    with client(cluster) as http:
        expected = http.post(CHAT, json=body("Tell me a story.", temperature=0, max_tokens=40)).json()
        text = line = ""
        pieces = 0
        asked = body("Tell me a story.", temperature=0, max_tokens=40, stream=True)
        with http.stream("POST", CHAT, json=asked) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
                    pieces += 1
        assert line == "" and text == expected["choices"][0]["message"]["content"]
        assert pieces > 5
        long = body("Go on.", stream=True, max_tokens=900, ignore_eos=True)
        with http.stream("POST", CHAT, json=long) as response:
            lines = response.iter_lines()
            next(lines)
        until = time.monotonic() + 20
        while True:
            # Each look may meet another replica; both must be free.
            seen = [http.get("/metrics").text for _ in range(6)]
            running = [float(one.split("fastchat_requests_running{")[1].split("} ")[1].split("\n")[0]) for one in seen]
            if not any(running):
                break
            assert time.monotonic() < until
            time.sleep(0.2)
