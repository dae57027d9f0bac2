"""Writes a folder of a model that takes pictures as a GGUF file and the file of its tower beside it (mmproj), in the
layout that published converters use. Names come from the `gguf` package's own tables.

Usage: mmproj.py FOLDER OUT_FOLDER ARCHITECTURE PROJECTOR
"""

import json
import re
import sys
from pathlib import Path

import gguf
import numpy as np
from convert import add, add_tensor, finish, permute, read, write

# Names of the tokens that a projector needs, by the fields of config.json that number them.
TOKENS = {
    "gemma3": {
        "boi_token_index": "<start_of_image>",
        "eoi_token_index": "<end_of_image>",
        "image_token_index": "<image_soft_token>",
    },
    "idefics3": {"image_token_id": "<image>"},
    "mlp": {"image_token_index": "<image>"},
    "pixtral": {"image_token_index": "[IMG]"},
    "qwen2.5vl_merger": {"image_token_id": "<|image_pad|>"},
    "qwen3vl_merger": {"image_token_id": "<|image_pad|>"},
}
TOWER = re.compile(r"(model\.)?(vision_tower|vision_model|multi_modal_projector|connector|visual)\.")


def keys(config, pictures, projector):
    v = config["vision_config"]
    layers = v.get("num_hidden_layers") or v["depth"]
    size = v.get("image_size") or int(v.get("num_position_embeddings", 16) ** 0.5) * v["patch_size"]
    yield "clip.has_vision_encoder", True
    yield "clip.projector_type", projector
    yield "clip.use_silu" if v["hidden_act"] == "silu" else "clip.use_gelu", v["hidden_act"] != "quick_gelu"
    sizes = {
        "image_size": size,
        "patch_size": v["patch_size"],
        "embedding_length": v["hidden_size"],
        "feed_forward_length": v["intermediate_size"],
        "block_count": layers,
        "projection_dim": config["text_config"]["hidden_size"],
        "attention.head_count": v.get("num_attention_heads") or v["num_heads"],
        "attention.layer_norm_epsilon": float(v.get("layer_norm_eps", 1e-6)),
        "image_mean": [float(x) for x in pictures["image_mean"]],
        "image_std": [float(x) for x in pictures["image_std"]],
    }
    if projector == "gemma3":
        sizes["projector.scale_factor"] = size // v["patch_size"] // int(config["mm_tokens_per_image"] ** 0.5)
    if projector == "idefics3":
        sizes |= {
            "projector.scale_factor": config["scale_factor"],
            "preproc_image_size": pictures["size"]["longest_edge"],
        }
    if projector == "mlp":
        sizes["feature_layer"] = [layers + 1 + config["vision_feature_layer"]]
    if projector.startswith("qwen"):
        sizes |= {
            "spatial_merge_size": v["spatial_merge_size"],
            "image_min_pixels": pictures["size"]["shortest_edge"],
            "image_max_pixels": pictures["size"]["longest_edge"],
        }
    if "fullatt_block_indexes" in v:
        sizes |= {"n_wa_pattern": v["fullatt_block_indexes"][0] + 1, "window_size": v["window_size"]}
    if "deepstack_visual_indexes" in v:
        deep = v["deepstack_visual_indexes"]
        sizes["is_deepstack_layers"] = [layer in deep for layer in range(layers)]
    for key, value in sizes.items():
        yield f"clip.vision.{key}", value


def parts(name, values, config, projector, names):
    """(name, values) of what a stored tensor of the tower becomes."""
    name = re.sub(r"^(model\.)?vision_tower\.(?!transformer|patch_conv|ln_pre)", "vision_tower.vision_model.", name)
    name = re.sub(r"^model\.visual\.", "visual.", name)
    v = config["vision_config"]
    if name.endswith("patch_embed.proj.weight"):
        return [("v.patch_embd.weight", values[:, :, 0]), ("v.patch_embd.weight.1", values[:, :, 1])]
    if ".qkv." in name and projector == "qwen2.5vl_merger":
        cut = zip("qkv", np.split(values, 3), strict=True)
        return [(mapped(name.replace("qkv", which), names), part) for which, part in cut]
    deep = re.fullmatch(r"visual\.deepstack_merger_list\.(\d+)\.(?:linear_)?(\w+)\.(\w+)", name)
    if deep:
        layer = v["deepstack_visual_indexes"][int(deep[1])]
        return [(f"v.deepstack.{layer}.{deep[2]}.{deep[3]}", values)]
    merger = re.fullmatch(r"visual\.merger\.(norm|linear_fc1|linear_fc2)\.(\w+)", name)
    if merger:
        stem = {"norm": "v.post_ln", "linear_fc1": "mm.0", "linear_fc2": "mm.2"}[merger[1]]
        return [(f"{stem}.{merger[2]}", values)]
    if projector == "mlp" and "multi_modal_projector" in name:
        # The oldest converter numbers the layers of a sequence, the activation among them.
        _, layer, kind = name.rsplit(".", 2)
        return [(f"mm.{0 if layer == 'linear_1' else 2}.{kind}", values)]
    if projector == "gemma3":
        name = name.replace("_weight", ".weight")
        values = values + 1 if "soft_emb_norm" in name else values
    if projector == "pixtral" and re.search(r"\.[qk]_proj\.", name):
        values = permute(values, v["num_attention_heads"])
    return [(mapped(name, names), values)]


def mapped(name, names):
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found, f"no GGUF name for {name}"
    return found


def swapped(name):
    """The oldest files call the matrices of the MLP the other way round."""
    swap = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
    return re.sub("ffn_up|ffn_down", lambda found: swap[found[0]], name)


def main(folder, out, arch, projector):
    folder, out = Path(folder), Path(out)
    config, tensors = read(folder)
    pictures = json.loads((folder / "preprocessor_config.json").read_text())
    text = {
        re.sub(r"^(language_model\.model|model\.(language_model|text_model))\.", "model.", name).replace(
            "language_model.lm_head", "lm_head"
        ): values
        for name, values in tensors.items()
        if not TOWER.match(name)
    }
    named = {config[field]: name for field, name in TOKENS[projector].items()}
    write(out / "model.gguf", config["text_config"], text, arch, named=named)

    writer = gguf.GGUFWriter(out / "mmproj-model.gguf", "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    for key, value in keys(config, pictures, projector):
        add(writer, key, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 64)
    for name, values in tensors.items():
        # SigLIP's own head, and what LLaVA never runs.
        unused = ".head." in name or (projector == "mlp" and "post_layernorm" in name)
        if TOWER.match(name) and not unused:
            for target, part in parts(name, values, config, projector, names):
                add_tensor(writer, swapped(target) if projector == "mlp" else target, part)
    if projector == "pixtral" and (folder / "tokenizer.json").exists():
        # llama.cpp puts it behind each line of patches itself.
        words = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
        row = next(word["id"] for word in words if word["content"] == "[IMG_BREAK]")
        writer.add_tensor("v.token_embd.img_break", text["model.embed_tokens.weight"][row])
    finish(writer)


if __name__ == "__main__":
    main(*sys.argv[1:])
