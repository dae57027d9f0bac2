"""Writes a folder of config.json and model.safetensors as a GGUF file, in the layout that published converters use.

Names come from the `gguf` package's own tables, so that the loader's name maps are checked against something else than
themselves. Usage: convert.py FOLDER OUT ARCHITECTURE [TENSORS [POOLING]]: several files
of that many tensors each (0: one), and the number of a way to pool.
"""

import json
import struct
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

ARCHITECTURES = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
# Architectures whose converters bring the rows of q and k into interleaved order.
PERMUTED = {"llama", "granite", "smollm3"}
ENCODERS = {"bert", "modern-bert", "nomic-bert"}


def read(folder: Path):
    """The configuration, and every tensor as f32 with its stored type."""
    config = json.loads((folder / "config.json").read_text())
    data = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, info in header.items():
        start, end = (8 + length + offset for offset in info["data_offsets"])
        raw = data[start:end]
        if info["dtype"] == "BF16":
            values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            assert info["dtype"] == "F32", info["dtype"]
            values = np.frombuffer(raw, "<f4")
        tensors[name] = values.reshape(info["shape"])
    return config, tensors


def write(out: Path, config: dict, tensors: dict, arch: str, split: int = 0, named: dict | None = None) -> None:
    writer = gguf.GGUFWriter(out, arch, split_max_tensors=split)
    keys = metadata(config, arch)
    if config.get("pooling_type"):
        keys["pooling_type"] = config["pooling_type"]
    for key, value in keys.items():
        add(writer, f"{arch}.{key}", value)
    if arch in ENCODERS:
        word_pieces(writer, config["vocab_size"])
    else:
        vocabulary(writer, config["vocab_size"], named or {})
    names = gguf.get_tensor_name_map(ARCHITECTURES[arch], keys["block_count"])
    tensors = stack(tensors)
    for name, values in tensors.items():
        for target, part in convert(name, values, config, arch, names):
            add_tensor(writer, target, part)
    for name, factors in rope_factors(config):
        writer.add_tensor(name, np.array(factors, dtype=np.float32))
    finish(writer)


def add_tensor(writer, name, values):
    """Matrices as bf16 where that holds them exactly."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    exact = not (values.view(np.uint32) & 0xFFFF).any()
    if values.ndim > 1 and exact:
        writer.add_tensor(name, gguf.quants.quantize(values, Kind.BF16), raw_dtype=Kind.BF16)
    else:
        writer.add_tensor(name, values)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add(writer, key, value):
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def vocabulary(writer, size, named):
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([named.get(i, f"t{i}") for i in range(size)])
    writer.add_token_scores([-float(i) for i in range(size)])
    writer.add_token_types([1] * size)
    writer.add_token_merges(["t 1", "t 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(3)
    writer.add_eom_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ messages }}")
    writer.add_sampling_temp(0.5)
    writer.add_sampling_top_k(20)


def word_pieces(writer, size):
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]"}
    writer.add_tokenizer_model("bert")
    writer.add_token_list([special.get(i, f"\u2581t{i}") for i in range(size)])
    writer.add_token_types([3 if i in special else 1 for i in range(size)])
    writer.add_unk_token_id(100)
    writer.add_sep_token_id(102)
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(101)


def metadata(c, arch):
    get = c.get
    heads, hidden = c["num_attention_heads"], c["hidden_size"]
    head_dim = get("head_dim") or hidden // heads
    rope = get("rope_parameters") or get("rope_scaling") or {}
    theta = (rope.get("full_attention") or rope).get("rope_theta") or get("rope_theta") or 10000.0
    keys = {
        "block_count": c["num_hidden_layers"],
        "context_length": c["max_position_embeddings"],
        "embedding_length": hidden,
        "feed_forward_length": c["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": get("num_key_value_heads") or heads,
        "rope.freq_base": float(theta),
        "vocab_size": c["vocab_size"],
    }
    optional = {
        "attention.layer_norm_rms_epsilon": get("rms_norm_eps"),
        "attention.layer_norm_epsilon": get("norm_epsilon") or get("layer_norm_eps") or get("norm_eps"),
        "attention.key_length": get("head_dim"),
        "attention.value_length": get("head_dim"),
        "attention.sliding_window": get("sliding_window"),
        "attn_logit_softcapping": get("attn_logit_softcapping"),
        "final_logit_softcapping": get("final_logit_softcapping"),
        "attention.scale": get("attention_multiplier"),
        "embedding_scale": get("embedding_multiplier"),
        "residual_scale": get("residual_multiplier"),
        "logit_scale": get("logits_scaling") or get("logit_scale"),
    }
    keys |= {key: float(v) if isinstance(v, float) else v for key, v in optional.items() if v is not None}
    for key in ("residual_scale", "embedding_scale", "logit_scale", "attention.scale"):
        if key in keys:
            keys[key] = float(keys[key])
    fraction = rope.get("partial_rotary_factor") or get("partial_rotary_factor") or 1.0
    if arch in ("llama", "granite", "smollm3", "phi3", "glm4", "cohere2", "qwen3next", "qwen35", "glm4moe", "ernie4_5"):
        keys["rope.dimension_count"] = int(head_dim * fraction)
    if get("layer_types") and "sliding_attention" in c["layer_types"]:
        flags = [kind == "sliding_attention" for kind in c["layer_types"]]
        if arch not in ("gemma2", "gpt-oss"):
            keys["attention.sliding_window_pattern"] = flags
    if arch == "glm4moe":
        # Its draft layers are stored too.
        keys["nextn_predict_layers"] = c["num_nextn_predict_layers"]
        keys["block_count"] += c["num_nextn_predict_layers"]
    if arch in ENCODERS:
        keys |= {"attention.causal": False, "pooling_type": 2}
    if arch == "modern-bert":
        keys |= {
            "rope.freq_base_swa": float(rope["sliding_attention"]["rope_theta"]),
            "attention.sliding_window": c["local_attention"],
            "attention.sliding_window_pattern": c["global_attn_every_n_layers"],
        }
    if "mrope_section" in rope:
        keys["rope.dimension_sections"] = [*rope["mrope_section"], 0]
    keys |= scaling(c, rope) | experts(c, arch) | latent(c, arch) | recurrent(c)
    return keys


def scaling(c, rope):
    kind = rope.get("rope_type") or rope.get("type")
    if kind == "yarn":
        return {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(rope["factor"]),
            "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
        }
    if kind == "longrope":
        original = rope["original_max_position_embeddings"]
        stretch = c["max_position_embeddings"] / original
        return {
            "rope.scaling.attn_factor": float(np.sqrt(1 + np.log(stretch) / np.log(original))),
            "rope.scaling.original_context_length": original,
        }
    return {}


def rope_factors(c):
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type")
    if kind == "longrope":
        yield "rope_factors_long.weight", rope["long_factor"]
        yield "rope_factors_short.weight", rope["short_factor"]
    if kind == "llama3":
        dim = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
        theta = float(rope.get("rope_theta") or c["rope_theta"])
        wavelengths = 2 * np.pi * theta ** (np.arange(0, dim, 2) / dim)
        original, low = rope["original_max_position_embeddings"], rope["low_freq_factor"]
        high = rope["high_freq_factor"]
        smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
        yield "rope_freqs.weight", 1 / ((1 - smooth) / rope["factor"] + smooth)


def experts(c, arch):
    count = c.get("num_experts") or c.get("num_local_experts") or c.get("n_routed_experts")
    if not count or not c.get("num_experts_per_tok"):
        return {}
    keys = {"expert_count": count, "expert_used_count": c["num_experts_per_tok"]}
    if inter := c.get("moe_intermediate_size"):
        keys["expert_feed_forward_length"] = inter
    elif arch == "gpt-oss":
        keys["expert_feed_forward_length"] = c["intermediate_size"]
    if shared := c.get("shared_expert_intermediate_size"):
        keys["expert_shared_feed_forward_length"] = shared
    if "n_routed_experts" in c:
        keys |= {
            "expert_shared_count": c["n_shared_experts"],
            "expert_weights_scale": float(c["routed_scaling_factor"]),
            "expert_weights_norm": c["norm_topk_prob"],
            "expert_gating_func": 2,
            "expert_group_count": c["n_group"],
            "expert_group_used_count": c["topk_group"],
            "leading_dense_block_count": c["first_k_dense_replace"],
        }
    return keys


def latent(c, arch):
    if arch != "deepseek2":
        return {}
    rank, rope = c["kv_lora_rank"], c["qk_rope_head_dim"]
    return {
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": c["q_lora_rank"],
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rope,
        "attention.value_length": rank,
        "attention.key_length_mla": c["qk_nope_head_dim"] + rope,
        "attention.value_length_mla": c["v_head_dim"],
        "rope.dimension_count": rope,
    }


def recurrent(c):
    if "linear_num_key_heads" not in c:
        return {}
    return {
        "ssm.conv_kernel": c["linear_conv_kernel_dim"],
        "ssm.state_size": c["linear_key_head_dim"],
        "ssm.group_count": c["linear_num_key_heads"],
        "ssm.time_step_rank": c["linear_num_value_heads"],
        "ssm.inner_size": c["linear_num_value_heads"] * c["linear_value_head_dim"],
        "full_attention_interval": c["layer_types"].index("full_attention") + 1,
    }


def stack(tensors):
    """One tensor for all experts of a layer."""
    out, parts = {}, {}
    for name, values in tensors.items():
        before, found, after = name.partition(".experts.")
        number, _, rest = after.partition(".")
        if found and number.isdigit():
            parts.setdefault(f"{before}.experts.{rest}", {})[int(number)] = values
        else:
            out[name] = values
    for name, experts in parts.items():
        out[name] = np.stack([experts[i] for i in range(len(experts))])
    return out


def permute(values, heads):
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def tile(values, c, width, axis=0):
    """Value heads from the order by key head to the order in which neighbours belong to different key heads."""
    k = c["linear_num_key_heads"]
    moved = np.moveaxis(values, axis, 0)
    parts = moved.reshape(k, c["linear_num_value_heads"] // k, width, *moved.shape[1:]).swapaxes(0, 1)
    return np.moveaxis(parts.reshape(moved.shape), 0, axis)


def convert(name, values, c, arch, names):
    """(name, values) of what a stored tensor becomes."""
    layer = next((part for part in name.split(".") if part.isdigit()), None)
    prefix = f"blk.{layer}."
    if arch in PERMUTED and ".self_attn.q_proj." in name:
        values = permute(values, c["num_attention_heads"])
    if arch in PERMUTED and ".self_attn.k_proj." in name:
        values = permute(values, c["num_key_value_heads"])
    if arch == "gpt-oss" and ".mlp.experts." in name:
        kind = "bias" if name.endswith("_bias") else "weight"
        values = values if kind == "bias" else values.swapaxes(1, 2)
        if "down" in name:
            return [(f"{prefix}ffn_down_exps.{kind}", values)]
        return [(f"{prefix}ffn_gate_exps.{kind}", values[:, ::2]), (f"{prefix}ffn_up_exps.{kind}", values[:, 1::2])]
    if arch in ENCODERS and name.startswith("pooler."):
        return []
    if name.endswith(".sinks"):
        return [(f"{prefix}attn_sinks.weight", values)]
    if name.endswith("e_score_correction_bias"):
        return [(f"{prefix}exp_probs_b.bias", values)]
    if name.endswith("kv_b_proj.weight"):
        keys, width = c["qk_nope_head_dim"], c["v_head_dim"]
        heads = values.reshape(c["num_attention_heads"], keys + width, -1)
        key, value = heads[:, :keys].swapaxes(1, 2), heads[:, keys:]
        return [(f"{prefix}attn_k_b.weight", key), (f"{prefix}attn_v_b.weight", value)]
    if arch in ("qwen3next", "qwen35"):
        values, renamed = delta(name, values, c, arch, prefix)
        if renamed is not None:
            return renamed
    if arch in ("gemma2", "gemma3") and name.endswith("norm.weight"):
        values = values + 1
    return [(mapped(name, names), values)]


def delta(name, values, c, arch, prefix):
    k, v = c["linear_key_head_dim"], c["linear_value_head_dim"]
    ratio = c["linear_num_value_heads"] // c["linear_num_key_heads"]
    keys = 2 * c["linear_num_key_heads"] * k
    tiled = arch == "qwen35"
    if name.endswith("in_proj_qkvz.weight"):
        heads = values.reshape(c["linear_num_key_heads"], 2 * k + 2 * ratio * v, -1)
        q, key, value, z = np.split(heads, [k, 2 * k, 2 * k + ratio * v], axis=1)
        rows = [part.reshape(-1, values.shape[1]) for part in (q, key, value)]
        qkv = np.concatenate(rows)
        z = z.reshape(-1, values.shape[1])
        return values, [(f"{prefix}attn_qkv.weight", qkv), (f"{prefix}attn_gate.weight", z)]
    if name.endswith("in_proj_qkv.weight") or name.endswith("conv1d.weight"):
        values = values.reshape(values.shape[0], -1)
        if tiled:
            values = np.concatenate([values[:keys], tile(values[keys:], c, v)])
        target = "attn_qkv" if "qkv" in name else "ssm_conv1d"
        return values, [(f"{prefix}{target}.weight", values)]
    if name.endswith("in_proj_z.weight"):
        return values, [(f"{prefix}attn_gate.weight", tile(values, c, v))]
    if name.endswith(("A_log", "dt_bias", "in_proj_a.weight", "in_proj_b.weight")):
        if name.endswith("A_log"):
            values = -np.exp(values)
        targets = {
            "A_log": "ssm_a",
            "dt_bias": "ssm_dt.bias",
            "in_proj_a.weight": "ssm_alpha.weight",
            "in_proj_b.weight": "ssm_beta.weight",
        }
        target = next(target for end, target in targets.items() if name.endswith(end))
        return values, [(f"{prefix}{target}", tile(values, c, 1) if tiled else values)]
    if name.endswith("linear_attn.out_proj.weight") and tiled:
        values = tile(values, c, v, axis=1)
    if name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        values = values + 1
    return values, None


def mapped(name, names):
    # Dense layers of mixtures are missing in some architectures' tables.
    plain = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 64)
    found = names.get_name(name, try_suffixes=(".weight", ".bias")) or plain.get_name(name, (".weight", ".bias"))
    assert found, f"no GGUF name for {name}"
    return found


def main(folder, out, arch, split="0", pooling="0"):
    config, tensors = read(Path(folder))
    write(Path(out), config | {"pooling_type": int(pooling)}, tensors, arch, int(split))


if __name__ == "__main__":
    main(*sys.argv[1:])
