"""A vision model small enough for any test: the reference's tiny weights, and a tokenizer and a template of our own."""

import base64
import json
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

from fastchat_rs.convert import convert_model
from where import REPOSITORY, need, shared

SPECIAL = {
    0: "<pad>",
    1: "<s>",
    2: "</s>",
    248: "<|vision_start|>",
    249: "<|vision_end|>",
    250: "<|image_pad|>",
    251: "<|video_pad|>",
    252: "<|im_start|>",
    253: "<|im_end|>",
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IMAGE_TOKENS = 8
"""Of the reference's picture."""


def _alphabet() -> list[str]:
    """The characters that stand for bytes in byte-level vocabularies, printable ones first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    # The space and the line break before what few texts have.
    order = [*range(0x20, 0x7F), 0x0A, *(byte for byte in range(256) if not 0x20 <= byte < 0x7F and byte != 0x0A)]
    return [names[byte] for byte in order]


def vision_model(folder: Path, family: str = "qwen2_5_vl") -> Path:
    """Makes the model in `folder`; one byte is one token."""
    source = need(shared() / "parity/vision" / family, always_in_ci=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "preprocessor_config.json", "image.png"):
        shutil.copyfile(source / name, folder / name)
    write_words(folder, SPECIAL, TEMPLATE)
    return folder


def write_words(folder: Path, special: dict[int, str], template: str) -> None:
    """tokenizer.json and the template of a model of 256 tokens: special ones, and one for nearly every byte."""
    free = [id for id in range(256) if id not in special]
    vocab = dict(zip(_alphabet(), free, strict=False))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [{"id": id, "content": name, **flags} for id, name in special.items()],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {**vocab, **{name: id for id, name in special.items()}}, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    (folder / "chat_template.jinja").write_text(template, "utf-8")


def convert_words(source: Path, out: Path) -> None:
    """The model's text side as a GGUF file, its words with one merge and a split into words, as GGUF wants."""
    words = json.loads((source / "tokenizer.json").read_text("utf-8"))
    words["pre_tokenizer"]["use_regex"] = True
    words["model"]["vocab"]["zq"] = words["model"]["vocab"].pop("\u0100")
    words["model"]["merges"] = ["z q"]
    (source / "tokenizer.json").write_text(json.dumps(words), "utf-8")
    convert_model(source, out)


def gguf_vision_model(folder: Path) -> Path:
    """The same in `folder` as model.gguf, with mmproj-model.gguf beside it and the picture."""
    source = vision_model(folder / "source")
    script = REPOSITORY / "crates/fastchat-models/tests/gguf/mmproj.py"
    command = [sys.executable, str(script), str(source), str(folder), "qwen2vl", "qwen2.5vl_merger"]
    subprocess.run(command, capture_output=True, check=True, timeout=120)
    # That script's words are made up.
    convert_words(source, folder / "model.gguf")
    (source / "image.png").rename(folder / "image.png")
    shutil.rmtree(source)
    return folder


def data_url(picture: bytes, kind: str = "png") -> str:
    """As chat clients send pictures."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def png(pixels: Any) -> bytes:
    """A PNG of a uint8 array `[height, width, 3]`."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
