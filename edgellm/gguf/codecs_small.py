"""Types of one bit, three levels, and 4-bit floating point: Q1_0, TQ1_0, TQ2_0, I2_S, MXFP4, NVFP4.

Sources: the structures and ``dequantize_row_*`` of ggml (``ggml-common.h``, ``ggml-quants.c``); OCP Microscaling
Formats (MX) specification 1.0 for MXFP4; ``quantize_i2_s`` of bitnet.cpp (``ggml-bitnet-mad.cpp``) for I2_S; the E4M3
scales of NVFP4 follow ggml's ``ggml_ue4m3_to_fp32``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm.gguf.bits import fields, half
from edgellm.gguf.codecs import Bytes, Float32


def _e8m0_halves() -> Float32:
    """Half of 2 ** (code - 127) for every code, exact down to the denormal ones."""
    return np.ldexp(np.float32(1), np.arange(256) - 128).astype(np.float32)


def _ue4m3_halves() -> Float32:
    """Half of the number that each byte stands for: 4 bits of exponent (bias 7) and 3 of mantissa, no sign.

    Code 0x7F, which is not a number, counts as zero, as in ggml.
    """
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    numbers = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)) / 2
    numbers[0x7F] = 0
    return numbers.astype(np.float32)


# Twice the numbers of E2M1 (one sign bit, two of exponent, one of mantissa),
# which makes them whole: the scales above are halved to match. Minus zero
# decodes to plain zero.
_E2M1_DOUBLES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
_E8M0_HALVES = _e8m0_halves()
_UE4M3_HALVES = _ue4m3_halves()


def decode_q1_0(blocks: Bytes, out: Float32) -> None:
    """d: f16, 128 bits, lowest first: d where the bit is set, -d where it is not."""
    bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").view(np.int8)
    np.multiply(half(blocks, 0), bits + bits - np.int8(1), out=out)


def decode_tq1_0(blocks: Bytes, out: Float32) -> None:
    """48 bytes of five ternary digits each, 4 bytes of four, d: f16; d * (digit - 1).

    A byte is the fraction 0.abcde in base 3, scaled to 256 and rounded up: multiplying by a power of three modulo 256
    drops the digits before the wanted one, and the upper byte of three times the rest is that digit.
    """
    pieces = [_ternary(blocks[:, :32], 5), _ternary(blocks[:, 32:48], 5), _ternary(blocks[:, 48:52], 4)]
    np.multiply(half(blocks, 52), np.concatenate(pieces, axis=1), out=out)


def _ternary(packed: Bytes, digits: int) -> NDArray[np.int8]:
    powers = np.array([1, 3, 9, 27, 81], np.uint8)[:digits]
    rest = packed[:, None, :] * powers[:, None]
    values = (rest.astype(np.uint16) * np.uint16(3) >> 8).astype(np.int8) - np.int8(1)
    return values.reshape(packed.shape[0], -1)


def decode_tq2_0(blocks: Bytes, out: Float32) -> None:
    """64 bytes of 2-bit values, d: f16; d * (q - 1)."""
    np.multiply(half(blocks, 64), fields(blocks[:, :64], 32, 2).view(np.int8) - np.int8(1), out=out)


def decode_i2_s(blocks: Bytes, out: Float32) -> None:
    """32 bytes of 2-bit values, the first 32 in the highest bits; q - 1, to be scaled by the tensor's own number."""
    shifts = np.array([6, 4, 2, 0], np.uint8)[:, None]
    codes = blocks[:, None, :] >> shifts & np.uint8(3)
    np.subtract(codes, np.float32(1), out=out.reshape(-1, 4, 32))


def decode_mxfp4(blocks: Bytes, out: Float32) -> None:
    """Exponent: E8M0, 32 nibbles: E2M1."""
    np.multiply(_E8M0_HALVES[blocks[:, :1]], _E2M1_DOUBLES[fields(blocks[:, 1:], 16, 4)], out=out)


def decode_nvfp4(blocks: Bytes, out: Float32) -> None:
    """Four scales: unsigned E4M3, each for 16 of the 64 nibbles: E2M1."""
    values = _E2M1_DOUBLES[fields(blocks[:, 4:], 8, 4)].reshape(-1, 4, 16)
    np.multiply(_UE4M3_HALVES[blocks[:, :4]][:, :, None], values, out=out.reshape(-1, 4, 16))
