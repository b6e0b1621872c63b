"""The codes within blocks: put others in their place, and find what each code stands for.

Layouts as in the decoders of `edgellm.gguf`; a block keeps its scales.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from edgellm.gguf import TensorType, decode
from edgellm.kernels.quantizer_schemes import SCHEMES, STEPS

Bytes = NDArray[np.uint8]
Float32 = NDArray[np.float32]


def packed(codes: Bytes, width: int, bits: int) -> Bytes:
    """The inverse of `edgellm.gguf.bits.fields`: codes (n, k * 8 / bits), each below 2 ** bits, as bytes (n, k)."""
    planes = codes.reshape(len(codes), -1, 8 // bits, width) << np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    result: Bytes = np.bitwise_or.reduce(planes, axis=2).reshape(len(codes), -1)
    return result


def _bits(codes: Bytes) -> Bytes:
    return np.packbits(codes, axis=1, bitorder="little")


def _low(codes: Bytes) -> Bytes:
    return codes & np.uint8(15)


def _q6_k(blocks: Bytes, codes: Bytes) -> None:
    blocks[:, :128], blocks[:, 128:192] = packed(_low(codes), 64, 4), packed(codes >> np.uint8(4), 32, 2)


def _q5_k(blocks: Bytes, codes: Bytes) -> None:
    blocks[:, 16:48], blocks[:, 48:] = packed(codes >> np.uint8(4), 32, 1), packed(_low(codes), 32, 4)


def _q3_k(blocks: Bytes, codes: Bytes) -> None:
    blocks[:, :32], blocks[:, 32:96] = packed(codes >> np.uint8(2), 32, 1), packed(codes & np.uint8(3), 32, 2)


def _q5(start: int) -> Callable[[Bytes, Bytes], None]:
    def put(blocks: Bytes, codes: Bytes) -> None:
        blocks[:, start : start + 4], blocks[:, start + 4 :] = _bits(codes >> np.uint8(4)), packed(_low(codes), 16, 4)

    return put


def _simple(start: int, end: int | None, width: int, bits: int) -> Callable[[Bytes, Bytes], None]:
    def put(blocks: Bytes, codes: Bytes) -> None:
        blocks[:, start:end] = packed(codes, width, bits)

    return put


def _q8_0(blocks: Bytes, codes: Bytes) -> None:
    blocks[:, 2:] = codes


_PUT: Mapping[TensorType, Callable[[Bytes, Bytes], None]] = {
    TensorType.Q4_0: _simple(2, None, 16, 4),
    TensorType.Q4_1: _simple(4, None, 16, 4),
    TensorType.Q5_0: _q5(2),
    TensorType.Q5_1: _q5(4),
    TensorType.Q8_0: _q8_0,
    TensorType.Q2_K: _simple(16, 80, 32, 2),
    TensorType.Q3_K: _q3_k,
    TensorType.Q4_K: _simple(16, None, 32, 4),
    TensorType.Q5_K: _q5_k,
    TensorType.Q6_K: _q6_k,
    TensorType.IQ4_NL: _simple(2, None, 16, 4),
    TensorType.IQ4_XS: _simple(8, None, 16, 4),
    TensorType.TQ2_0: _simple(0, 64, 32, 2),
}
KINDS = tuple(_PUT)
"""Types whose codes can be put."""


def levels(kind: TensorType) -> NDArray[np.float32]:
    """What codes 0, 1, ... stand for, before scale and minimum."""
    scheme = SCHEMES[kind.name]
    if scheme.by_table:
        return np.array(STEPS, np.float32)
    return np.arange(scheme.low, scheme.high + 1, dtype=np.float32)


def put_codes(blocks: Bytes, kind: TensorType, codes: Bytes) -> None:
    """Replace the codes of blocks in place.

    Args:
        blocks: (n, block_bytes).
        kind: one of `KINDS`.
        codes: (n, block_size), numbers of `levels`.
    """
    if kind is TensorType.Q8_0:  # signed bytes, of which -128 is not used
        codes = (codes.astype(np.int16) - 127).astype(np.int8).view(np.uint8)
    _PUT[kind](blocks, codes)


def scales_and_minima(blocks: Bytes, kind: TensorType) -> tuple[Float32, Float32]:
    """For each value of the blocks the scale and minimum that stand in its block: two of (n, block_size).

    They are found by decoding the blocks with other codes: a value is scale * level + minimum.
    """
    table = levels(kind)
    first, second = blocks.copy(), blocks.copy()
    low, high = 0, len(table) - 1
    put_codes(first, kind, np.full((len(blocks), kind.block_size), low, np.uint8))
    put_codes(second, kind, np.full((len(blocks), kind.block_size), high, np.uint8))
    bottom, top = decode(first, kind), decode(second, kind)
    scale = ((top.astype(np.float64) - bottom) / (float(table[high]) - float(table[low]))).astype(np.float32)
    return scale, (bottom - scale * table[low]).astype(np.float32)
