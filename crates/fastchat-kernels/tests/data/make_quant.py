"""Writes quant.bin: 256 random values and what the `gguf` package (0.19) makes of them.

The values as f32, then per kind in order its bytes.
"""

from pathlib import Path

import gguf
import numpy as np

rng = np.random.default_rng(11)
values = (rng.standard_normal(256) * np.repeat(rng.uniform(0.001, 4, 8), 32)).astype("<f4")
values[32:64] = 0
with Path(__file__).with_name("quant.bin").open("wb") as out:
    out.write(values.tobytes())
    for name in "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0".split():
        out.write(gguf.quants.quantize(values, gguf.GGMLQuantizationType[name]).tobytes())
