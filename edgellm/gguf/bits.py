"""Taking stored blocks apart: what the codecs of several families share."""

from __future__ import annotations

import numpy as np

from edgellm.gguf.codecs import Bytes, Float32


def half(blocks: Bytes, start: int) -> Float32:
    """The half-precision number at byte ``start`` of every block, as float32 (n, 1)."""
    return blocks[:, start : start + 2].view("<f2").astype(np.float32)


def fields(packed: Bytes, width: int, bits: int) -> Bytes:
    """Unpack small integers that lie side by side in bytes.

    Blocks of the format do not unpack byte by byte: the lowest ``bits`` of ``width`` bytes in a row come first, then
    the next higher bits of the same bytes, and so on before the next ``width`` bytes.

    Args:
        packed: uint8 (n, k), k a multiple of ``width``.
        width: bytes that are unpacked together.
        bits: bits of one integer: 1, 2 or 4.

    Returns:
        uint8 (n, k * 8 / bits).
    """
    count, length = packed.shape
    planes = 8 // bits
    values = np.empty((count, length // width, planes, width), np.uint8)
    source = packed.reshape(count, -1, width)
    for plane in range(planes):
        np.right_shift(source, bits * plane, out=values[:, :, plane])
    values &= np.uint8((1 << bits) - 1)
    return values.reshape(count, -1)
