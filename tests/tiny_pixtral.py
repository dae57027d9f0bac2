"""A Pixtral model of random numbers, its words and pictures for it, to be compared with another engine. Numbers follow
from names alone. Knows no engine."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tiny_families import numbers, write_tensors
from tiny_vision import write_words

_HIDDEN, _WIDTH, _PATCH, _VOCAB = 64, 48, 14, 256
SIDES = ((6, 4), (4, 6), (8, 8), (7, 2))
"""Width and height of each picture, in patches: none is resized."""
WORDS = ("See ", " What is it?")
"""Before and behind a picture."""
BREAK = 251
_SPECIAL = {0: "<pad>", 1: "<s>", 2: "</s>", 250: "[IMG]", BREAK: "[IMG_BREAK]", 252: "[IMG_END]"}
_TEMPLATE = (
    "<s>{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}[IMG]{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def picture(index: int) -> npt.NDArray[np.uint8]:
    """Pixels of picture `index`: `[height, width, 3]`."""
    width, height = (side * _PATCH for side in SIDES[index])
    noise = numbers(f"picture {index}", [height, width, 3])
    return ((noise / 0.25 + 0.5) * 255).astype(np.uint8)


def write(folder: Path) -> None:
    """The files of the model."""
    folder.mkdir(parents=True)
    layers = {"num_hidden_layers": 2, "intermediate_size": 2 * _HIDDEN, "rope_theta": 10000.0, "hidden_act": "silu"}
    text = {
        **layers,
        **{"model_type": "llama", "hidden_size": _HIDDEN, "vocab_size": _VOCAB, "rms_norm_eps": 1e-6},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512},
    }
    tower = {
        **layers,
        **{"model_type": "pixtral", "hidden_size": _WIDTH, "intermediate_size": 2 * _WIDTH, "num_attention_heads": 3},
        **{"patch_size": _PATCH, "image_size": 8 * _PATCH},
    }
    config: dict[str, Any] = {
        **{"model_type": "llava", "image_token_index": 250, "projector_hidden_act": "gelu"},
        **{"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
        **{"text_config": text, "vision_config": tower},
    }
    processor = {"size": {"longest_edge": 8 * _PATCH}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), "utf-8")
    write_words(folder, _SPECIAL, _TEMPLATE)
    # Large enough for rows to depend on the picture.
    write_tensors(folder, {name: numbers(name, shape) * (1 if "norm" in name else 3) for name, shape in _tensors()})


def _tensors() -> Iterator[tuple[str, list[int]]]:
    yield "language_model.lm_head.weight", [_VOCAB, _HIDDEN]
    yield "language_model.model.embed_tokens.weight", [_VOCAB, _HIDDEN]
    yield "language_model.model.norm.weight", [_HIDDEN]
    yield "vision_tower.patch_conv.weight", [_WIDTH, 3, _PATCH, _PATCH]
    yield "vision_tower.ln_pre.weight", [_WIDTH]
    for layer, columns in (("linear_1", _WIDTH), ("linear_2", _HIDDEN)):
        yield f"multi_modal_projector.{layer}.weight", [_HIDDEN, columns]
        yield f"multi_modal_projector.{layer}.bias", [_HIDDEN]
    for index in range(2):
        text, tower = f"language_model.model.layers.{index}", f"vision_tower.transformer.layers.{index}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{text}.{name}.weight", [_HIDDEN]
        for name in ("attention_norm", "ffn_norm"):
            yield f"{tower}.{name}.weight", [_WIDTH]
        for name, rows in (("q_proj", 64), ("k_proj", 32), ("v_proj", 32), ("o_proj", 64)):
            yield f"{text}.self_attn.{name}.weight", [rows, _HIDDEN]
            yield f"{tower}.attention.{name}.weight", [_WIDTH, _WIDTH]
        for name, rows, columns in (("gate_proj", 2, 1), ("up_proj", 2, 1), ("down_proj", 1, 2)):
            yield f"{text}.mlp.{name}.weight", [rows * _HIDDEN, columns * _HIDDEN]
            yield f"{tower}.feed_forward.{name}.weight", [rows * _WIDTH, columns * _WIDTH]
