"""Several models in one server: each under its names, all within one budget, the wrong ones refused."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from live import Live, serving
from where import need, shared

ALIASES = ("--alias", "small", "--alias", "vectors=bert", "--alias", "other=qwen3")


@pytest.fixture(scope="module")
def several(demo_model: Path) -> Iterator[Live]:
    """A real chat model, one of random weights, and an encoder."""
    others = [need(shared() / f"parity/{name}", always_in_ci=True) for name in ("text/qwen3", "encoders/bert")]
    with serving(demo_model, *map(str, others), *ALIASES, "--kv-memory", "64MiB", "--max-model-len", "1024") as live:
        yield live


def test_all_are_listed_and_each_answers(several: Live) -> None:
    with several.client() as client:
        cards = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
        assert set(cards) == {several.model, "small", "qwen3", "other", "bert", "vectors"}
        assert cards[several.model]["max_model_len"] == 1024
        assert cards["bert"]["max_model_len"] == cards["vectors"]["max_model_len"] == 128
        assert client.get("/v1/models/other").json()["id"] == "other"
        assert client.get("/health").json() == {"status": "ready"}
        text = client.get("/metrics").text
        assert 'fastchat_kv_blocks_total{model_name="qwen3"}' in text and several.model in text
    same = [several.post("/v1/chat/completions", several.chat(model=name)).json() for name in (several.model, "small")]
    assert [reply["model"] for reply in same] == [several.model, "small"]
    assert same[0]["choices"] == same[1]["choices"]
    ids = {"model": "other", "prompt": [1, 2, 3], "max_tokens": 3, "temperature": 0}
    other = several.post("/v1/completions", ids).json()
    assert other["model"] == "other" and other["usage"]["completion_tokens"] == 3
    assert len(several.post("/v1/embeddings", {"model": "vectors", "input": [1, 2]}).json()["data"]) == 1


# What a process imports by a line of Python after it has imported the command.
IMPORTED = """
import json, sys
import fastchat_rs.cli, fastchat_rs.server.serve
before = set(sys.modules)
exec(sys.argv[1])
print(json.dumps(sorted(set(sys.modules) - before)))
"""
LOAD = """
from fastchat_rs.config import ServeConfig
from fastchat_rs.server.weights import begin
for future in begin(ServeConfig(model={!r}, more_models={!r})):
    future.result()
"""


def test_loading_imports_nothing_that_the_server_imports_beside_it(demo_model: Path) -> None:
    """Two threads in one circle of imports, such as granian's, each find a module half made: it ended servers."""

    def imported(line: str) -> set[str]:
        command = [sys.executable, "-c", IMPORTED, line]
        return set(json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout))

    bert = need(shared() / "parity/encoders/bert", always_in_ci=True)
    beside = imported("import fastchat_rs.server.process")
    assert {"granian.server", "fastchat_rs.server.state"} <= beside
    loading = imported(LOAD.format(str(demo_model), [str(bert)])) | imported("import huggingface_hub")
    assert "fastchat_rs.inspection" in loading
    ours = {"granian", "fastchat_rs", "msgspec", "uvloop"}
    assert not {name for name in loading & beside if name.partition(".")[0] in ours}


def test_the_wrong_model_is_refused_by_name(several: Live) -> None:
    missing = several.post("/v1/chat/completions", several.chat(model="nobody"))
    assert missing.status_code == 404
    assert missing.json()["error"]["message"] == "Model 'nobody' not found"
    for path, body, words in (
        ("/v1/chat/completions", several.chat(model="bert"), "makes embeddings only"),
        ("/v1/embeddings", {"model": "other", "input": "x"}, "makes no embeddings"),
        ("/v1/rerank", {"model": "small", "query": "x", "documents": ["y"]}, "scores no documents"),
        ("/v1/rerank", {"model": "bert", "query": "x", "documents": ["y"]}, "makes embeddings only"),
    ):
        reply = several.post(path, body)
        error = reply.json()["error"]
        assert (reply.status_code, error["param"], error["code"]) == (400, "model", "unsupported_model")
        assert words in error["message"]


def test_the_caches_share_one_budget(several: Live) -> None:
    """64 MiB for both: 30 layers of 3 heads of 64 in f16 beside the tiny one's."""
    totals = several.metrics_of("fastchat_kv_blocks_total")
    demo = 16 * 30 * 3 * 64 * 2 * 2 * totals[several.model]
    assert 0 < demo < 64 * 2**20
    assert totals["qwen3"] > 0


def test_models_work_side_by_side(several: Live) -> None:
    alone = several.post("/v1/chat/completions", several.chat(max_tokens=24)).json()["choices"]
    vector = several.post("/v1/embeddings", {"model": "bert", "input": [5, 6]}).json()["data"]

    def one(number: int) -> bool:
        if number % 3 == 0:
            return several.post("/v1/chat/completions", several.chat(max_tokens=24)).json()["choices"] == alone
        if number % 3 == 1:
            return several.post("/v1/embeddings", {"model": "bert", "input": [5, 6]}).json()["data"] == vector
        body = {"model": "qwen3", "prompt": [number], "max_tokens": 8, "ignore_eos": True}
        return several.post("/v1/completions", body).json()["usage"]["completion_tokens"] == 8

    with ThreadPoolExecutor(9) as pool:
        assert all(pool.map(one, range(18)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--alias", "x=nobody"), "alias: 'x=nobody' points to 'nobody'"),
        (("--alias", "bert"), "two models would answer to 'bert'"),
        (("--chat-template", "t.jinja"), "chat_template: replaces the template of one model"),
    ],
)
def test_settings_that_contradict_are_refused_before_loading(
    demo_model: Path, options: tuple[str, ...], words: str
) -> None:
    others = [need(shared() / f"parity/{name}", always_in_ci=True) for name in ("text/qwen3", "encoders/bert")]
    command = [sys.executable, "-m", "fastchat_rs", "serve", str(demo_model), *map(str, others), "--port", "0"]
    ended = subprocess.run([*command, *options], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1 and words in ended.stderr, ended.stderr
