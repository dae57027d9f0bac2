"""The three real models against their reference outputs, through `LLM` and through the HTTP stream.

The references are float32 on the de-quantised weights; kernels with quantised activations may pick the other token
where the best two logits nearly tie, so greedy texts are compared up to the first small gap.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from fastchat_rs import LLM, SamplingParams
from live import Live, serving, streamed
from where import DEMO, models, need, shared

SMALL_GAP = 0.25
"""Logits; the largest error of 8-bit activations seen on these models is about half of it."""
CASES = [
    pytest.param((DEMO, "smollm2-135m-instruct-q4_1"), id="smollm2"),
    pytest.param(("gemma-3-270m-q4_k_m.gguf", "gemma3-270m-q4_k_m"), id="gemma", marks=pytest.mark.slow),
    pytest.param(
        ("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "qwen2.5-coder-0.5b-instruct-q4_k_m"),
        id="qwen05",
        marks=pytest.mark.slow,
    ),
]
pytestmark = pytest.mark.timeout(300)


@dataclass
class Real:
    """A model with its references."""

    llm: LLM
    golden: dict[str, Any]


@pytest.fixture(scope="module", params=CASES)
def real(request: pytest.FixtureRequest) -> Iterator[Real]:
    file, golden = request.param
    always = file == DEMO
    path = need(models() / file, always_in_ci=always)
    reference = need(shared() / "parity" / "real" / f"{golden}.json", always_in_ci=always)
    with LLM(path, max_model_len=2048) as llm:
        yield Real(llm, json.loads(reference.read_text("utf-8")))


def certain(case: dict[str, Any]) -> int:
    """How many tokens of the reference do not hang on a near tie."""
    gaps: list[float] = case["top1_top2_gap"]
    return next((place for place, gap in enumerate(gaps) if gap < SMALL_GAP), len(gaps))


def greedy(case: dict[str, Any], **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=len(case["greedy_ids"]), skip_special_tokens=True, **more)


def same(case: dict[str, Any], token_ids: list[int], text: str) -> None:
    """Equal up to the first near tie; equal text when there is none."""
    count = certain(case)
    assert count > 0 or case["top1_top2_gap"][0] < SMALL_GAP
    assert token_ids[:count] == case["greedy_ids"][:count]
    if count == len(case["greedy_ids"]):
        assert text == case["greedy_text"]


def test_prompts_become_the_same_tokens(real: Real) -> None:
    for case in real.golden["raw"]:
        assert real.llm.encode(case["prompt"]) == case["prompt_ids"]
    for case in real.golden["chat"]:
        assert real.llm.render(case["messages"]) == case["prompt_text"]
        assert real.llm.encode(case["prompt_text"], add_special_tokens=False) == case["prompt_ids"]


def test_greedy_texts(real: Real) -> None:
    for case in real.golden["raw"]:
        (output,) = real.llm.generate(case["prompt"], greedy(case))
        assert output.prompt_token_ids == case["prompt_ids"]
        same(case, output.outputs[0].token_ids, output.outputs[0].text)
    for case in real.golden["chat"]:
        (output,) = real.llm.chat(case["messages"], greedy(case))
        assert output.prompt_token_ids == case["prompt_ids"]
        same(case, output.outputs[0].token_ids, output.outputs[0].text)


def test_streams_and_batches_equal_single_calls(real: Real) -> None:
    cases = real.golden["raw"]
    singles = [real.llm.generate(case["prompt_ids"], greedy(case))[0].outputs[0] for case in cases]
    params = [greedy(case) for case in cases]
    batch = real.llm.generate([case["prompt_ids"] for case in cases], params, use_tqdm=False)
    assert [output.outputs[0].token_ids for output in batch] == [single.token_ids for single in singles]
    for case, single in zip(cases, singles, strict=True):
        chunks = list(real.llm.stream(case["prompt_ids"], greedy(case)))
        assert "".join(chunk.text for chunk in chunks) == single.text
        assert chunks[-1].finish_reason == single.finish_reason


def test_negative_log_likelihood(real: Real) -> None:
    reference = real.golden["nll"]
    ids: list[int] = reference["ids"]
    (output,) = real.llm.generate(ids, SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=-1, ignore_eos=True))
    matrix = output.prompt_logprobs
    assert isinstance(matrix, np.ndarray)
    assert matrix.dtype == np.float32
    assert matrix.shape == (len(ids) - 1, real.llm.info.vocab_size)
    mean = -float(matrix[np.arange(len(ids) - 1), ids[1:]].mean())
    assert mean == pytest.approx(reference["mean_nll"], rel=0.01)


@pytest.fixture(scope="module", params=CASES)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Live, dict[str, Any]]]:
    file, golden = request.param
    always = file == DEMO
    path = need(models() / file, always_in_ci=always)
    reference = need(shared() / "parity" / "real" / f"{golden}.json", always_in_ci=always)
    with serving(path, "--max-model-len", "2048") as live:
        yield live, json.loads(reference.read_text("utf-8"))


def test_the_http_stream(served: tuple[Live, dict[str, Any]]) -> None:
    live, golden = served
    for case in golden["raw"]:
        body = {"model": live.model, "prompt": case["prompt"], "temperature": 0, "max_tokens": len(case["greedy_ids"])}
        chunks = streamed(live, "/v1/completions", body)
        text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
        agree(live, case, text)
    for case in golden["chat"]:
        body = {"model": live.model, "messages": case["messages"], "temperature": 0}
        chunks = streamed(live, "/v1/chat/completions", {**body, "max_tokens": len(case["greedy_ids"])})
        text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
        agree(live, case, text)


def agree(live: Live, case: dict[str, Any], text: str) -> None:
    """The certain tokens' text leads; all of it when nothing nearly ties."""
    count = certain(case)
    if count == len(case["greedy_ids"]):
        assert text == case["greedy_text"]
        return
    ids = case["greedy_ids"][:count]
    sure = live.post("/v1/detokenize", {"model": live.model, "tokens": ids, "skip_special_tokens": True})
    # A code point cut at its end shows as a replacement character.
    assert text.startswith(sure.json()["prompt"].rstrip("\ufffd"))
