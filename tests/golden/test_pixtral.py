"""A tower that has no reference outputs of transformers against what llama.cpp computes of the same numbers."""

import gzip
import json
from pathlib import Path

import numpy as np

from fastchat_rs import LLM, SamplingParams
from tiny_pixtral import SIDES, WORDS, picture, write

GOLDEN = np.array(json.loads(gzip.decompress((Path(__file__).parent / "pixtral.json.gz").read_bytes())))
# llama.cpp rounds pixels to f16 before it multiplies them.
TOLERANCE = 2e-2


def test_log_probabilities_after_a_picture_equal_those_of_llama_cpp(tmp_path: Path) -> None:
    write(tmp_path / "pixtral")
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=20, ignore_eos=True)
    with LLM(str(tmp_path / "pixtral"), kv_memory="64MiB") as llm:
        for index, expected in enumerate(GOLDEN):
            before, behind = ({"type": "text", "text": word} for word in WORDS)
            parts = [before, {"type": "image", "image": picture(index)}, behind]
            output = llm.chat([{"role": "user", "content": parts}], params)[0]
            # Begin, a row and its break for each line of patches (the last ends the picture), and bytes.
            width, height = SIDES[index]
            assert len(output.prompt_token_ids) == 1 + (width + 1) * height + sum(map(len, WORDS))
            assert output.outputs[0].logprobs is not None
            likely = output.outputs[0].logprobs[0]
            assert len(likely) == 20
            most = max(abs(expected[token] - entry.logprob) for token, entry in likely.items())
            assert most <= TOLERANCE, f"picture {index}: {most}"
    # What another picture changes is far more than the tolerance.
    assert float(np.abs(GOLDEN[0] - GOLDEN[1]).max()) > 10 * TOLERANCE
