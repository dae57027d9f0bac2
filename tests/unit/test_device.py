"""Devices: what is asked for, what a machine without a GPU says, and checks of a device without a model."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastchat_rs import LLM, EngineError, SamplingParams
from fastchat_rs.config import DoctorConfig, EngineConfig, load_config
from fastchat_rs.device import cuda_libraries, kernel_findings, need_one_device, probe
from fastchat_rs.device_check import examine_device
from fastchat_rs.errors import ConfigError
from where import need, shared


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices_there_may_be(device: str) -> None:
    assert load_config(EngineConfig, {"model": "m", "device": device}).device == device


@pytest.mark.parametrize("device", ["", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:x", "cuda:1234", "tpu"])
def test_devices_there_are_not(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device: '{device}'"):
        load_config(EngineConfig, {"model": "m", "device": device})


def test_libraries_lie_beside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True)
    (tmp_path / "nvidia" / "cublas").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert str(folder) in cuda_libraries()
    assert not any("cublas" in found for found in cuda_libraries() if found.startswith(str(tmp_path)))


def test_a_missing_gpu_is_one_line() -> None:
    # No machine has as many.
    with pytest.raises(EngineError, match="^device cuda:999 cannot be used: [^\n]+$") as caught:
        kernel_findings("cuda:999")
    assert getattr(caught.value, "param", None) == "device"


def test_a_missing_gpu_stops_a_model() -> None:
    model = need(shared() / "parity" / "text" / "llama3")
    with pytest.raises(EngineError, match="device cuda:999 cannot be used"):
        LLM(model, device="cuda:999", skip_tokenizer_init=True)
    with LLM(model, device="cpu", skip_tokenizer_init=True, kv_memory="16MiB") as llm:
        assert llm.info.kernels.startswith("cpu-")


def test_one_device_is_enough_for_vectors() -> None:
    need_one_device("m", 1)
    with pytest.raises(ConfigError, match="tensor_parallel_size: 2 devices, but m makes embeddings"):
        need_one_device("m", 2)


def test_several_gpus_that_are_not_there_are_one_line() -> None:
    model = need(shared() / "parity" / "text" / "llama3")
    for device, line in {
        "cpu": "^tensor_parallel_size is 2; the cores of a CPU are one device, so it must be 1$",
        "auto": "^tensor_parallel_size is 2, from cuda:0 on: [^\n]+$",
        "cuda:998": "^tensor_parallel_size is 2, from cuda:998 on: [^\n]+$",
    }.items():
        with pytest.raises(EngineError, match=line) as caught:
            LLM(model, device=device, tensor_parallel_size=2, skip_tokenizer_init=True)
        assert getattr(caught.value, "param", None) == "tensor_parallel_size"
    with pytest.raises(ConfigError, match="tensor_parallel_size"):
        load_config(EngineConfig, {"model": "m", "tensor_parallel_size": 0})


def test_products_in_bf16_are_near_those_in_f32() -> None:
    model = need(shared() / "parity" / "text" / "llama3")
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=-1)

    def logprobs(**options: Any) -> tuple[str, Any]:
        with LLM(model, device="cpu", skip_tokenizer_init=True, kv_memory="16MiB", **options) as llm:
            (output,) = llm.generate([list(range(1, 40))], params)
            return llm.info.kernels, output.prompt_logprobs

    _, exact = logprobs(dtype="float32")
    kernels, near = logprobs(dtype="bfloat16", kv_dtype="f32")
    # A machine that does not multiply bf16 computes in f32.
    assert (exact == near).all() == (not kernels.endswith("bf16"))
    assert np.abs(exact - near).max() < 0.1
    with pytest.raises(ConfigError, match="kv_dtype"):
        logprobs(kv_dtype="int8")


def test_kernels_of_this_machine_are_right() -> None:
    name, findings = kernel_findings("cpu")
    assert name.startswith("cpu-")
    assert len(findings) > 20
    assert not [found for found in findings if found[3] or found[1] > found[2]]


def test_probe_measures() -> None:
    name, copied, multiplied, memory = probe("cpu")
    assert name.startswith("cpu-")
    assert copied > 0
    assert multiplied > 0
    assert memory is None


def test_doctor_without_a_model(tmp_path: Path) -> None:
    assert load_config(DoctorConfig, {}, {}).model == ""
    checks = examine_device("cpu", None)
    assert all(check.ok for check in checks)
    assert "SKIPPED" in checks[-1].detail
    assert not examine_device("cpu", str(tmp_path))[-1].ok
    failed = examine_device("cuda:999", None)
    assert [(check.name, check.ok) for check in failed] == [("device cuda:999", False)]


def test_doctor_compares_families(tmp_path: Path) -> None:
    model = need(shared() / "parity" / "text" / "llama3")
    good, bad = tmp_path / "good", tmp_path / "bad"
    for folder in (good, bad):
        folder.mkdir()
        for name in ("config.json", "model.safetensors", "golden.safetensors"):
            (folder / name).write_bytes((model / name).read_bytes())
    config: dict[str, Any] = json.loads((bad / "config.json").read_text())
    config["rms_norm_eps"] = 0.5
    (bad / "config.json").write_text(json.dumps(config))
    checks = {check.name: check for check in examine_device("cpu", str(tmp_path))}
    assert checks["family good"].ok, checks["family good"].detail
    assert checks["company good"].ok, checks["company good"].detail
    assert checks["company bad"].ok
    assert not checks["family bad"].ok
    assert "differ by" in checks["family bad"].detail
