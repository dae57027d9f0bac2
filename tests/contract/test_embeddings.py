"""/v1/embeddings by the official client: MiniLM against its reference outputs, and a tiny encoder on token ids."""

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from numpy.typing import NDArray

from fastchat_rs import LLM, ConfigError, InvalidRequestError
from live import Live, serving
from where import models, need, shared


@pytest.fixture(scope="module")
def tiny() -> Iterator[Live]:
    """An encoder of random weights, without a tokenizer."""
    with serving(
        need(shared() / "parity/encoders/bert", always_in_ci=True), "--alias", "text-embedding-3-small"
    ) as live:
        yield live


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The real model."""
    return need(models() / "all-minilm-l6-v2")


def length(a: NDArray[Any]) -> float:
    """Of one vector."""
    return float(np.sqrt(a @ a))


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Of two vectors."""
    return float(a @ b) / (length(a) * length(b))


def reference() -> list[dict[str, Any]]:
    """What sentence-transformers computes."""
    return json.loads((shared() / "parity/encoders/all-minilm-l6-v2.json").read_text("utf-8"))["items"]


def test_minilm_is_the_reference_alone_in_a_batch_and_as_ids(minilm: Path) -> None:
    items = reference()
    texts = [item["text"] for item in items]
    with serving(minilm) as live, live.openai(strict=False) as client:
        reply = client.embeddings.create(model=live.model, input=texts)
        assert [item.index for item in reply.data] == list(range(len(items)))
        assert reply.usage.prompt_tokens == reply.usage.total_tokens == sum(len(item["ids"]) for item in items)
        for item, got in zip(items, reply.data, strict=True):
            assert cosine(np.array(got.embedding), np.array(item["embedding"])) >= 0.99999
            alone = client.embeddings.create(model=live.model, input=item["text"]).data[0].embedding
            as_ids = client.embeddings.create(model=live.model, input=item["ids"]).data[0].embedding
            assert alone == as_ids == got.embedding
        with pytest.raises(openai.BadRequestError, match="1 to 256") as caught:
            client.embeddings.create(model=live.model, input=["short", "word " * 300])
        assert caught.value.param == "input"
        for path, field in (("/api/embed", "input"), ("/api/embeddings", "prompt")):
            told = live.post(path, {"model": live.model, field: "x", "keep_alive": "5m", "options": {}})
            assert (told.status_code, told.headers["x-fastchat-applied"]) == (
                200,
                "options=ignored, keep_alive=ignored",
            )
    with LLM(minilm) as llm:
        vectors = llm.embed(texts)
        assert vectors.shape == (len(items), 384)
        assert vectors.dtype == np.float32
        assert all(cosine(a, np.array(item["embedding"])) >= 0.99999 for a, item in zip(vectors, items, strict=True))
        assert llm.encode(texts[0]) == items[0]["ids"]
        with pytest.raises(InvalidRequestError, match="1 to 256"):
            llm.embed("word " * 300)
        with pytest.raises(ConfigError, match="use embed"):
            llm.generate("Hello")


IDS = [[1, 2, 3], [4], list(range(100))]


def test_float_and_base64_are_the_same_numbers(tiny: Live) -> None:
    body = {"model": tiny.model, "input": IDS, "user": "somebody"}
    floating = tiny.post("/v1/embeddings", {**body, "encoding_format": "float", "input_type": "query"})
    assert floating.headers["x-fastchat-applied"] == "user=ignored, input_type=ignored"
    floats = floating.json()
    packed = tiny.post("/v1/embeddings", {**body, "encoding_format": "base64"}).json()
    assert floats["object"] == "list"
    assert floats["usage"] == {"prompt_tokens": 104, "total_tokens": 104}
    for plain, coded in zip(floats["data"], packed["data"], strict=True):
        assert plain["object"] == "embedding"
        assert list(struct.unpack("<64f", base64.b64decode(coded["embedding"]))) == plain["embedding"]
    assert tiny.post("/api/v1/embeddings", body).json()["data"] == floats["data"]
    alone = [tiny.post("/v1/embeddings", {**body, "input": ids}).json()["data"][0]["embedding"] for ids in IDS]
    assert alone == [item["embedding"] for item in floats["data"]]


def test_dimensions_shorten_and_keep_the_length_one(tiny: Live) -> None:
    # The client asks for base64, and turns it into numbers only after its strict types were checked.
    with tiny.openai(strict=False) as client:
        whole = np.array(client.embeddings.create(model=tiny.model, input=[1, 2, 3]).data[0].embedding)
        short = np.array(client.embeddings.create(model=tiny.model, input=[1, 2, 3], dimensions=16).data[0].embedding)
        assert short.shape == (16,)
        assert abs(length(short) - 1) < 1e-6
        assert cosine(short, whole[:16]) > 0.999999
        named = client.embeddings.create(model="text-embedding-3-small", input=[1, 2, 3])
        assert named.model == "text-embedding-3-small"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("dimensions", 65, "more than the 64"),
        ("dimensions", 0, "dimensions"),
        ("encoding_format", "int8", "encoding_format"),
        ("input", [], "input"),
        ("input", "", "empty"),
        ("input", [[1], []], "empty"),
        ("input", [1, "a"], "mixture"),
        ("input", ["a", [1]], "mixture"),
        ("input", [[1]] * 2049, "2048"),
        ("input", [-1], "input"),
        ("input", [256], "below 256"),
        ("input", [1] * 129, "1 to 128"),
        ("input", "no tokenizer here", "no tokenizer"),
        ("input", None, "input"),
        ("model", 3, "model"),
    ],
)
def test_a_wrong_value_is_a_400_that_names_the_field(tiny: Live, field: str, value: Any, words: str) -> None:
    reply = tiny.post("/v1/embeddings", {"model": tiny.model, "input": [1, 2], field: value})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["param"] == field
    assert words in error["message"]


def test_an_encoder_serves_embeddings_only(tiny: Live) -> None:
    assert tiny.post("/v1/chat/completions", tiny.chat()).json()["error"] == {
        "message": f"Model '{tiny.model}' makes embeddings only; use /v1/embeddings",
        "type": "invalid_request_error",
        "param": "model",
        "code": "unsupported_model",
    }
    assert tiny.post("/v1/completions", {"model": tiny.model, "prompt": "Hi"}).status_code == 400
    missing = tiny.post("/v1/embeddings", {"model": "nothing", "input": "Hi"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    with tiny.client() as client:
        assert client.get("/health").json() == {"status": "ready"}
        assert [card["id"] for card in client.get("/v1/models").json()["data"]] == [
            tiny.model,
            "text-embedding-3-small",
        ]
        assert client.get(f"/v1/models/{tiny.model}").json()["max_model_len"] == 128
        assert "fastchat_http_requests" in client.get("/metrics").text


def test_a_chat_model_makes_no_embeddings(live: Live) -> None:
    with live.openai() as client, pytest.raises(openai.BadRequestError, match="makes no embeddings"):
        client.embeddings.create(model=live.model, input="Hi")


def test_a_decoder_that_says_how_its_rows_are_pooled(tmp_path: Path) -> None:
    source = need(shared() / "parity/text/llama_tied_bias", always_in_ci=True)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(source / name)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    with serving(tmp_path, "--max-model-len", "64") as live, live.openai(strict=False) as client:
        inputs = [[1, 2, 3], [3, 2, 1], [7] * 64]
        data = client.embeddings.create(model=live.model, input=inputs).data
        vectors = [np.array(item.embedding) for item in data]
        assert all(abs(length(vector) - 1) < 1e-5 for vector in vectors)
        assert cosine(vectors[0], vectors[1]) < 0.999
        alone = client.embeddings.create(model=live.model, input=inputs[1]).data[0].embedding
        assert alone == data[1].embedding
        with pytest.raises(openai.BadRequestError) as refused:
            client.embeddings.create(model=live.model, input=[[7] * 65])
        assert refused.value.param == "input"
        chat = live.post("/v1/chat/completions", live.chat())
        assert chat.json()["error"]["code"] == "unsupported_model"
