"""The checks of `fastchat-rs doctor` for a model that makes vectors or scores: they are finite, of the length that is
promised, and the same alone as in company."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastchat_rs.checks import Check, FailedError, check
from fastchat_rs.inspection import makes, memory_lines

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastchat_rs.llm import Embedder

_TEXTS = ("A cat sleeps on the sofa.", "A kitten naps on the couch.", "Taxes are due in April: 3 % more than in 2024.")
# Of an element or a score; sums of a row have one order on the CPU, and on other devices nearly one.
_SAME = 1e-4


def vector_checks(embedder: "Embedder", found: Mapping[str, Any]) -> list[Check]:
    """Those that follow once the model is loaded."""
    if makes(found) == "scores":
        parts: list[tuple[str, Callable[[], str]]] = [("scores", lambda: _scores(embedder))]
    else:
        normal = bool(found["pooling"]["normalize"])
        parts = [("numbers", lambda: _numbers(embedder, normal)), ("vectors", lambda: _vectors(embedder))]
    parts.insert(0, ("tokenizer", lambda: _tokenizer(embedder)))
    return [check(name, part) for name, part in [*parts, ("memory", lambda: ", ".join(memory_lines(found)))]]


def _tokenizer(embedder: "Embedder") -> str:
    text = _TEXTS[2]
    bare, framed = embedder.encode(text, add_special_tokens=False), embedder.encode(text)
    for ids in (bare, framed):
        if not ids or max(ids) >= embedder.vocab_size:
            raise FailedError(f"{text!r} becomes {ids}, where {embedder.vocab_size} tokens have rows")
    return f"{len(bare)} tokens of {text!r}, {len(framed) - len(bare)} more around them"


def _embed(embedder: "Embedder", inputs: list[Any]) -> "NDArray[np.float32]":
    vectors, _ = embedder.embed(inputs)
    flat: NDArray[np.float32] = np.frombuffer(b"".join(vectors), np.float32)
    return flat.reshape(len(vectors), embedder.dimensions)  # pyright: ignore[reportUnknownMemberType]


def _numbers(embedder: "Embedder", normal: bool) -> str:
    """A forward pass over all of the vocabulary's range reaches every weight but unused rows of words."""
    ids = [int(id) for id in np.linspace(0, embedder.vocab_size - 1, num=min(64, embedder.max_model_len))]
    vector = _embed(embedder, [ids])[0]
    bad = int(np.count_nonzero(~np.isfinite(vector)))
    if bad:
        raise FailedError(f"{bad} of {vector.size} elements are not finite")
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if normal and abs(length - 1) > 1e-3:
        raise FailedError(f"a vector has length {length:.4g}, 1 is promised")
    return f"{vector.size} elements finite, length {length:.4g}"


def _vectors(embedder: "Embedder") -> str:
    together = _embed(embedder, list(_TEXTS)).astype(np.float64)
    off = max(
        float(np.abs(_embed(embedder, [text])[0] - own).max()) for text, own in zip(_TEXTS, together, strict=True)
    )
    if not off <= _SAME:
        raise FailedError(f"a text alone and the same in company differ by {off:.2g} in an element")
    lengths = np.linalg.norm(together, axis=1)
    if not lengths.min() > 0:
        raise FailedError("a text becomes a vector of zeros")
    near, far = (float(together[0] @ together[i] / (lengths[0] * lengths[i])) for i in (1, 2))
    return f"alone as in company within {off:.1g}; cosine {near:.3f} of two texts alike, {far:.3f} of two that are not"


def _scores(embedder: "Embedder") -> str:
    query, near, far = _TEXTS
    both, _ = embedder.score(query, [near, far])
    alone = [embedder.score(query, [text])[0][0] for text in (near, far)]
    if not np.isfinite(both).all():
        raise FailedError(f"scores are {both}")
    off = max(abs(one - other) for one, other in zip(both, alone, strict=True))
    if not off <= _SAME:
        raise FailedError(f"a pair alone and the same in company differ by {off:.2g}")
    return f"alone as in company within {off:.1g}; {both[0]:.4g} of two texts alike, {both[1]:.4g} of two that are not"
