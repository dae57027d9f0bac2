"""/v1/rerank by tiny cross-encoders of random weights, against the same sums written out in numpy."""

import json
import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from live import Live, serving

# numpy's stubs have no type for what is transposed.
Array = Any
HIDDEN, HEADS, LAYERS, INTER, POSITIONS = 32, 4, 2, 48, 64
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"a b c d e f g h i j k l m n o p q r s t u v w x y z".split()]
QUERY = "a b c"
DOCUMENTS = ["d e f g", "a b", "x", "a b c a b c", "q r s t u v w"]


def tensors(family: str, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Every weight of a checkpoint, under Hugging Face's names."""
    root = "bert." if family == "bert" else "roberta."
    shapes: dict[str, tuple[int, ...]] = {
        f"{root}embeddings.word_embeddings.weight": (len(WORDS), HIDDEN),
        f"{root}embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        f"{root}embeddings.token_type_embeddings.weight": (2 if family == "bert" else 1, HIDDEN),
        f"{root}embeddings.LayerNorm.weight": (HIDDEN,),
        f"{root}embeddings.LayerNorm.bias": (HIDDEN,),
    }
    for layer in range(LAYERS):
        at = f"{root}encoder.layer.{layer}."
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{at}{name}.weight": (HIDDEN, HIDDEN), f"{at}{name}.bias": (HIDDEN,)}
        shapes |= {f"{at}intermediate.dense.weight": (INTER, HIDDEN), f"{at}intermediate.dense.bias": (INTER,)}
        shapes |= {f"{at}output.dense.weight": (HIDDEN, INTER), f"{at}output.dense.bias": (HIDDEN,)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{at}{name}.weight": (HIDDEN,), f"{at}{name}.bias": (HIDDEN,)}
    dense, out = (
        ("bert.pooler.dense", "classifier") if family == "bert" else ("classifier.dense", "classifier.out_proj")
    )
    shapes |= {f"{dense}.weight": (HIDDEN, HIDDEN), f"{dense}.bias": (HIDDEN,)}
    shapes |= {f"{out}.weight": (1, HIDDEN), f"{out}.bias": (1,)}
    return {
        name: (rng.normal(1.0 if "LayerNorm.weight" in name else 0.0, 0.3, shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def saved(weights: dict[str, NDArray[np.float32]]) -> bytes:
    """As safetensors."""
    header: dict[str, Any] = {}
    data = b""
    for name, value in weights.items():
        raw = value.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def frame(family: str) -> dict[str, Any]:
    """How the tokenizer joins two texts."""
    cls: dict[str, Any] = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
    special: dict[str, Any] = {"id": "[SEP]", "type_id": 0}
    end, first = {"SpecialToken": special}, {"Sequence": {"id": "A", "type_id": 0}}
    kind = 1 if family == "bert" else 0
    second, last = {"Sequence": {"id": "B", "type_id": kind}}, {"SpecialToken": {**special, "type_id": kind}}
    middle = [end] if family == "bert" else [end, end]
    ids = {name: {"id": name, "ids": [WORDS.index(name)], "tokens": [name]} for name in ("[CLS]", "[SEP]")}
    pair = [cls, first, *middle, second, last]
    return {"type": "TemplateProcessing", "single": [cls, first, end], "pair": pair, "special_tokens": ids}


def folder(path: Path, family: str, **config: Any) -> dict[str, NDArray[np.float32]]:
    """Writes a model; its weights."""
    path.mkdir()
    weights = tensors(family, np.random.default_rng(5))
    (path / "model.safetensors").write_bytes(saved(weights))
    names = {"bert": ("bert", "BertForSequenceClassification")}
    kind, architecture = names.get(family, ("xlm-roberta", "XLMRobertaForSequenceClassification"))
    facts = {
        "model_type": kind,
        "architectures": [architecture],
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "intermediate_size": INTER,
        "max_position_embeddings": POSITIONS,
        "vocab_size": len(WORDS),
        "type_vocab_size": 2 if family == "bert" else 1,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "pad_token_id": 1,
        "id2label": {"0": "LABEL_0"},
    }
    (path / "config.json").write_text(json.dumps({**facts, **config}))
    model = {"type": "WordLevel", "vocab": {word: id for id, word in enumerate(WORDS)}, "unk_token": "[UNK]"}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": frame(family),
        "decoder": None,
        "model": model,
    }
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return weights


def norm(x: Array, weight: Array, bias: Array) -> Array:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * weight + bias


def logit(family: str, weights: dict[str, NDArray[np.float32]], query: str, document: str) -> float:
    """The sums of the paper, one pair at a time, in f64."""
    w: dict[str, Any] = {
        name.removeprefix("bert.").removeprefix("roberta."): value.astype(np.float64) for name, value in weights.items()
    }
    a, b = ([WORDS.index(word) for word in text.split()] for text in (query, document))
    cls, sep = WORDS.index("[CLS]"), WORDS.index("[SEP]")
    ids = [cls, *a, sep, *([] if family == "bert" else [sep]), *b, sep]
    types = [0] * (len(a) + 2) + [1] * (len(b) + 1) if family == "bert" else [0] * len(ids)
    positions = np.arange(len(ids)) + (0 if family == "bert" else 2)

    def linear(x: Array, name: str) -> Array:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def normed(x: Array, name: str) -> Array:
        return norm(x, w[f"{name}.weight"], w[f"{name}.bias"])

    table = {name: w[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")}
    x = normed(table["word"][ids] + table["position"][positions] + table["token_type"][types], "embeddings.LayerNorm")
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}."
        parts = [linear(x, f"{at}attention.self.{name}") for name in ("query", "key", "value")]
        q, k, v = (part.reshape(len(ids), HEADS, -1).transpose(1, 0, 2) for part in parts)
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(HIDDEN // HEADS)
        share = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (share / share.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(len(ids), HIDDEN)
        x = normed(x + linear(mixed, f"{at}attention.output.dense"), f"{at}attention.output.LayerNorm")
        inner = linear(x, f"{at}intermediate.dense")
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = normed(x + linear(inner, f"{at}output.dense"), f"{at}output.LayerNorm")
    dense, out = ("pooler.dense", "classifier") if family == "bert" else ("classifier.dense", "classifier.out_proj")
    return float(linear(np.tanh(linear(x[0], dense)), out)[0])


@contextmanager
def ranker(
    path: Path, family: str, **config: Any
) -> Generator[tuple[Live, dict[str, NDArray[np.float32]]], None, None]:
    weights = folder(path / family, family, **config)
    with serving(path / family) as live:
        yield live, weights


def scores(live: Live, documents: list[str]) -> list[float]:
    reply = live.post("/v1/rerank", {"model": live.model, "query": QUERY, "documents": documents}).json()
    found = {result["index"]: result["relevance_score"] for result in reply["results"]}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    return [found[index] for index in range(len(documents))]


@pytest.mark.parametrize(
    ("family", "config", "sigmoid"),
    [
        ("bert", {}, True),
        ("bert", {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, False),
        ("roberta", {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, True),
    ],
)
def test_scores_are_those_of_the_sums(tmp_path: Path, family: str, config: dict[str, Any], sigmoid: bool) -> None:
    with ranker(tmp_path, family, **config) as (live, weights):
        got = scores(live, DOCUMENTS)
        logits = [logit(family, weights, QUERY, document) for document in DOCUMENTS]
        expected = [1 / (1 + math.exp(-x)) for x in logits] if sigmoid else logits
        assert len({round(x, 4) for x in expected}) == len(DOCUMENTS)
        assert got == pytest.approx(expected, abs=2e-5)
        assert scores(live, DOCUMENTS[:1]) == got[:1], "alone as in company"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with ranker(tmp_path_factory.mktemp("rank"), "bert") as (live, _):
        yield live


def test_the_shapes_of_cohere_and_jina(live: Live) -> None:
    documents = [{"text": "d e f g"}, "a b", "x"]
    body = {"model": live.model, "query": QUERY, "documents": documents, "top_n": 2, "return_documents": True}
    replies = [live.post(path, body).json() for path in ("/v1/rerank", "/v2/rerank", "/rerank", "/api/v1/rerank")]
    assert all(reply["results"] == replies[0]["results"] for reply in replies)
    first, second = replies[0]["results"]
    assert first["relevance_score"] >= second["relevance_score"]
    texts = ["d e f g", "a b", "x"]
    assert [first["document"], second["document"]] == [{"text": texts[one["index"]]} for one in (first, second)]
    tokens = sum(len(text.split()) for text in texts) + 3 * (len(QUERY.split()) + 3)
    assert replies[0]["usage"]["total_tokens"] == replies[0]["meta"]["tokens"]["input_tokens"] == tokens
    assert (replies[0]["object"], replies[0]["model"]) == ("list", live.model)
    plain = live.post("/v1/rerank", {**body, "return_documents": None, "top_n": None}).json()["results"]
    assert len(plain) == 3 and all("document" not in result for result in plain)


def test_long_documents(live: Live) -> None:
    long = " ".join(["a"] * 100)
    body = {"model": live.model, "query": QUERY, "documents": ["x", long]}
    error = live.post("/v1/rerank", body).json()["error"]
    assert error["param"] == "documents" and "documents[1] has 106 tokens" in error["message"]
    cut = live.post("/v1/rerank", {**body, "max_tokens_per_doc": 2}).json()
    short = live.post("/v1/rerank", {**body, "documents": ["x", "a a"]}).json()
    assert cut["results"] == short["results"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": None}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": ["x", ""]}, "documents"),
        ({"documents": [{"title": "x"}]}, "documents"),
        ({"documents": ["x"] * 2049}, "documents"),
        ({"top_n": 0}, "top_n"),
        ({"return_documents": 1}, "return_documents"),
        ({"max_tokens_per_doc": 0}, "max_tokens_per_doc"),
        ({"rank_fields": ["title"]}, "rank_fields"),
        ({"max_chunks_per_doc": 2}, "max_chunks_per_doc"),
        ({"model": 1}, "model"),
    ],
)
def test_a_wrong_value_is_refused_by_name(live: Live, fields: dict[str, Any], param: str) -> None:
    reply = live.post("/v1/rerank", {"model": live.model, "query": "a", "documents": ["b"], **fields})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text


def test_it_scores_and_does_nothing_else(live: Live) -> None:
    for path, body in (
        ("/v1/embeddings", {"model": live.model, "input": "a"}),
        ("/v1/chat/completions", live.chat()),
    ):
        error = live.post(path, body).json()["error"]
        assert error["code"] == "unsupported_model" and "use /v1/rerank" in error["message"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"id2label": {"0": "a", "1": "b"}}, "num_labels = 2 is not supported"),
        ({"id2label": None, "num_labels": 3}, "num_labels = 3 is not supported"),
        ({"sbert_ce_default_activation_function": "os.system"}, "activation_function = os.system is not supported"),
    ],
)
def test_what_is_not_done_is_refused_at_load(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    with pytest.raises(AssertionError) as caught, ranker(tmp_path, "bert", **config):
        pass
    assert words in cast(str, caught.value.args[0])
