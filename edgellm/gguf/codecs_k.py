"""The k-quants: blocks of 256 values in groups of 16 or 32, each with its own small scale (Q2_K to Q6_K, Q8_K).

A block has one half-precision scale d for its groups' integer scales, and in Q2_K, Q4_K and Q5_K another one, dmin,
for their integer minima: a value is (d * scale) * q - (dmin * minimum).

Source: the structures and ``dequantize_row_*`` of ggml (``ggml-common.h``, ``ggml-quants.c``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm.gguf.bits import fields, half
from edgellm.gguf.codecs import Bytes, Float32


def _scale_groups(scales: Float32, values: NDArray[np.integer], out: Float32) -> None:
    """out = scales * values, where scales (n, g) hold for groups of 256 / g values; ``values`` may be signed."""
    groups = (*scales.shape, -1)
    np.multiply(scales[:, :, None], values.reshape(groups), out=out.reshape(groups))


def _scales_and_minima(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Eight 6-bit scales and eight 6-bit minima out of uint8 (n, 12): two of (n, 8).

    Bytes 0-3 and 4-7 hold the first four scales and minima in their low six bits. Bytes 8-11 hold the low four bits
    of the last four scales (low nibble) and minima (high nibble), whose top two bits are those of bytes 0-3 and 4-7.
    """
    first, second, low = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (low & 15) | (first >> 6 << 4)], axis=1)
    minima = np.concatenate([second & 63, (low >> 4) | (second >> 6 << 4)], axis=1)
    return scales, minima


def decode_q2_k(blocks: Bytes, out: Float32) -> None:
    """16 bytes of scale (low nibble) and minimum (high), 64 bytes of 2-bit values, d: f16, dmin: f16."""
    scales = half(blocks, 80) * (blocks[:, :16] & 15)
    minima = half(blocks, 82) * (blocks[:, :16] >> 4)
    _scale_groups(scales, fields(blocks[:, 16:80], 32, 2), out)
    out.reshape(-1, 16, 16)[...] -= minima[:, :, None]


def decode_q3_k(blocks: Bytes, out: Float32) -> None:
    """32 bytes of third bits, 64 bytes of 2-bit values, 12 bytes of 6-bit scales less 32, d: f16; values less 4."""
    low, high = fields(blocks[:, 96:104], 8, 4), fields(blocks[:, 104:108], 4, 2)
    scales = half(blocks, 108) * ((low | high << 4).view(np.int8) - np.int8(32))
    values = fields(blocks[:, 32:96], 32, 2) | fields(blocks[:, :32], 32, 1) << 2
    _scale_groups(scales, values.view(np.int8) - np.int8(4), out)


def decode_q4_k(blocks: Bytes, out: Float32) -> None:
    """d: f16, dmin: f16, 12 bytes of scales and minima, 128 bytes of nibbles."""
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    _scale_groups(half(blocks, 0) * scales, fields(blocks[:, 16:], 32, 4), out)
    out.reshape(-1, 8, 32)[...] -= (half(blocks, 2) * minima)[:, :, None]


def decode_q5_k(blocks: Bytes, out: Float32) -> None:
    """d: f16, dmin: f16, 12 bytes of scales and minima, 32 bytes of fifth bits, 128 bytes of nibbles."""
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    values = fields(blocks[:, 48:], 32, 4) | fields(blocks[:, 16:48], 32, 1) << 4
    _scale_groups(half(blocks, 0) * scales, values, out)
    out.reshape(-1, 8, 32)[...] -= (half(blocks, 2) * minima)[:, :, None]


def decode_q6_k(blocks: Bytes, out: Float32) -> None:
    """128 bytes of nibbles, 64 bytes of upper 2 bits, 16 signed scales, d: f16; values less 32."""
    scales = half(blocks, 208) * blocks[:, 192:208].view(np.int8)
    values = fields(blocks[:, :128], 64, 4) | fields(blocks[:, 128:192], 32, 2) << 4
    _scale_groups(scales, values.view(np.int8) - np.int8(32), out)


def decode_q8_k(blocks: Bytes, out: Float32) -> None:
    """d: f32, 256 signed bytes, 16 sums of 16 values (of use to dot products only)."""
    np.multiply(blocks[:, :4].view("<f4"), blocks[:, 4:260].view(np.int8), out=out)
