"""Tensor types of the GGUF format: their ids in the file and how many bytes hold how many values.

Source: the type table and block structures of ggml (``ggml.h``, ``ggml-common.h``).
"""

from __future__ import annotations

from enum import IntEnum


class TensorType(IntEnum):
    """How the values of a tensor are stored; the number is the id in the file."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    I2_S = 36
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41

    @property
    def block_size(self) -> int:
        """Values in one block; the length of a row is a multiple of it."""
        return _LAYOUT[self][0]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return _LAYOUT[self][1]

    @property
    def tail_bytes(self) -> int:
        """Bytes after the last row of a tensor: I2_S keeps its scale there, one for the whole tensor."""
        return 32 if self is TensorType.I2_S else 0

    @property
    def bits_per_value(self) -> float:
        """Storage cost of one value in bits, scales included."""
        size, length = _LAYOUT[self]
        return 8 * length / size


# Values a block, bytes a block. The sums follow the order of the fields in
# the block, so that each can be checked against the decoder beside it.
_LAYOUT: dict[TensorType, tuple[int, int]] = {
    TensorType.F32: (1, 4),
    TensorType.F16: (1, 2),
    TensorType.BF16: (1, 2),
    TensorType.F64: (1, 8),
    TensorType.I8: (1, 1),
    TensorType.I16: (1, 2),
    TensorType.I32: (1, 4),
    TensorType.I64: (1, 8),
    TensorType.Q1_0: (128, 2 + 16),
    TensorType.Q4_0: (32, 2 + 16),
    TensorType.Q4_1: (32, 2 + 2 + 16),
    TensorType.Q5_0: (32, 2 + 4 + 16),
    TensorType.Q5_1: (32, 2 + 2 + 4 + 16),
    TensorType.Q8_0: (32, 2 + 32),
    # Two half floats and the values, as ggml lays it out since its scale and
    # sum became half floats (tables that say 40 bytes are older than that).
    TensorType.Q8_1: (32, 2 + 2 + 32),
    TensorType.Q2_K: (256, 16 + 64 + 2 + 2),
    TensorType.Q3_K: (256, 32 + 64 + 12 + 2),
    TensorType.Q4_K: (256, 2 + 2 + 12 + 128),
    TensorType.Q5_K: (256, 2 + 2 + 12 + 32 + 128),
    TensorType.Q6_K: (256, 128 + 64 + 16 + 2),
    TensorType.Q8_K: (256, 4 + 256 + 32),
    TensorType.IQ1_S: (256, 2 + 32 + 16),
    TensorType.IQ1_M: (256, 32 + 16 + 8),
    TensorType.IQ2_XXS: (256, 2 + 64),
    TensorType.IQ2_XS: (256, 2 + 64 + 8),
    TensorType.IQ2_S: (256, 2 + 32 + 32 + 8 + 8),
    TensorType.IQ3_XXS: (256, 2 + 64 + 32),
    TensorType.IQ3_S: (256, 2 + 64 + 8 + 32 + 4),
    TensorType.IQ4_NL: (32, 2 + 16),
    TensorType.IQ4_XS: (256, 2 + 2 + 4 + 128),
    TensorType.TQ1_0: (256, 48 + 4 + 2),
    TensorType.TQ2_0: (256, 64 + 2),
    # Of bitnet.cpp, not of ggml: ggml has withdrawn another type of this number, whose files nobody has.
    TensorType.I2_S: (128, 32),
    TensorType.MXFP4: (32, 1 + 16),
    TensorType.NVFP4: (64, 4 + 32),
}

# Ids that once meant something upstream, or mean something in one fork only:
# an error that says so helps more than "unknown".
FOREIGN_TYPES: dict[int, str] = {
    4: "Q4_2, which was withdrawn",
    5: "Q4_3, which was withdrawn",
    31: "Q4_0_4_4, a repacked form that was withdrawn",
    32: "Q4_0_4_8, a repacked form that was withdrawn",
    33: "Q4_0_8_8, a repacked form that was withdrawn",
    37: "I8_S of BitNet's own fork, or the withdrawn IQ4_NL_4_8",
    38: "TL1 of BitNet's own fork, or the withdrawn IQ4_NL_8_8",
}
