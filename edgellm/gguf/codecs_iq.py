"""The i-quants: groups of 4 or 8 values are entries of a fixed table (a lattice), with a sign for each value.

IQ4_NL and IQ4_XS use one table of 16 uneven steps for single values instead.

Source: the structures and ``dequantize_row_*`` of ggml (``ggml-common.h``, ``ggml-quants.c``). The lattices are
constants of the format; they are taken from the gguf package when a type that needs one is first decoded.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from edgellm.gguf.bits import fields, half
from edgellm.gguf.codecs import Bytes, Float32

_STEPS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113],
    np.float32,
)
_DELTA = np.float32(0.125)


@cache
def lattice(name: str) -> Float32:
    """The table of a type: float32 (entries, 4 or 8), for IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS or IQ3_S."""
    from gguf import quants

    holder = getattr(quants, name)
    holder.init_grid()
    table: Float32 = np.ascontiguousarray(holder.grid, np.float32).reshape(holder.grid_shape)
    return table


@cache
def _signs() -> Float32:
    """Eight signs for each byte, lowest bit first, -1 where the bit is set: float32 (256, 8)."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.float32(1) - 2 * bits.astype(np.float32)


@cache
def _even_signs() -> Float32:
    """Eight signs for each 7-bit code, the eighth making the number of minus signs even: float32 (128, 8)."""
    codes = np.arange(128, dtype=np.uint8)
    parity = np.bitwise_xor.reduce(np.unpackbits(codes[:, None], axis=1), axis=1)
    table: Float32 = _signs()[codes | parity << 7]
    return table


def _combine(scales: Float32, groups: Float32, out: Float32) -> None:
    """out = scales * groups, where each of the scales (n, g) holds for 256 / g values in ``groups``."""
    shape = (*scales.shape, -1)
    np.multiply(scales[:, :, None], groups.reshape(shape), out=out.reshape(shape))


def _sign_codes(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The four 7-bit sign codes in the lower 28 bits of each word: (n, 8) to (n, 8, 4)."""
    return words[:, :, None] >> np.array([0, 7, 14, 21], np.uint32) & np.uint32(127)


def decode_iq2_xxs(blocks: Bytes, out: Float32) -> None:
    """d: f16, 8 times (4 lattice indices: u8; a word of 4 sign codes of 7 bits and a scale of 4 bits)."""
    pairs = blocks[:, 2:].reshape(-1, 8, 8)
    words = pairs[:, :, 4:].view("<u4")[:, :, 0]
    scales = half(blocks, 0) * (np.float32(0.5) + (words >> 28).astype(np.float32)) * np.float32(0.25)
    groups = lattice("IQ2_XXS")[pairs[:, :, :4]]
    groups *= _even_signs()[_sign_codes(words)]
    _combine(scales, groups, out)


def decode_iq2_xs(blocks: Bytes, out: Float32) -> None:
    """d: f16, 32 words of a lattice index (9 bits) and a sign code (7 bits), 16 scales of 4 bits."""
    words = blocks[:, 2:66].view("<u2")
    scales = half(blocks, 0) * (np.float32(0.5) + fields(blocks[:, 66:], 1, 4)) * np.float32(0.25)
    groups = lattice("IQ2_XS")[words & 511]
    groups *= _even_signs()[words >> 9]
    _combine(scales, groups, out)


def decode_iq2_s(blocks: Bytes, out: Float32) -> None:
    """d: f16, 32 lattice indices (low 8 bits), 32 bytes of signs, their upper 2 bits, 16 scales of 4 bits."""
    scales = half(blocks, 0) * (np.float32(0.5) + fields(blocks[:, 74:], 1, 4)) * np.float32(0.25)
    indices = blocks[:, 2:34] | fields(blocks[:, 66:74], 1, 2).astype(np.uint16) << 8
    groups = lattice("IQ2_S")[indices]
    groups *= _signs()[blocks[:, 34:66]]
    _combine(scales, groups, out)


def decode_iq3_xxs(blocks: Bytes, out: Float32) -> None:
    """d: f16, 64 lattice indices: u8, 8 words of 4 sign codes of 7 bits and a scale of 4 bits."""
    words = blocks[:, 66:].view("<u4")
    scales = half(blocks, 0) * (np.float32(0.5) + (words >> 28).astype(np.float32)) * np.float32(0.5)
    groups = lattice("IQ3_XXS")[blocks[:, 2:66]].reshape(-1, 8, 4, 8)
    groups *= _even_signs()[_sign_codes(words)]
    _combine(scales, groups, out)


def decode_iq3_s(blocks: Bytes, out: Float32) -> None:
    """d: f16, 64 lattice indices (low 8 bits), their ninth bits, 32 bytes of signs, 8 scales of 4 bits."""
    scales = half(blocks, 0) * (1 + 2 * fields(blocks[:, 106:], 1, 4))
    indices = blocks[:, 2:66] | fields(blocks[:, 66:74], 1, 1).astype(np.uint16) << 8
    groups = lattice("IQ3_S")[indices].reshape(-1, 32, 8)
    groups *= _signs()[blocks[:, 74:106]]
    _combine(scales, groups, out)


def decode_iq1_s(blocks: Bytes, out: Float32) -> None:
    """d: f16, 32 lattice indices (low 8 bits), 8 words: 4 times their upper 3 bits, a scale of 3 bits, a shift's sign.

    Each group of 32 is moved up or down by an eighth of a step, by the highest bit of its word.
    """
    words = blocks[:, 34:].view("<u2")
    scales = half(blocks, 0) * (2 * (words >> 12 & 7) + 1)
    high = (words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(-1, 32)
    groups = lattice("IQ1_S")[blocks[:, 2:34] | high << 8].reshape(-1, 8, 32)
    groups += np.where(words & 0x8000, -_DELTA, _DELTA)[:, :, None]
    _combine(scales, groups, out)


def decode_iq1_m(blocks: Bytes, out: Float32) -> None:
    """32 lattice indices (low 8 bits), 32 nibbles of their upper 3 bits and a shift's sign, 16 scales of 3 bits, d.

    The half-precision d is spread over the upper 4 bits of the four 16-bit words that hold the scales.
    """
    words = blocks[:, 48:].view("<u2")
    upper = words >> 12 << np.array([0, 4, 8, 12], np.uint16)
    d = np.bitwise_or.reduce(upper, axis=1, keepdims=True).view(np.float16).astype(np.float32)
    small = (words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(-1, 16)
    nibbles = fields(blocks[:, 32:48], 1, 4)
    groups = lattice("IQ1_M")[blocks[:, :32] | (nibbles & 7).astype(np.uint16) << 8]
    groups += np.where(nibbles & 8, -_DELTA, _DELTA)[:, :, None]
    _combine(d * (2 * small + 1), groups, out)


def decode_iq4_nl(blocks: Bytes, out: Float32) -> None:
    """d: f16, 32 nibbles that index the table of steps."""
    np.multiply(half(blocks, 0), _STEPS[fields(blocks[:, 2:], 16, 4)], out=out)


def decode_iq4_xs(blocks: Bytes, out: Float32) -> None:
    """d: f16, upper 2 bits of 8 scales: u16, their lower 4 bits: 4 bytes, 256 nibbles; scales less 32."""
    high = blocks[:, 2:4].view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    small = (fields(blocks[:, 4:8], 1, 4) | high.astype(np.uint8) << 4).view(np.int8) - np.int8(32)
    _combine(half(blocks, 0) * small, _STEPS[fields(blocks[:, 8:], 16, 4)], out)
