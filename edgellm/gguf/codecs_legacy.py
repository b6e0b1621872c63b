"""Blocks of 32 values with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1.

A block of 32 small integers q and a half-precision scale d stands for d * q, or for d * q + m in the types that end
in _1. The low nibbles of the bytes hold the first half of the values and the high nibbles the second half.

Source: the structures and ``dequantize_row_*`` of ggml (``ggml-common.h``, ``ggml-quants.c``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm.gguf.bits import fields, half
from edgellm.gguf.codecs import Bytes, Float32


def _nibbles(packed: Bytes) -> Bytes:
    return fields(packed, 16, 4)


def _fifth_bits(packed: Bytes) -> Bytes:
    """The bits of uint8 (n, 4), lowest first, each moved to the place of bit 4: (n, 32)."""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _signed(values: Bytes, offset: int) -> NDArray[np.int8]:
    return values.view(np.int8) - np.int8(offset)


def decode_q4_0(blocks: Bytes, out: Float32) -> None:
    """d: f16, 32 nibbles; d * (q - 8)."""
    np.multiply(half(blocks, 0), _signed(_nibbles(blocks[:, 2:]), 8), out=out)


def decode_q4_1(blocks: Bytes, out: Float32) -> None:
    """d: f16, m: f16, 32 nibbles; d * q + m."""
    np.multiply(half(blocks, 0), _nibbles(blocks[:, 4:]), out=out)
    out += half(blocks, 2)


def decode_q5_0(blocks: Bytes, out: Float32) -> None:
    """d: f16, 32 fifth bits, 32 nibbles; d * (q - 16)."""
    values = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    np.multiply(half(blocks, 0), _signed(values, 16), out=out)


def decode_q5_1(blocks: Bytes, out: Float32) -> None:
    """d: f16, m: f16, 32 fifth bits, 32 nibbles; d * q + m."""
    values = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    np.multiply(half(blocks, 0), values, out=out)
    out += half(blocks, 2)


def decode_q8_0(blocks: Bytes, out: Float32) -> None:
    """d: f16, 32 bytes; d * q."""
    np.multiply(half(blocks, 0), blocks[:, 2:].view(np.int8), out=out)


def decode_q8_1(blocks: Bytes, out: Float32) -> None:
    """d: f16, d times the sum of the values: f16 (of use to dot products only), 32 bytes; d * q."""
    np.multiply(half(blocks, 0), blocks[:, 4:].view(np.int8), out=out)
