"""Families that have no reference outputs of transformers against what llama.cpp computes of the same numbers."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from fastchat_rs import LLM, SamplingParams
from tiny_families import FAMILIES, LENGTHS, prompt, write

GOLDEN = json.loads(gzip.decompress((Path(__file__).parent / "families.json.gz").read_bytes()))
# Of a log-probability that is recorded with five digits. llama.cpp looks tanh's GELU up in a table of f16.
TOLERANCE = {"starcoder2": 1e-3}


def test_every_family_is_recorded() -> None:
    assert sorted(GOLDEN) == sorted(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_equal_those_of_llama_cpp(family: str, tmp_path: Path) -> None:
    write(family, tmp_path / family)
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=-1, ignore_eos=True)
    with LLM(str(tmp_path / family), max_model_len=64) as llm:
        for length, expected in zip(LENGTHS, GOLDEN[family], strict=True):
            # One token more, whose own probability after the prompt is what is asked for.
            matrix = llm.generate([*prompt(length), 0], params)[0].prompt_logprobs
            assert isinstance(matrix, np.ndarray)
            most = float(np.abs(matrix[-1] - np.array(expected)).max())
            assert most <= TOLERANCE.get(family, 2e-5), f"{length} tokens: {most}"
            assert float(np.std(expected)) > 0.05
