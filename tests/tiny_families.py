"""Checkpoints of random numbers for the configs beside the Rust tests, in names written out by hand, to be compared
with other engines. Numbers follow from the names alone. Knows no engine."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CRATE = Path(__file__).parent.parent / "crates/fastchat-models/tests"
_HIDDEN, _INTER, _VOCAB, _HEAD, _EXPERT = 64, 128, 256, 16, 48

# GGUF architecture, and the fields changed to what llama.cpp reads: it knows no window in `starcoder2` and no smaller
# `num_key_value_heads` in `olmoe`, wants the draft layer of `glm4_moe` whole, and has local layers in `exaone4` if
# there are 64.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere2": ("cohere2", {}),
    "ernie4_5": ("ernie4_5", {}),
    "exaone4": (
        "exaone4",
        {"num_hidden_layers": 64, "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 16},
    ),
    "glm4": ("glm4", {}),
    "glm4_moe": ("glm4moe", {"num_nextn_predict_layers": 0}),
    "granite": ("granite", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo2", {}),
    "olmoe": ("olmoe", {"num_key_value_heads": 4}),
    "qwen2_moe": ("qwen2moe", {}),
    "seed_oss": ("seed_oss", {}),
    "starcoder2": ("starcoder2", {"sliding_window": None}),
}
LENGTHS = (6, 40)


def prompt(length: int) -> list[int]:
    """Token ids."""
    return [(i * 37 + 11) % _VOCAB for i in range(length)]


def write(family: str, folder: Path) -> None:
    """config.json and model.safetensors of a family."""
    config = json.loads((CRATE / f"configs/{family}.json").read_text("utf-8")) | FAMILIES[family][1]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    write_tensors(folder, {name: numbers(name, shape) for name, shape in _tensors(family, config)})


def write_tensors(folder: Path, tensors: dict[str, npt.NDArray[np.float32]]) -> None:
    """model.safetensors."""
    header, data = {}, b""
    for name, values in tensors.items():
        raw = values.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": values.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def numbers(name: str, shape: list[int]) -> npt.NDArray[np.float32]:
    """Small numbers, of norms around one: the generator of Knuth's MMIX, begun with the name's FNV-1a hash."""
    state, count = 0xCBF29CE484222325, int(np.prod(shape))
    for byte in name.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    factors = np.full(count, 6364136223846793005, np.uint64).cumprod(dtype=np.uint64)
    sums = np.concatenate([np.ones(1, np.uint64), factors[:-1]]).cumsum(dtype=np.uint64)
    states = factors * np.uint64(state) + sums * np.uint64(1442695040888963407)
    unit = (states >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
    centre = 1 if "norm" in name else 0
    values: npt.NDArray[np.float32] = (centre + (unit - np.float32(0.5)) * np.float32(0.25)).astype(np.float32)
    return np.reshape(values, shape)


def _tensors(family: str, config: dict[str, Any]) -> Iterator[tuple[str, list[int]]]:
    yield "model.embed_tokens.weight", [_VOCAB, _HIDDEN]
    yield "model.norm.weight", [_HIDDEN]
    if family == "starcoder2":
        yield "model.norm.bias", [_HIDDEN]
    if family not in ("cohere2", "ernie4_5", "granite", "starcoder2"):
        yield "lm_head.weight", [_VOCAB, _HIDDEN]
    for index in range(config["num_hidden_layers"]):
        for part in (_norms(family), _attention(family, config["num_key_value_heads"] * _HEAD), _mlp(family, index)):
            for name, shape in part:
                yield f"model.layers.{index}.{name}", shape


def _norms(family: str) -> Iterator[tuple[str, list[int]]]:
    names = ["input_layernorm", "post_attention_layernorm"]
    if family in ("olmo2", "olmo3", "exaone4"):
        names = ["post_attention_layernorm", "post_feedforward_layernorm"]
    elif family == "glm4":
        names += ["post_self_attn_layernorm", "post_mlp_layernorm"]
    elif family == "cohere2":
        names = ["input_layernorm"]
    for name in names:
        yield f"{name}.weight", [_HIDDEN]
        if family == "starcoder2":
            yield f"{name}.bias", [_HIDDEN]


def _attention(family: str, kv: int) -> Iterator[tuple[str, list[int]]]:
    biased = family in ("glm4_moe", "seed_oss", "qwen2_moe", "starcoder2")
    for name, rows in (("q_proj", _HIDDEN), ("k_proj", kv), ("v_proj", kv), ("o_proj", _HIDDEN)):
        yield f"self_attn.{name}.weight", [rows, _HIDDEN]
        if (biased and name != "o_proj") or family == "starcoder2":
            yield f"self_attn.{name}.bias", [rows]
    if family in ("olmo2", "olmo3", "olmoe"):
        yield "self_attn.q_norm.weight", [_HIDDEN]
        yield "self_attn.k_norm.weight", [kv]
    elif family in ("exaone4", "glm4_moe"):
        yield "self_attn.q_norm.weight", [_HEAD]
        yield "self_attn.k_norm.weight", [_HEAD]


def _mlp(family: str, index: int) -> Iterator[tuple[str, list[int]]]:
    if family == "glm4":
        yield "mlp.gate_up_proj.weight", [2 * _INTER, _HIDDEN]
        yield "mlp.down_proj.weight", [_HIDDEN, _INTER]
    elif family == "starcoder2":
        yield "mlp.c_fc.weight", [_INTER, _HIDDEN]
        yield "mlp.c_fc.bias", [_INTER]
        yield "mlp.c_proj.weight", [_HIDDEN, _INTER]
        yield "mlp.c_proj.bias", [_HIDDEN]
    elif family in ("olmoe", "qwen2_moe") or (family == "glm4_moe" and index > 0):
        yield "mlp.gate.weight", [8, _HIDDEN]
        for expert in range(8):
            yield from _gated(f"mlp.experts.{expert}", _EXPERT)
        if family == "glm4_moe":
            yield "mlp.gate.e_score_correction_bias", [8]
            yield from _gated("mlp.shared_experts", _EXPERT)
        elif family == "qwen2_moe":
            yield "mlp.shared_expert_gate.weight", [1, _HIDDEN]
            yield from _gated("mlp.shared_expert", 2 * _EXPERT)
    else:
        yield from _gated("mlp", _INTER)


def _gated(stem: str, inter: int) -> Iterator[tuple[str, list[int]]]:
    yield f"{stem}.gate_proj.weight", [inter, _HIDDEN]
    yield f"{stem}.up_proj.weight", [inter, _HIDDEN]
    yield f"{stem}.down_proj.weight", [_HIDDEN, inter]
