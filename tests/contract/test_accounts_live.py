"""Keys, limits and budgets of a live server."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fastchat_rs import ledger
from fastchat_rs.server.app import OPEN_PATHS, ROUTES
from live import Live, raw, serving

CHAT = "/v1/chat/completions"


def make(path: Path, name: str, *options: str) -> str:
    """A key, made as an operator makes it."""
    command = [sys.executable, "-m", "fastchat_rs", "keys", "add", name, "--keys", str(path), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


class Guarded:
    """A server with keys, and the keys by name."""

    def __init__(self, live: Live, path: Path, keys: dict[str, str]) -> None:
        self.live, self.path, self.keys = live, path, keys

    def post(self, name: str, path: str = CHAT, **fields: Any) -> httpx.Response:
        body = self.live.chat(**fields)
        return self.live.post(path, body, headers={"authorization": f"Bearer {self.keys[name]}"})

    def used(self, name: str) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "fastchat_rs", "keys", "usage", "--keys", str(self.path), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return [row for row in json.loads(done.stdout) if row["name"] == name]


@pytest.fixture(scope="module")
def guarded(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    path = tmp_path_factory.mktemp("keys") / "keys.db"
    wanted: dict[str, list[str]] = {
        "free": [],
        "restricted": ["--model", "gpt-4"],
        "few": ["--requests-per-minute", "3"],
        "single": ["--max-concurrent", "1"],
        "small": ["--tokens-per-minute", "120"],
        "poor": ["--tokens-per-day", "150"],
        "rich": ["--money-per-day", "0.001"],
        "leaving": ["--tokens-per-day", "5000"],
        "stream": ["--tokens-per-month", "5000"],
    }
    keys = {name: make(path, name, *options) for name, options in wanted.items()}
    options = ("--alias", "gpt-4", "--keys", str(path), "--max-model-len", "1024", "--price", "*=1/2")
    with serving(demo_model, *options) as live:
        yield Guarded(live, path, keys)


def test_every_route_but_two_needs_a_key(guarded: Guarded) -> None:
    with guarded.live.client() as client:
        for route, methods in ROUTES.items():
            for prefix in ("", "/api") if route.startswith("/v1/") else ("",):
                for method in [*methods, "HEAD", "DELETE"]:
                    # Were the body read first, this would be a 415.
                    response = client.request(
                        method, prefix + route, content=b"x", headers={"content-type": "text/plain"}
                    )
                    if route in OPEN_PATHS:
                        assert response.status_code in (200, 405), route
                    else:
                        assert response.status_code == 401, (method, route)
        for path in ("/", "/v1", "/v1/chat/completions/", "/%2e%2e/health", "//health", "/health/x", "/HEALTH"):
            assert client.get(path).status_code == 401, path


def test_the_key_comes_before_the_body(guarded: Guarded) -> None:
    head = "Host: localhost\r\nContent-Type: application/json\r\nContent-Length: 30000000\r\n"
    began = time.monotonic()
    answer = raw(guarded.live, f"POST {CHAT} HTTP/1.1\r\n{head}\r\n{{".encode())
    # The body never comes.
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"www-authenticate: Bearer" in answer
    assert time.monotonic() - began < 10


def test_a_key_sees_only_its_models(guarded: Guarded) -> None:
    assert guarded.post("restricted").status_code == 404
    assert guarded.post("restricted", model="gpt-4", max_tokens=1).status_code == 200
    with guarded.live.client(headers={"authorization": f"Bearer {guarded.keys['restricted']}"}) as client:
        assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["gpt-4"]
        assert client.get(f"/v1/models/{guarded.live.model}").status_code == 404
        assert client.get("/v1/models/gpt-4").status_code == 200
        for path, body in (
            ("tokenize", {"prompt": "x"}),
            ("completions", {"prompt": "x"}),
            ("embeddings", {"input": "x"}),
        ):
            refused = client.post(f"/v1/{path}", json={"model": guarded.live.model, **body})
            assert refused.status_code == 404, path


def test_requests_a_minute(guarded: Guarded) -> None:
    # The window slides by minutes of the clock: where one begins, a part of what was used is free again.
    if (rest := 60 - time.time() % 60) < 5:
        time.sleep(rest)
    for left in (2, 1, 0):
        response = guarded.post("few", max_tokens=1)
        assert response.status_code == 200
        assert response.headers["x-ratelimit-remaining-requests"] == str(left)
    refused = guarded.post("few", max_tokens=1)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-limit-requests"] == "3"
    assert refused.headers["x-ratelimit-reset-requests"].endswith("s")
    assert guarded.post("free", max_tokens=1).status_code == 200


def test_requests_at_a_time(guarded: Guarded) -> None:
    headers = {"authorization": f"Bearer {guarded.keys['single']}"}
    body = guarded.live.chat(stream=True, max_tokens=400, ignore_eos=True)
    with guarded.live.client() as client:
        with client.stream("POST", CHAT, json=body, headers=headers) as response:
            lines = response.iter_lines()
            next(lines)
            assert guarded.post("single", max_tokens=1).status_code == 429
        guarded.live.idle()
        until = time.monotonic() + 5
        while guarded.post("single", max_tokens=1).status_code != 200:
            assert time.monotonic() < until


def test_tokens_a_minute(guarded: Guarded) -> None:
    first = guarded.post("small", max_tokens=60, ignore_eos=True)
    assert first.status_code == 200
    used = first.json()["usage"]["total_tokens"]
    second = guarded.post("small", max_tokens=60, ignore_eos=True)
    assert second.status_code == 429, used
    assert second.json()["error"]["code"] == "rate_limit_exceeded"
    assert int(second.headers["x-ratelimit-remaining-tokens"]) == 120 - used
    never = guarded.post("small", max_tokens=500)
    assert never.status_code == 429 and never.headers["x-should-retry"] == "false"


def test_a_budget_of_tokens(guarded: Guarded) -> None:
    total = 0
    response = guarded.post("poor", max_tokens=20)
    while response.status_code == 200:
        total += response.json()["usage"]["total_tokens"]
        response = guarded.post("poor", max_tokens=20)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (429, "insufficient_quota")
    assert "budget" in error["message"] and error["type"] == "insufficient_quota"
    assert response.headers["x-should-retry"] == "false"
    assert 0 < total <= 150
    (row,) = guarded.used("poor")
    assert row["prompt"] + row["completion"] == total
    # Without max_tokens the answer is as long as the budget allows.
    rest = 150 - total
    last = guarded.post("poor", content="x", max_tokens=None, ignore_eos=True)
    if last.status_code == 200:
        assert last.json()["usage"]["total_tokens"] == rest
        assert "max_tokens=clamped" in last.headers["x-fastchat-applied"]


def test_a_budget_of_money(guarded: Guarded) -> None:
    response = guarded.post("rich", max_tokens=300, ignore_eos=True)
    usage = response.json()["usage"]
    (row,) = guarded.used("rich")
    assert row["money"] == pytest.approx((usage["prompt_tokens"] + 2 * usage["completion_tokens"]) / 1e6)
    refused = guarded.post("rich", max_tokens=300, ignore_eos=True)
    assert refused.status_code == 429 and "money" in refused.json()["error"]["message"]


def test_who_leaves_pays_for_what_was_made(guarded: Guarded) -> None:
    headers = {"authorization": f"Bearer {guarded.keys['leaving']}"}
    body = guarded.live.chat(stream=True, max_tokens=900, ignore_eos=True)
    with guarded.live.client() as client, client.stream("POST", CHAT, json=body, headers=headers) as response:
        for number, _ in enumerate(response.iter_lines()):
            if number == 40:
                break
    guarded.live.idle()
    until = time.monotonic() + 5
    while not (rows := guarded.used("leaving")):
        assert time.monotonic() < until
    assert rows[0]["prompt"] > 0 and 10 <= rows[0]["completion"] < 900
    book = ledger.Ledger(guarded.path, "test")
    assert book.held() == 0
    book.close()


def test_streams_are_booked_before_they_end(guarded: Guarded) -> None:
    headers = {"authorization": f"Bearer {guarded.keys['stream']}"}
    totals: list[int] = []

    def one() -> None:
        body = guarded.live.chat(stream=True, stream_options={"include_usage": True}, max_tokens=10)
        with guarded.live.client() as client, client.stream("POST", CHAT, json=body, headers=headers) as response:
            lines = [line[6:] for line in response.iter_lines() if line.startswith("data: {")]
        totals.append(json.loads(lines[-1])["usage"]["total_tokens"])

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    (row,) = guarded.used("stream")
    assert (row["requests"], row["prompt"] + row["completion"]) == (8, sum(totals))


def test_a_revoked_key(guarded: Guarded) -> None:
    guarded.keys["gone"] = make(guarded.path, "gone")
    until = time.monotonic() + 5
    while guarded.post("gone", max_tokens=1).status_code != 200:
        assert time.monotonic() < until
    command = [sys.executable, "-m", "fastchat_rs", "keys", "revoke", "gone", "--keys", str(guarded.path)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    until = time.monotonic() + 5
    while guarded.post("gone", max_tokens=1).status_code != 401:
        assert time.monotonic() < until


def test_other_addresses_need_a_key(demo_model: Path) -> None:
    command = [sys.executable, "-m", "fastchat_rs", "serve", str(demo_model), "--port", "0", "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "--insecure" in done.stderr
