"""Pictures through `LLM.chat`: every form of the same picture gives the same answer."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastchat_rs import LLM, SamplingParams
from fastchat_rs.errors import ConfigError
from tiny_vision import IMAGE_TOKENS, data_url, gguf_vision_model, png, vision_model

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(str(vision_model(tmp_path_factory.mktemp("vision") / "tiny-vl")), kv_memory="64MiB") as llm:
        yield llm


def ask(picture: Any, kind: str = "image") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": kind, kind: picture}, {"type": "text", "text": "What is it?"}]}]


def test_every_form_of_a_picture_is_the_same_picture(llm: LLM, tmp_path: Path) -> None:
    pixels = np.ndarray((70, 100, 3), np.uint8, bytes(i % 256 for i in range(100 * 70 * 3)))
    file = png(pixels)
    path = tmp_path / "picture.png"
    path.write_bytes(file)
    forms = [file, path, str(path), pixels, data_url(file)]
    outputs = llm.chat([ask(form) for form in forms], GREEDY)
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == 1
    text = llm.chat([{"role": "user", "content": "What is it?"}], GREEDY)[0]
    # Start, rows and end.
    assert len(outputs[0].prompt_token_ids) == len(text.prompt_token_ids) + IMAGE_TOKENS + 2
    openai = llm.chat(ask({"url": data_url(file), "detail": "high"}, "image_url"), GREEDY)[0]
    assert openai.outputs[0].token_ids == outputs[0].outputs[0].token_ids
    streamed = "".join(chunk.text for chunk in llm.chat_stream(ask(pixels), GREEDY))
    assert streamed == outputs[0].outputs[0].text


def test_a_gguf_file_and_its_tower_are_the_same_model(llm: LLM, tmp_path: Path) -> None:
    out = gguf_vision_model(tmp_path / "gguf")
    tower = (out / "mmproj-model.gguf").rename(tmp_path / "tower.gguf")
    picture = (out / "image.png").read_bytes()
    with LLM(out, mmproj=tower, kv_memory="64MiB") as other:
        answers = [one.chat(ask(picture), GREEDY)[0] for one in (llm, other)]
    assert answers[0].prompt_token_ids == answers[1].prompt_token_ids
    assert answers[0].outputs[0].token_ids == answers[1].outputs[0].token_ids
    command = [sys.executable, "-m", "fastchat_rs", "doctor", str(out), "--mmproj", str(tower), "--json"]
    checks = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=120).stdout)["checks"]
    found = {check["name"]: check["detail"] for check in checks}
    assert "3 of a tower for pictures in tower.gguf" in found["files"]
    assert "tokens with a picture of 96 x 64" in found["picture"]
    with LLM(out, kv_memory="64MiB") as blind, pytest.raises(ConfigError, match="does not support image"):
        blind.chat(ask(picture), GREEDY)


def test_what_is_no_picture_is_refused_by_place(llm: LLM, demo_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"messages\.0\.content\.0"):
        llm.chat(ask("https://host.example/picture.png"), GREEDY)
    with pytest.raises(Exception, match=r"images\.0: .*of another kind"):
        llm.chat(ask(b"text"), GREEDY)
    with (
        LLM(str(demo_model), kv_memory="64MiB") as text,
        pytest.raises(ConfigError, match=r"messages\.0\.content\.0: .*does not support image"),
    ):
        text.chat(ask(b"never looked at"), GREEDY)
