"""Writes grids.bin: the lattices of the IQ formats as the `gguf` package (0.19) holds them, one after the other.

Elements are 2 bits (IQ2_XXS, IQ2_XS, IQ2_S, IQ1_S) or 4 bits (IQ3_XXS, IQ3_S), lowest first, and index magnitudes.
"""

from pathlib import Path

from gguf import quants

NAMES = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S")
grids = [bytes.fromhex(getattr(quants, name).grid_hex.decode()) for name in NAMES]
Path(__file__).with_name("grids.bin").write_bytes(b"".join(grids))
print([len(grid) for grid in grids])
