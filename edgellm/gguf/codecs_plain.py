"""Types without blocks: floating-point numbers and integers, one value after the other."""

from __future__ import annotations

import numpy as np

from edgellm.gguf.codecs import Bytes, Float32


def decode_f32(blocks: Bytes, out: Float32) -> None:
    out.view(np.uint8)[...] = blocks


def decode_f16(blocks: Bytes, out: Float32) -> None:
    out[...] = blocks.view("<f2")


def decode_bf16(blocks: Bytes, out: Float32) -> None:
    """A bfloat16 is the upper half of a float32."""
    np.left_shift(blocks.view("<u2"), 16, out=out.view(np.uint32), dtype=np.uint32)


def decode_f64(blocks: Bytes, out: Float32) -> None:
    out[...] = blocks.view("<f8")


def decode_i8(blocks: Bytes, out: Float32) -> None:
    out[...] = blocks.view(np.int8)


def decode_i16(blocks: Bytes, out: Float32) -> None:
    out[...] = blocks.view("<i2")


def decode_i32(blocks: Bytes, out: Float32) -> None:
    out[...] = blocks.view("<i4")


def decode_i64(blocks: Bytes, out: Float32) -> None:
    out[...] = blocks.view("<i8")
