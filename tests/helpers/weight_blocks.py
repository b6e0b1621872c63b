"""Random blocks of every weight type that kernels read, with scales as extreme as their type allows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.gguf import TensorType, decode

Bytes = NDArray[np.uint8]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class BlockShape:
    """Where a block has its half-precision scales and its codes; a scale serves ``span`` values.

    With all code bytes set to ``zero_code`` every value decodes to ``1 / stretch`` of the offset o of the kernels'
    ``weight = scale * code + o`` with unsigned codes.
    """

    halves: tuple[int, ...]
    codes: tuple[int, int]
    span: int = 32
    zero_code: int = 0
    stretch: float = 1.0


# The 4-bit tables begin at -127, and the kernels add 128 to their entries.
SHAPES = {
    "Q8_0": BlockShape((0,), (2, 34), zero_code=0x80),
    "Q4_0": BlockShape((0,), (2, 18)),
    "Q4_1": BlockShape((0, 2), (4, 20)),
    "Q5_0": BlockShape((0,), (2, 22)),
    "Q5_1": BlockShape((0, 2), (4, 24)),
    "IQ4_NL": BlockShape((0,), (2, 18), stretch=128 / 127),
    "Q2_K": BlockShape((80, 82), (16, 80), span=16),
    "Q3_K": BlockShape((108,), (0, 96), span=16),
    "Q4_K": BlockShape((0, 2), (16, 144)),
    "Q5_K": BlockShape((0, 2), (16, 176)),
    "Q6_K": BlockShape((208,), (0, 192), span=16),
    "IQ4_XS": BlockShape((0,), (8, 136), stretch=128 / 127),
    "TQ1_0": BlockShape((52,), (0, 52)),
    "TQ2_0": BlockShape((64,), (0, 64)),
}
QUANTIZED_TYPES = tuple(SHAPES)
FLOAT_TYPES = ("F32", "F16", "BF16")

# Zeros, the smallest and the largest denormal, the smallest normal, the largest, both signs.
EXTREME_HALVES = np.array(
    [0, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x8400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF], np.uint16
)
NOT_FINITE_HALVES = np.array([0x7C00, 0xFC00, 0x7E00, 0xFE01], np.uint16)


def random_blocks(type_name: str, rows: int, blocks: int, scales: str, generator: np.random.Generator) -> Bytes:
    """Random codes, (rows, bytes); half-precision scales "ordinary" (around 0.01) or "extreme"."""
    kind, shape = TensorType[type_name], SHAPES[type_name]
    raw = generator.integers(0, 256, (rows, blocks, kind.block_bytes), dtype=np.uint8)
    for offset in shape.halves:
        if scales == "extreme":
            halves = generator.choice(EXTREME_HALVES, (rows, blocks))
        else:
            halves = generator.uniform(-0.02, 0.02, (rows, blocks)).astype(np.float16).view(np.uint16)
        raw[:, :, offset : offset + 2] = halves[..., None].view(np.uint8)
    return raw.reshape(rows, -1)


def random_floats(type_name: str, rows: int, columns: int, scales: str, generator: np.random.Generator) -> Bytes:
    """Random F32, F16 or BF16 weights, (rows, bytes)."""
    values = generator.standard_normal((rows, columns)).astype(np.float32)
    if scales == "extreme":
        largest = 6e4 if type_name == "F16" else 1e30
        values = generator.choice(np.array([0, -0.0, 1e-7, -1e-7, 1e-42, 1, -1, largest, -largest], np.float32),
                                  (rows, columns))  # fmt: skip
    if type_name == "F16":
        values = values.astype(np.float16)
    elif type_name == "BF16":
        values = (values.view(np.uint32) >> 16).astype(np.uint16)
    return np.ascontiguousarray(values).view(np.uint8).reshape(rows, -1)


def decoded(raw: Bytes, type_name: str) -> Doubles:
    """The weights, (rows, columns)."""
    return decode(raw, TensorType[type_name]).astype(np.float64)


def offsets(raw: Bytes, type_name: str) -> Doubles:
    """The offset o of each weight in ``weight = scale * code + o``, (rows, columns)."""
    kind, shape = TensorType[type_name], SHAPES[type_name]
    blank = raw.copy().reshape(len(raw), -1, kind.block_bytes)
    blank[:, :, slice(*shape.codes)] = shape.zero_code
    return decoded(blank.reshape(raw.shape), type_name) * shape.stretch
