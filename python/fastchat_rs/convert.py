"""Writes a model as one GGUF file, for this engine and for llama.cpp. Loads nothing and generates nothing."""

from pathlib import Path
from typing import Literal

import msgspec

from fastchat_rs._engine import convert

FileKind = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k"]
"""What the matrices of a file become."""


class Converted(msgspec.Struct, frozen=True):
    """What was written: tensors, bytes of the file, the number of tensors of each element kind, and what the model has
    that the file has not."""

    tensors: int
    bytes: int
    kinds: dict[str, int]
    left_out: str | None = None


def convert_model(model: str | Path, out: str | Path, kind: FileKind | None = None) -> Converted:
    """`model` is a path, a Hugging Face id or a demo name; `kind` None keeps the kinds that are stored."""
    from fastchat_rs.hub import resolve

    return msgspec.json.decode(convert(str(resolve(str(model)).path), str(out), kind), type=Converted)
