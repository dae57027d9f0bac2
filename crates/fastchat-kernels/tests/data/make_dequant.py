"""Writes dequant.bin: two random blocks of every kind, and what the `gguf` package (0.19) reads in them.

Record: name length u8, name, stored bytes u32, elements u32, the stored bytes, the elements as f32. Little-endian.
"""

import struct
from pathlib import Path

import gguf
import numpy as np

KINDS = (
    "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4 "
    "IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ1_S IQ1_M TQ1_0 TQ2_0"
).split()

rng = np.random.default_rng(7)
with Path(__file__).with_name("dequant.bin").open("wb") as out:
    for name in KINDS:
        kind = gguf.GGMLQuantizationType[name]
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = []
        while len(blocks) < 2:
            block = rng.integers(0, 256, (1, size), dtype=np.uint8)
            # Random scales may be infinite or no numbers; those blocks no model holds.
            if np.isfinite(gguf.quants.dequantize(block, kind)).all():
                blocks.append(block)
        stored = np.concatenate(blocks, axis=1)
        values = gguf.quants.dequantize(stored, kind).astype("<f4")
        out.write(struct.pack("<B", len(name)) + name.encode() + struct.pack("<II", 2 * size, 2 * elements))
        out.write(stored.tobytes() + values.tobytes())
