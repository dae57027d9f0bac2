"""The table of targets on one GPU: latency and throughput of models with random weights, beside what the device gives.

Runs with the wheel alone: no network, no cargo, no model files. The weights are written once, as random bf16 (or fp8)
safetensors, to --folder (16 GB for an 8B model). `python benches/gpu.py --device cuda --json results.json`; the rows of
a small model come first, so that a run that is cut short has figures. On a CPU, `--device cpu --only 0.6b` shows that
it works.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastchat_rs import LLM, SamplingParams
from fastchat_rs.device import probe

ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "tie_word_embeddings": True, "hidden_act": "silu", "attention_bias": False,
    },
    "qwen3-8b": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288,
        "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "tie_word_embeddings": False, "hidden_act": "silu", "attention_bias": False,
    },
    "llama-3.1-8b": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "rope_scaling": {**ROPE, "original_max_position_embeddings": 8192},
        "tie_word_embeddings": False, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    },
}  # fmt: skip
# Random bytes that repeat: enough that no cache of the device holds them, few enough to make at once.
TILE = 64 << 20


@dataclass(frozen=True)
class Row:
    """One line of the table. Bounds and targets are for one H200, in the row's unit."""

    name: str
    model: str
    fp8: bool
    unit: str
    bound: float
    target: float
    measure: Callable[[LLM], float]


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensors of a Llama-like checkpoint by the hub's names."""
    hidden, inter, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        own: dict[str, tuple[int, ...]] = {
            "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
            "self_attn.q_proj": (heads, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, heads), "mlp.gate_proj": (inter, hidden), "mlp.up_proj": (inter, hidden),
            "mlp.down_proj": (hidden, inter),
        }  # fmt: skip
        if config["model_type"] == "qwen3":
            own |= {"self_attn.q_norm": (dim,), "self_attn.k_norm": (dim,)}
        tensors |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    tensors["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = (config["vocab_size"], hidden)
    return tensors


def bf16_tile() -> bytes:
    """Small random bf16: signs and mantissas are random, the exponent is that of 1/64 to 1/32."""
    raw = bytearray(random.Random(0).randbytes(TILE))
    raw[1::2] = bytes((byte & 0x80) | 0x3C for byte in raw[1::2])
    return bytes(raw)


def fp8_tile() -> bytes:
    """Random e4m3 of magnitude below two: no byte is not a number."""
    return bytes(byte & 0xBF for byte in random.Random(1).randbytes(TILE))


def write_model(folder: Path, name: str, *, fp8: bool) -> None:
    """config.json and model.safetensors with random weights, unless they are there."""
    config = dict(MODELS[name])
    if fp8:
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    if (folder / "config.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {}
    end = 0
    for tensor, shape in shapes({**config}).items():
        quantised = fp8 and "proj" in tensor
        parts = [(tensor, "F8_E4M3" if quantised else "BF16", shape)]
        if quantised:
            parts.append((f"{tensor}_scale_inv", "F32", tuple(-(-size // 128) for size in shape)))
        for part, kind, sizes in parts:
            count = 1
            for size in sizes:
                count *= size
            start, end = end, end + count * {"BF16": 2, "F8_E4M3": 1, "F32": 4}[kind]
            header[part] = {"dtype": kind, "shape": list(sizes), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    tiles = {"BF16": bf16_tile(), "F8_E4M3": fp8_tile() if fp8 else b"", "F32": b"\x00\x00\x00\x3c" * (TILE // 4)}
    with (folder / "model.safetensors").open("wb") as sink:
        sink.write(len(text).to_bytes(8, "little") + text)
        for entry in header.values():
            start, stop = entry["data_offsets"]
            whole, rest = divmod(stop - start, TILE)
            tile = tiles[entry["dtype"]]
            for _ in range(whole):
                sink.write(tile)
            sink.write(tile[:rest])
    (folder / "config.json").write_text(json.dumps(config))


def token_ms(llm: LLM, context: int, count: int = 128) -> float:
    """Milliseconds a token of one sequence behind `context` tokens."""
    ids = [1 + i % 1000 for i in range(context)]
    output = llm.generate(ids, SamplingParams(temperature=0, max_tokens=count, ignore_eos=True), use_tqdm=False)[0]
    return 1000 * (output.timings.total - output.timings.first_token) / (count - 1)


def first_token_ms(llm: LLM, length: int) -> float:
    """Milliseconds to the first token behind a prompt that no cache has seen."""
    ids = random.choices(range(1000), k=length)
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    return 1000 * llm.generate(ids, params, use_tqdm=False)[0].timings.first_token


def throughput(llm: LLM, lengths: list[tuple[int, int]]) -> float:
    """Output tokens a second of requests submitted at once, each of (prompt, output) tokens."""
    prompts = [random.choices(range(10000), k=prompt) for prompt, _ in lengths]
    params = [
        SamplingParams(temperature=0.6, seed=i, max_tokens=out, ignore_eos=True) for i, (_, out) in enumerate(lengths)
    ]
    began = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return sum(out for _, out in lengths) / (time.perf_counter() - began)


def nano_lengths() -> list[tuple[int, int]]:
    """nano-vllm's benchmark: 256 sequences, prompts and outputs of 100 to 1,024 tokens."""
    rng = random.Random(0)
    return [(rng.randint(100, 1024), rng.randint(100, 1024)) for _ in range(256)]


ROWS = [
    Row("Qwen3-0.6B bf16, batch 1", "qwen3-0.6b", False, "ms", 0.28, 0.6, lambda llm: token_ms(llm, 64)),
    Row(
        "nano-vllm's 256, Qwen3-0.6B",
        "qwen3-0.6b",
        False,
        "tok/s",
        36500,
        24000,
        lambda llm: throughput(llm, nano_lengths()),
    ),
    Row("Llama-3.1-8B bf16, batch 1, 1k", "llama-3.1-8b", False, "ms", 3.52, 4.4, lambda llm: token_ms(llm, 1024)),
    Row("TTFT of 1,024 tokens, 8B", "llama-3.1-8b", False, "ms", 18.4, 28, lambda llm: first_token_ms(llm, 1024)),
    Row(
        "8B bf16, 1000/1000, 256",
        "llama-3.1-8b",
        False,
        "tok/s",
        14400,
        8600,
        lambda llm: throughput(llm, [(1000, 1000)] * 256),
    ),
    Row("Qwen3-8B fp8, batch 1", "qwen3-8b", True, "ms", 1.94, 2.8, lambda llm: token_ms(llm, 64)),
]


def cold_start(folder: Path, device: str) -> float:
    """Seconds from the start of a process to its first token."""
    code = (
        "import sys; from fastchat_rs import LLM, SamplingParams\n"
        "LLM(sys.argv[1], device=sys.argv[2], skip_tokenizer_init=True, max_model_len=4096)"
        ".generate([1, 2, 3], SamplingParams(max_tokens=1, temperature=0), use_tqdm=False)\n"
    )
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, str(folder), device], check=True)
    return time.perf_counter() - began


def main() -> None:
    """Prints the probes and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / f"fastchat-gpu-bench-{os.getuid()}"
    )
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    kernels, bandwidth, flops, memory = probe(options.device)
    print(f"{kernels}: copy {bandwidth / 1e12:.3f} TB/s, matrices {flops / 1e12:.1f} TFLOP/s", flush=True)
    if memory:
        print(f"memory: {memory[0] / 2**30:.1f} of {memory[1] / 2**30:.1f} GiB free")
    results: list[dict[str, Any]] = []

    def report(name: str, values: list[float], unit: str, bound: float, target: float) -> None:
        middle = statistics.median(values)
        met = middle <= target if unit in ("ms", "s") else middle >= target
        results.append({"row": name, "unit": unit, "values": values, "bound": bound, "target": target, "met": met})
        print(
            f"{name:34} {middle:10.2f} {unit:5} target {target:8g} bound {bound:8g} {'met' if met else 'MISSED'}",
            flush=True,
        )

    rows = [row for row in ROWS if options.only.lower() in row.name.lower()]
    for model, fp8 in dict.fromkeys((row.model, row.fp8) for row in rows):
        folder = options.folder / (model + ("-fp8" if fp8 else ""))
        write_model(folder, model, fp8=fp8)
        mine = [row for row in rows if (row.model, row.fp8) == (model, fp8)]
        if model == "llama-3.1-8b":
            report("process start to first token, 8B", [cold_start(folder, options.device)], "s", 0, 5)
        settings: dict[str, Any] = {"max_model_len": 4096, "max_num_batched_tokens": 8192, "speculation": False}
        with LLM(
            folder, device=options.device, skip_tokenizer_init=True, enable_prefix_caching=False, **settings
        ) as llm:
            token_ms(llm, 16, 16)
            for row in mine:
                repeat = options.repeat if row.unit == "ms" else 1
                report(row.name, [row.measure(llm) for _ in range(repeat)], row.unit, row.bound, row.target)
    if options.json:
        probes = {"kernels": kernels, "bytes_per_second": bandwidth, "flops": flops}
        options.json.write_text(json.dumps({"probes": probes, "rows": results}, indent=1))


if __name__ == "__main__":
    main()
