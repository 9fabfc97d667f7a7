#!/usr/bin/env python3
"""Writes kernels/ops/testdata/block_fixtures.bin: random stored blocks, valued by the `gguf` package.

Needs: pip install gguf numpy. Records, little-endian: uint32 name length, name, uint32 element
count, uint32 byte count, the stored bytes, the values as float32.
"""
import os
import struct

import gguf
import numpy as np

BLOCKS = 48
SCALE_FIELDS = {  # byte offsets of binary16 fields in a block
    "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q6_K": [208],
}
SPECIAL_HALVES = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x3C00]


def main():
    rng = np.random.default_rng(20250117)
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "kernels", "ops", "testdata")
    os.makedirs(root, exist_ok=True)
    with open(os.path.join(root, "block_fixtures.bin"), "wb") as out:
        for name in ["F32", "F16", "BF16", *SCALE_FIELDS]:
            kind = gguf.GGMLQuantizationType[name]
            elements, size = gguf.GGML_QUANT_SIZES[kind]
            blocks = BLOCKS if elements > 1 else 256
            if elements == 256:
                blocks = 12
            stored = rng.integers(0, 256, size=(blocks, size), dtype=np.uint8)
            if name == "F32":
                stored = rng.normal(size=blocks).astype("<f4").view(np.uint8).reshape(blocks, size)
            elif name == "F16":
                stored = rng.normal(size=blocks).astype("<f2").view(np.uint8).reshape(blocks, size)
            elif name == "BF16":
                upper_halves = rng.normal(size=blocks).astype("<f4").view("<u2")[1::2].copy()
                stored = upper_halves.view(np.uint8).reshape(blocks, size)
            for field in SCALE_FIELDS.get(name, []):
                # Finite scales over the whole range of binary16, then the special ones.
                signs = rng.integers(0, 2, size=blocks) << 15
                halves = (rng.integers(0, 0x7C00, size=blocks) | signs).astype("<u2")
                halves[: len(SPECIAL_HALVES)] = np.roll(SPECIAL_HALVES, field)
                stored[:, field : field + 2] = halves.view(np.uint8).reshape(blocks, 2)
            values = gguf.quants.dequantize(stored.reshape(-1), kind).astype("<f4").reshape(-1)
            assert values.size == blocks * elements and np.isfinite(values).all(), name
            encoded = name.encode()
            out.write(struct.pack("<I", len(encoded)) + encoded)
            out.write(struct.pack("<II", values.size, stored.size) + stored.tobytes() + values.tobytes())


if __name__ == "__main__":
    main()
