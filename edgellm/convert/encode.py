"""From stored numbers to those of a GGUF file, bit for bit as ggml's reference quantizers round them.

Sources: ``quantize_row_*_ref`` of ggml (``ggml-quants.c``) for Q8_0, TQ1_0 and TQ2_0; bfloat16 rounds to nearest even.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import EdgeLLMError
from edgellm.gguf import TensorType

Array = NDArray[Any]
Bytes = NDArray[np.uint8]
Float32 = NDArray[np.float32]

CHUNK_VALUES = 1 << 16
"""Values encoded at once: intermediate arrays stay in the second-level cache."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""Kinds of stored numbers that are values by themselves."""


_ALMOST_HALF = np.nextafter(np.float32(0.5), np.float32(0))
"""Added before cutting the fraction off: halves are rounded away from zero, and what is just below one is not."""


class EncodeError(EdgeLLMError):
    """Values that the wanted type cannot hold."""


def to_float32(values: Array, kind: str) -> Float32:
    """Stored numbers of a kind in ``FLOATS`` as float32; a view where they are that already."""
    if kind == "BF16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if kind == "F16":
        return _from_halves(values)
    return values.astype(np.float32, copy=False)


def _from_halves(values: Array) -> Float32:
    """What ``astype`` does, four times as fast: the bits are moved into place and the exponent is put right."""
    bits = np.ascontiguousarray(values).view(np.uint16)
    magnitude = bits & np.uint16(0x7FFF)
    if magnitude.size == 0 or magnitude.max() >= 0x7C00:  # not a number, or infinite
        return values.astype(np.float32)
    wide = magnitude.astype(np.uint32)
    wide <<= np.uint32(13)
    numbers = wide.view(np.float32)
    numbers *= np.float32(2.0**112)
    sign = (bits & np.uint16(0x8000)).astype(np.uint32)
    sign <<= np.uint32(16)
    wide |= sign
    return numbers


def _to_halves(values: Float32) -> NDArray[np.uint16]:
    """The bits of float16, rounded to nearest even: what ``astype`` does, several times as fast."""
    bits = values.view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    if magnitude.size == 0 or magnitude.max() >= 0x477FF000:  # too large, or not a number
        return values.astype("<f2").view(np.uint16)
    halves = magnitude >> np.uint32(13)
    halves &= np.uint32(1)
    halves += magnitude
    halves += np.uint32(0xC8000FFF)  # the exponent's bias from 127 to 15, and half a unit less a bit
    halves >>= np.uint32(13)
    small = magnitude < np.uint32(0x38800000)  # below the smallest normal number
    if small.any():
        # Adding one half moves the last bit that counts to the end of the mantissa.
        shifted = (magnitude.view(np.float32) + np.float32(0.5)).view(np.uint32) - np.uint32(0x3F000000)
        np.copyto(halves, shifted, where=small)
    bits = bits >> np.uint32(16)
    bits &= np.uint32(0x8000)
    halves |= bits
    return halves.astype("<u2")


def encode(values: Array, kind: str, target: TensorType) -> Bytes:
    """Rows as they lie in the file.

    Args:
        values: any shape, the last dimension a whole number of blocks of ``target``; the NumPy type of ``kind``.
        kind: of the stored numbers; with U8 the values are bytes of ``target`` already.
        target: F32, F16, BF16, Q8_0, TQ1_0, TQ2_0, or any type for bytes.

    Returns:
        uint8, one dimension.

    Raises:
        EncodeError: a value is too large for F16, or weights for TQ1_0 or TQ2_0 are not ternary.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    if kind in ("U8", target.name):
        return flat.view(np.uint8)
    encoder = _ENCODERS[target]
    blocks = flat.size // target.block_size
    out = np.empty((blocks, target.block_bytes), np.uint8)
    step = CHUNK_VALUES // target.block_size
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, blocks, step):
            piece = flat[start * target.block_size : (start + step) * target.block_size]
            encoder(to_float32(piece, kind), out[start : start + step])
    return out.reshape(-1)


def _encode_f32(values: Float32, out: Bytes) -> None:
    out[...] = values.astype("<f4", copy=False).view(np.uint8).reshape(out.shape)


def _encode_f16(values: Float32, out: Bytes) -> None:
    halves = _to_halves(values)
    infinite = (halves & np.uint16(0x7FFF)) == 0x7C00
    if infinite.any() and np.isfinite(values[infinite]).any():
        raise EncodeError(
            f"has values as large as {np.abs(values[infinite]).min():.6g}, f16 holds 65504 at most",
            "convert with --type bf16",
        )
    out[...] = halves.view(np.uint8).reshape(out.shape)


def _encode_bf16(values: Float32, out: Bytes) -> None:
    bits = values.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)))) >> np.uint32(16)
    nan = np.isnan(values)
    if nan.any():  # rounding could carry one over into infinity
        rounded = np.where(nan, bits >> np.uint32(16) | np.uint32(0x40), rounded)
    out[...] = rounded.astype("<u2").view(np.uint8).reshape(out.shape)


def _largest(values: Float32, length: int) -> Float32:
    """The largest magnitude of each block, (blocks, 1)."""
    starts = np.arange(0, values.size, length)
    return np.maximum.reduceat(np.abs(values), starts)[:, None] if values.size else np.empty((0, 1), np.float32)


def _encode_q8_0(values: Float32, out: Bytes) -> None:
    """d: f16, 32 signed bytes. The scale that divides is the unrounded one, halves are rounded away from zero."""
    blocks = values.reshape(-1, 32)
    scale = _largest(values, 32) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale > 0, np.float32(1) / scale, np.float32(0)).astype(np.float32)
    codes = blocks * inverse
    half = codes.view(np.uint32) & np.uint32(0x80000000)  # with the sign of the value
    half |= _ALMOST_HALF.view(np.uint32)
    codes += half.view(np.float32)
    out[:, :2] = scale.astype("<f2").view(np.uint8)
    out[:, 2:] = np.trunc(codes, out=codes).astype(np.int8).view(np.uint8)


def _ternary_digits(values: Float32) -> tuple[Bytes, Bytes]:
    """Digits 0 to 2, (blocks, 256), and the bytes of each block's scale, (blocks, 2)."""
    blocks = values.reshape(-1, 256)
    scale = _largest(values, 256)
    with np.errstate(divide="ignore"):
        parts = blocks * np.where(scale > 0, np.float32(1) / scale, np.float32(0)).astype(np.float32)
    digits = np.rint(parts)
    if not (np.abs(parts - digits) < 1e-2).all():
        raise EncodeError("is not ternary: its blocks hold more than -d, 0 and d", "choose another --type")
    return (digits + 1).astype(np.uint8), scale.astype("<f2").view(np.uint8)


def _encode_tq1_0(values: Float32, out: Bytes) -> None:
    """48 bytes of five ternary digits each, 4 bytes of four, d: f16; a byte is the base-3 fraction, rounded up."""
    digits, scale = _ternary_digits(values)
    column = 0
    for start, count, width in ((0, 5, 32), (160, 5, 16), (240, 4, 4)):
        parts = digits[:, start : start + count * width].reshape(-1, count, width).astype(np.uint16)
        powers = np.array([81, 27, 9, 3, 1], np.uint16)[:count, None]
        numbers = (parts * powers).sum(axis=1, dtype=np.uint16)
        out[:, column : column + width] = (numbers * np.uint16(256) + np.uint16(242)) // np.uint16(243)
        column += width
    out[:, 52:] = scale


def _encode_tq2_0(values: Float32, out: Bytes) -> None:
    """Two times 32 bytes, each with four 2-bit values that lie 32 apart; d: f16."""
    digits, scale = _ternary_digits(values)
    parts = digits.reshape(-1, 2, 4, 32)
    shifted = parts << np.array([0, 2, 4, 6], np.uint8)[:, None]
    out[:, :64] = np.bitwise_or.reduce(shifted, axis=2).reshape(-1, 64)
    out[:, 64:] = scale


_ENCODERS: dict[TensorType, Callable[[Float32, Bytes], None]] = {
    TensorType.F32: _encode_f32,
    TensorType.F16: _encode_f16,
    TensorType.BF16: _encode_bf16,
    TensorType.Q8_0: _encode_q8_0,
    TensorType.TQ1_0: _encode_tq1_0,
    TensorType.TQ2_0: _encode_tq2_0,
}
