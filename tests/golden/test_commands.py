"""The commands on the demo model, each in its own process, as a user types them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastchat_rs import LLM
from tiny_vision import vision_model
from where import models, need, shared

pytestmark = pytest.mark.timeout(300)


def command(*words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    """Runs it; stderr is for the assertion that follows."""
    whole = [sys.executable, "-m", "fastchat_rs", *words]
    return subprocess.run(whole, input=typed, capture_output=True, text=True, timeout=240)


def test_version() -> None:
    assert command("--version").stdout.startswith("fastchat-rs ")


def test_generate(demo_model: Path) -> None:
    raw = command("generate", str(demo_model), "--prompt", "The capital of France is", "--max-tokens", "8")
    assert (raw.returncode, "Paris" in raw.stdout) == (0, True), raw.stderr
    piped = command("generate", str(demo_model), "--max-tokens", "8", typed="The capital of France is")
    assert piped.stdout == raw.stdout
    chat = command("generate", str(demo_model), "--chat", "-p", "Hello!", "--max-tokens", "8")
    assert (chat.returncode, chat.stdout.strip() != "") == (0, True), chat.stderr


def test_chat(demo_model: Path) -> None:
    typed = "What is the capital of France?\n/reset\n/help\n/system Be terse.\n/exit\n"
    options = ("--system", "You are terse.", "--temperature", "0", "--max-tokens", "24")
    done = command("chat", str(demo_model), *options, typed=typed)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert "Traceback" not in done.stderr


def test_convert(demo_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.gguf"
    done = command("convert", str(demo_model), "-o", str(out))
    assert (done.returncode, "Q4_1" in done.stdout) == (0, True), done.stderr
    kinds = [json.loads(command("inspect", str(path), "--json").stdout)["kinds"] for path in (demo_model, out)]
    assert kinds[0] == kinds[1]
    words = ("--prompt", "The capital of France is", "--max-tokens", "8")
    assert command("generate", str(out), *words).stdout == command("generate", str(demo_model), *words).stdout
    wrong = command("convert", str(demo_model), "-o", str(tmp_path / "again.bin"))
    assert (wrong.returncode, "ends in .gguf" in wrong.stderr) == (1, True), wrong.stderr
    # Its matrices are in blocks already.
    rounded = command("generate", str(demo_model), "--quantize", "q4_0", "--prompt", "a")
    assert (rounded.returncode, "quantize = q4_0" in rounded.stderr) == (1, True), rounded.stderr


def test_inspect(demo_model: Path) -> None:
    found = json.loads(command("inspect", str(demo_model), "--json").stdout)
    assert len(found["spec"]["layers"]) == 30
    assert sum(kind["bytes"] for kind in found["kinds"].values()) == found["total"]["bytes"] > 90_000_000
    table = command("inspect", str(demo_model)).stdout
    assert "30 layers" in table
    # 30 layers of 3 heads of 64, keys and values, 2 bytes each.
    assert "cache 22.5 KiB a token (f16)" in table


def test_doctor(demo_model: Path, tmp_path: Path) -> None:
    done = command("doctor", str(demo_model), "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (0, True), report
    names = [check["name"] for check in report["checks"]]
    assert names == ["machine", "kernels", "files", "tensors", "numbers", "tokenizer", "template", "text", "memory"]
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(demo_model.read_bytes()[:1_000_000])
    done = command("doctor", str(broken))
    assert done.returncode == 1
    assert "\nFAIL files: " in done.stdout
    assert "broken.gguf" in done.stdout


def test_an_encoder_is_inspected_examined_and_converted(tmp_path: Path) -> None:
    minilm = need(models() / "all-minilm-l6-v2")
    found = json.loads(command("inspect", str(minilm), "--json").stdout)
    assert (len(found["spec"]["layers"]), found["longest"]) == (6, 256)
    table = command("inspect", str(minilm)).stdout
    assert "vectors: 384 elements, Mean of the rows, of length one, texts of up to 256 tokens" in table
    assert "no cache" in table
    done = command("doctor", str(minilm), "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (0, True), report
    names = [check["name"] for check in report["checks"]]
    assert names == ["machine", "kernels", "files", "tensors", "tokenizer", "numbers", "vectors", "memory"]
    out = tmp_path / "minilm.gguf"
    done = command("convert", str(minilm), "-o", str(out), "--type", "f32")
    assert done.returncode == 0, done.stderr
    assert "not written: the longest text of 256 tokens, where positions reach 512" in done.stderr
    assert "FAIL" not in command("doctor", str(out)).stdout
    texts = ["How are vectors made?", "Wie groß ist der Bär, naïvely?", "word " * 60]
    with LLM(minilm) as folder, LLM(out) as file:
        assert [folder.encode(text) for text in texts] == [file.encode(text) for text in texts]
        one, other = folder.embed(texts), file.embed(texts)
    assert np.sum(one * other, axis=1) == pytest.approx(1, abs=1e-6)


def test_a_model_that_takes_pictures_is_inspected_and_examined(tmp_path: Path) -> None:
    model = vision_model(tmp_path / "tiny-vl")
    table = command("inspect", str(model)).stdout
    assert "pictures: " in table
    assert "patches of " in table
    done = command("doctor", str(model), "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (0, True), report
    assert [check["name"] for check in report["checks"]][-2:] == ["picture", "memory"]


DOWN, UNUSED = "model.layers.0.mlp.down_proj.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"


def broken(source: Path, folder: Path, fields: dict[str, Any], fault: str) -> Path:
    """A reference model with other fields in its config, and a fault in its tensors."""
    folder.mkdir()
    config = json.loads((source / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **fields}), "utf-8")
    raw = (source / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8:end]), raw[end:]
    if fault == "missing":
        # Under this name it is nothing that anybody needs.
        header[UNUSED] = header.pop(DOWN)
    elif fault == "extra":
        header["model.layers.0.extra"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
        data += bytes(4)
    elif fault == "shape":
        header[DOWN]["shape"].reverse()
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder


@pytest.mark.parametrize(
    ("fault", "fields", "said"),
    [
        ("model type", {"model_type": "gpt_j"}, "config.json: model_type = gpt_j is not supported; "),
        ("rope", {"rope_parameters": {"rope_type": "spiral"}}, "rope_parameters.rope_type = spiral is not supported; "),
        ("activation", {"hidden_act": "mish"}, "config.json: hidden_act = mish is not supported; "),
        (
            "quantisation",
            {"quantization_config": {"quant_method": "hqq"}},
            "config.quant_method = hqq is not supported; ",
        ),
        ("missing", {}, f"tensor {DOWN}: is missing"),
        ("extra", {}, "model.safetensors: tensor model.layers.0.extra: is left over"),
        ("shape", {}, f"model.safetensors: tensor {DOWN}: has shape [128, 64]"),
    ],
)
def test_what_does_not_load_is_one_line(fault: str, fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    model = broken(need(shared() / "parity/text/llama3", always_in_ci=True), tmp_path / "model", fields, fault)
    done = command("generate", str(model), "--prompt", "a")
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"fastchat-rs: {model}")
    assert said in done.stderr


@pytest.mark.slow
def test_bench(demo_model: Path) -> None:
    done = command("bench", str(demo_model), "--quick", "--repeat", "1", "--json")
    figures = json.loads(done.stdout)["figures"]
    names = [figure["name"].split(" ")[0] for figure in figures]
    assert names == ["prefill", "decode", "time", "1", "4", "16", "64"]
    assert all(0 < figure["min"] <= figure["median"] <= figure["max"] for figure in figures)
