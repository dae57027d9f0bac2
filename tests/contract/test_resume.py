"""Streams that wait for their client, and answers that are kept: over a live server."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from live import Live, serving

CHAT = "/v1/chat/completions"
RESUME = {"x-fastchat-resume": "true"}


@pytest.fixture(scope="module")
def keeping(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    cache = tmp_path_factory.mktemp("cache") / "answers.db"
    options = ("--response-cache", str(cache), "--resume", "2", "--api-key", "one", "--api-key", "two")
    with serving(demo_model, "--max-model-len", "1024", *options) as live:
        yield live


def key(name: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}", **more}


def read(response: httpx.Response, count: int | None = None) -> list[str]:
    """Data of events; all of them, or the first ones."""
    found: list[str] = []
    lines = response.iter_lines()
    for line in lines:
        if line.startswith("data: "):
            found.append(line[6:])
        if len(found) == count:
            break
    return found


def whole(live: Live, body: dict[str, Any], **headers: str) -> list[str]:
    with live.client() as client, client.stream("POST", CHAT, json=body, headers=key("one", **headers)) as response:
        assert response.status_code == 200, response.read()
        return read(response)


def text(events: list[str]) -> str:
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


def resumed(live: Live, id: str, after: int, name: str = "one") -> tuple[int, list[str]]:
    with live.client() as client:
        url = f"/api/v1/chat/completions/{id}/events?after={after}"
        with client.stream("GET", url, headers=key(name)) as response:
            return response.status_code, read(response) if response.status_code == 200 else [response.read().decode()]


def test_a_dropped_stream_goes_on_where_it_was(keeping: Live) -> None:
    body = keeping.chat("Tell me a story.", stream=True, max_tokens=300, ignore_eos=True, seed=1)
    expected = text(whole(keeping, body, **{"cache-control": "no-store"}))
    with keeping.client() as client:
        with client.stream(
            "POST", CHAT, json=body, headers=key("one", **RESUME, **{"cache-control": "no-store"})
        ) as one:
            id = one.headers["x-fastchat-resume"]
            begun = read(one, 5)
    assert all(json.loads(event)["id"] == id for event in begun)
    status, rest = resumed(keeping, id, len(begun))
    assert status == 200 and rest[-1] == "[DONE]"
    assert text(begun + rest) == expected
    # It is over, and can be had again in whole and in part.
    assert resumed(keeping, id, 0) == (200, begun + rest)
    assert resumed(keeping, id, len(begun + rest) - 1) == (200, ["[DONE]"])
    # Another key knows nothing of it.
    assert resumed(keeping, id, 0, "two")[0] == 404
    assert resumed(keeping, id, 100_000)[0] == 400
    assert resumed(keeping, "chatcmpl-none", 0)[0] == 404
    with keeping.client() as client:
        for query in ("?after=-1", "?after=x", "?before=1"):
            bad = client.get(f"/v1/chat/completions/{id}/events{query}", headers=key("one"))
            assert (bad.status_code, bad.json()["error"]["param"]) == (400, "after")
        assert client.post(f"/v1/chat/completions/{id}/events", headers=key("one")).status_code == 405


def test_who_does_not_come_back_is_cancelled(keeping: Live) -> None:
    before = keeping.idle()
    body = keeping.chat(stream=True, max_tokens=900, ignore_eos=True, n=8, temperature=1, seed=3)
    with keeping.client() as client:
        with client.stream("POST", CHAT, json=body, headers=key("one", **RESUME)) as one:
            id = one.headers["x-fastchat-resume"]
            read(one, 3)
    time.sleep(0.3)
    assert keeping.metrics()["fastchat_requests_running"] > 0
    after = keeping.idle(30)
    assert after["fastchat_kv_blocks_free"] == before["fastchat_kv_blocks_free"]
    time.sleep(2.5)
    assert resumed(keeping, id, 0)[0] == 404
    # Without the header leaving means leaving.
    with keeping.client() as client, client.stream("POST", CHAT, json=body, headers=key("one")) as one:
        assert "x-fastchat-resume" not in one.headers
        read(one, 3)
    keeping.idle(2)


def test_an_error_before_the_first_event_has_its_status(keeping: Live) -> None:
    body = keeping.chat("word " * 3000, stream=True)
    response = keeping.post(CHAT, body, headers=key("one", **RESUME))
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_many_come_and_go(keeping: Live) -> None:
    body = keeping.chat("Count.", stream=True, max_tokens=120, ignore_eos=True, seed=1)
    no_store = {"cache-control": "no-store"}
    expected = text(whole(keeping, body, **no_store))
    wrong: list[str] = []

    def one(step: int) -> None:
        with keeping.client() as client:
            headers = key("one", **RESUME, **no_store)
            with client.stream("POST", CHAT, json=body, headers=headers) as response:
                id = response.headers["x-fastchat-resume"]
                found = read(response, step)
            while found[-1] != "[DONE]":
                url = f"/v1/chat/completions/{id}/events?after={len(found)}"
                with client.stream("GET", url, headers=key("one")) as response:
                    found += read(response, step * 7)
        if text(found) != expected:
            wrong.append(text(found))

    threads = [threading.Thread(target=one, args=(step,)) for step in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


@pytest.mark.parametrize("stream", [False, True])
def test_the_same_request_is_answered_from_the_cache(keeping: Live, stream: bool) -> None:
    body = keeping.chat("What is the capital of France?", stream=stream, max_tokens=24)

    def ask(name: str = "one", **fields: Any) -> tuple[httpx.Response, dict[str, float]]:
        before = keeping.idle()["fastchat_generation_tokens_total"]
        response = keeping.post(CHAT, {**body, **fields}, headers=key(name))
        return response, {"tokens": keeping.idle()["fastchat_generation_tokens_total"] - before}

    first, made = ask()
    assert first.headers["x-fastchat-cache"] == "miss" and made["tokens"] > 0
    second, made = ask()
    assert second.headers["x-fastchat-cache"] == "hit" and made["tokens"] == 0
    assert second.headers["content-type"] == first.headers["content-type"]
    ids = [response.text.split('"id":"')[1].split('"')[0] for response in (first, second)]
    assert ids[0] != ids[1]
    created = [response.text.split('"created":')[1].split(",")[0] for response in (first, second)]
    same = first.text.replace(ids[0], ids[1]).replace(f'"created":{created[0]}', f'"created":{created[1]}')
    assert same == second.text
    # Another key, another length, chance without a seed, or the wish not to: all are made.
    assert ask("two")[0].headers["x-fastchat-cache"] == "miss"
    assert ask(max_tokens=23)[0].headers["x-fastchat-cache"] == "miss"
    assert "x-fastchat-cache" not in ask(temperature=1)[0].headers
    seeded = [ask(temperature=1, seed=5)[0] for _ in range(2)]
    assert [one.headers["x-fastchat-cache"] for one in seeded] == ["miss", "hit"]
    refused = keeping.post(CHAT, body, headers=key("one", **{"cache-control": "no-cache"}))
    assert "x-fastchat-cache" not in refused.headers


def test_without_the_flag_nothing_is_kept(live: Live) -> None:
    for _ in range(2):
        assert "x-fastchat-cache" not in live.post(CHAT, live.chat(max_tokens=2)).headers
