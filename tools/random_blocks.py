"""Random weights of every common tensor type: valid blocks whose values are spread as asked, made piece by piece.

Quantizing random numbers would take minutes for a large model, so blocks are drawn directly: random codes, and scales
that give the wanted standard deviation, measured on a sample with the reference decoder. Layouts of the blocks are
those of ggml (``ggml-common.h``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.gguf import TensorType, decode

Bytes = NDArray[np.uint8]

PIECE_BYTES = 4 << 20
"""About how much of a tensor is in memory at a time."""
_SAMPLE_BLOCKS = 512


@dataclass(frozen=True)
class BlockScales:
    """Where a block has its half-precision numbers: (byte offset, factor of the block's scale).

    The factors of minima are the mean code, so that the values of a block are spread around zero.
    """

    halves: tuple[tuple[int, float], ...]


BLOCKS = {
    "Q4_0": BlockScales(((0, 1.0),)),
    "Q4_1": BlockScales(((0, 1.0), (2, -7.5))),
    "Q5_0": BlockScales(((0, 1.0),)),
    "Q5_1": BlockScales(((0, 1.0), (2, -15.5))),
    "Q8_0": BlockScales(((0, 1.0),)),
    "Q2_K": BlockScales(((80, 1.0), (82, 1.5))),
    "Q3_K": BlockScales(((108, 1.0),)),
    "Q4_K": BlockScales(((0, 1.0), (2, 7.5))),
    "Q5_K": BlockScales(((0, 1.0), (2, 15.5))),
    "Q6_K": BlockScales(((208, 1.0),)),
    "IQ4_NL": BlockScales(((0, 1.0),)),
    "IQ4_XS": BlockScales(((0, 1.0),)),
    "TQ1_0": BlockScales(((52, 1.0),)),
    "TQ2_0": BlockScales(((64, 1.0),)),
}
FLOATS = ("F32", "F16", "BF16")
TYPES = (*FLOATS, *BLOCKS)


def random_rows(
    kind: str, rows: int, columns: int, deviation: float, generator: np.random.Generator
) -> Iterator[Bytes]:
    """The bytes of a random matrix, in pieces of whole rows of about ``PIECE_BYTES``.

    Args:
        kind: one of ``TYPES``.
        rows: of the matrix.
        columns: of the matrix, a multiple of the type's block size.
        deviation: standard deviation of the values; their mean is about zero.
        generator: where randomness comes from.
    """
    tensor_type = TensorType[kind]
    row_bytes = columns // tensor_type.block_size * tensor_type.block_bytes
    scale = None if kind in FLOATS else deviation / _unit_deviation(kind)
    step = max(1, PIECE_BYTES // row_bytes)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        if scale is None:
            yield _floats(kind, count * columns, deviation, generator).reshape(count, row_bytes)
        else:
            yield _blocks(kind, count * row_bytes // tensor_type.block_bytes, scale, generator).reshape(count, -1)


def _floats(kind: str, count: int, deviation: float, generator: np.random.Generator) -> Bytes:
    values = generator.standard_normal(count, np.float32) * np.float32(deviation)
    if kind == "F16":
        return values.astype(np.float16).view(np.uint8)
    if kind == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return values.view(np.uint8)


def _blocks(kind: str, count: int, scale: float, generator: np.random.Generator) -> Bytes:
    """Random blocks, (count, bytes of a block)."""
    size = TensorType[kind].block_bytes
    words = generator.integers(0, 1 << 64, -(-count * size // 8), np.uint64)
    blocks = words.view(np.uint8)[: count * size].reshape(count, size)
    if kind == "Q8_0":  # no quantizer writes -128, and some kernels cannot negate it
        codes = blocks[:, 2:].view(np.int8)
        np.maximum(codes, -127, out=codes)
    elif kind == "TQ2_0":
        blocks = _FOUR_TRITS[blocks]
    elif kind == "TQ1_0":
        blocks[:, :48] = _FIVE_TRITS[blocks[:, :48]]
        blocks[:, 48:] = _FIVE_TRITS_ONE_ZERO[blocks[:, 48:]]
    for offset, factor in BLOCKS[kind].halves:
        blocks[:, offset : offset + 2] = np.array([scale * factor], np.float16).view(np.uint8)
    return blocks


def _unit_deviation(kind: str) -> float:
    """Standard deviation of the values of random blocks whose scale is 1."""
    blocks = _blocks(kind, _SAMPLE_BLOCKS, 1.0, np.random.default_rng(0))
    return float(decode(blocks, TensorType[kind]).std())


def _four_trits() -> Bytes:
    """Any byte to one whose pairs of bits are 0, 1 or 2 (-1, 0, 1): half of the weights become 0."""
    pairs = (np.arange(256)[:, None] >> np.array([0, 2, 4, 6])) & 3
    pairs[pairs == 3] = 1
    return np.asarray(pairs @ np.array([1, 4, 16, 64]), np.uint8)


def _five_trits(last_zero: bool) -> Bytes:
    """Any byte to one that holds five base-3 digits as a fraction of 256; or four, the last one being 0."""
    numbers = np.arange(256) * 81 // 256 * 3 if last_zero else np.arange(256) * 243 // 256
    return np.asarray((numbers * 256 + 242) // 243, np.uint8)


_FOUR_TRITS = _four_trits()
_FIVE_TRITS = _five_trits(False)
_FIVE_TRITS_ONE_ZERO = _five_trits(True)
