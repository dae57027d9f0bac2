"""`LLM` on the demo model: batches, streams, async twins, logprobs, errors."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fastchat_rs import (
    LLM,
    ConfigError,
    ContextLengthError,
    InvalidRequestError,
    ModelNotFoundError,
    SamplingParams,
    TemplateError,
    WeightsError,
)
from where import need, shared

GREEDY = SamplingParams(temperature=0, max_tokens=8)
PROMPTS = ["The capital of France is", "One, two, three,", "def add(a, b):", "Once upon a time"]


@pytest.fixture(scope="module")
def llm(demo_model: Path) -> Iterator[LLM]:
    with LLM(demo_model, max_model_len=1024, max_queue=8) as llm:
        yield llm


def test_a_result_has_everything(llm: LLM) -> None:
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=6, n=2, logprobs=2, prompt_logprobs=1, ignore_eos=True)
    (output,) = llm.generate(PROMPTS[0], params)
    assert output.prompt == PROMPTS[0]
    assert output.prompt_token_ids == llm.encode(PROMPTS[0])
    assert isinstance(output.prompt_logprobs, list)
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    assert output.prompt_logprobs[0] is None
    assert [choice.index for choice in output.outputs] == [0, 1]
    assert output.finished
    for choice in output.outputs:
        assert len(choice.token_ids) == 6
        assert choice.text == llm.decode(choice.token_ids)
        assert choice.finish_reason == "length"
        assert choice.logprobs is not None
        for id, step in zip(choice.token_ids, choice.logprobs, strict=True):
            assert step[id].decoded_token == llm.decode([id], skip_special_tokens=False)
            assert 2 <= len(step) <= 3
    assert output.usage.completion_tokens == 12
    assert output.usage.total_tokens == 12 + len(output.prompt_token_ids)
    assert 0 < output.timings.first_token <= output.timings.total


def test_more_prompts_than_the_queue_holds(llm: LLM) -> None:
    prompts = [PROMPTS[place % 4] for place in range(40)]
    outputs = llm.generate(prompts, GREEDY)
    assert [output.prompt for output in outputs] == prompts
    assert len({output.outputs[0].text for output in outputs}) == 4


def test_ids_and_texts_and_one_set_of_parameters_each(llm: LLM) -> None:
    ids = llm.encode(PROMPTS[0])
    several = [SamplingParams(temperature=0, max_tokens=count) for count in (1, 2)]
    first, second = llm.generate([ids, PROMPTS[0]], several)
    assert first.prompt is None
    assert len(first.outputs[0].token_ids) == 1
    assert second.outputs[0].token_ids[:1] == first.outputs[0].token_ids
    with pytest.raises(ConfigError, match="sampling_params"):
        llm.generate([ids, ids, ids], several)
    assert llm.generate([], GREEDY) == []


def test_the_matrix_of_prompt_logprobs(llm: LLM) -> None:
    (output,) = llm.generate(PROMPTS[0], SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=-1))
    matrix = output.prompt_logprobs
    assert isinstance(matrix, np.ndarray)
    assert matrix.shape == (len(output.prompt_token_ids) - 1, llm.info.vocab_size)
    np.testing.assert_allclose(np.exp(matrix.astype(np.float64)).sum(axis=1), 1, atol=1e-4)
    (one,) = llm.generate(PROMPTS[0], SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0))
    assert isinstance(one.prompt_logprobs, list)
    for row, (id, step) in enumerate(zip(one.prompt_token_ids[1:], one.prompt_logprobs[1:], strict=True)):
        assert step is not None
        assert step[id].logprob == pytest.approx(float(matrix[row, id]), abs=1e-5)


def test_streams(llm: LLM) -> None:
    whole = llm.chat([{"role": "user", "content": "Say hello."}], GREEDY)[0].outputs[0]
    chunks = list(llm.chat_stream([{"role": "user", "content": "Say hello."}], GREEDY))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [id for chunk in chunks for id in chunk.token_ids] == whole.token_ids
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_leaving_a_stream_frees_the_cache(llm: LLM) -> None:
    for _ in llm.stream(PROMPTS[3], SamplingParams(max_tokens=900, ignore_eos=True)):
        break
    llm.generate(PROMPTS[0], GREEDY)
    assert llm.stats().running == 0
    assert llm.stats().free_blocks == llm.stats().total_blocks


def test_async_twins(llm: LLM) -> None:
    expected = [output.outputs[0].text for output in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]

    async def everything() -> None:
        outputs = await llm.agenerate(PROMPTS * 4, GREEDY)
        assert [output.outputs[0].text for output in outputs] == expected * 4
        pieces = [chunk.text async for chunk in llm.astream(PROMPTS[1], GREEDY)]
        assert "".join(pieces) == expected[1]
        chat = await llm.achat([{"role": "user", "content": "Say hello."}], GREEDY)
        streamed = [c.text async for c in llm.achat_stream([{"role": "user", "content": "Say hello."}], GREEDY)]
        assert "".join(streamed) == chat[0].outputs[0].text
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(llm.agenerate(PROMPTS[0], SamplingParams(max_tokens=900, ignore_eos=True)), 0.2)

    for _ in range(2):
        asyncio.run(everything())
    llm.generate(PROMPTS[0], GREEDY)
    assert llm.stats().free_blocks == llm.stats().total_blocks


def test_threads_share_one_engine(llm: LLM) -> None:
    expected = [output.outputs[0].text for output in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]
    got: dict[int, str] = {}

    def work(place: int) -> None:
        got[place] = llm.generate(PROMPTS[place], GREEDY)[0].outputs[0].text

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[place] for place in range(4)] == expected


def test_errors_are_typed(llm: LLM, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError) as invalid:
        SamplingParams(temperature=-1)
    assert invalid.value.param == "temperature"
    with pytest.raises(ContextLengthError) as long:
        llm.generate([1] * 2000, GREEDY)
    assert (long.value.limit, long.value.prompt_tokens) == (1024, 2000)
    for ids in ([10**6], list[int]()):
        with pytest.raises(InvalidRequestError):
            llm.generate([ids], GREEDY)
    with pytest.raises(ModelNotFoundError):
        LLM("nowhere")
    with pytest.raises(ConfigError, match="device"):
        LLM(tmp_path, device="tpu")
    with pytest.raises(TemplateError):
        llm.chat([{"role": "user", "content": {"not": "text"}}], GREEDY)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 64)
    with pytest.raises(WeightsError, match="broken.gguf") as weights:
        LLM(broken)
    assert "\n" not in str(weights.value)


def test_a_folder_without_a_tokenizer(llm: LLM) -> None:
    folder = need(shared() / "parity" / "text" / "llama3", always_in_ci=True)
    with LLM(folder, skip_tokenizer_init=True) as tiny:
        (output,) = tiny.generate([1, 2, 3, 4], SamplingParams(temperature=0, max_tokens=5, prompt_logprobs=-1))
        assert len(output.outputs[0].token_ids) == 5
        assert output.outputs[0].text == ""
        assert isinstance(output.prompt_logprobs, np.ndarray)
        assert output.prompt_logprobs.shape == (3, tiny.info.vocab_size)
        with pytest.raises(InvalidRequestError):
            tiny.generate("text", GREEDY)
