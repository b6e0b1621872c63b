"""Rotary position embedding of heads, in place.

Variants: ``interleaved`` turns the pairs (2i, 2i + 1), ``halves`` the pairs (i, i + count). The cosines and sines of
the step's positions are computed once per step and frequency table, not here.
"""

from __future__ import annotations

from edgellm.kernels.memory import float_at, get, int64_at, set_float
from edgellm.kernels.records import ROPE as F
from edgellm.kernels.simd import share

VARIANTS = ("interleaved", "halves")


def kernel(variant):
    """The rotation kernel for one arrangement of the pairs."""
    interleaved = variant == "interleaved"

    def rope(record, thread, threads):
        rows, heads, width, pairs = (
            int64_at(get(record, F.rows)), get(record, F.heads), get(record, F.width), get(record, F.pairs)
        )  # fmt: skip
        first, end = share(rows * heads, thread, threads)
        for item in range(first, end):
            row, head = item // heads, item % heads
            values = get(record, F.values) + row * get(record, F.stride) + 4 * head * width
            cosines, sines = (
                get(record, F.cosines) + 4 * row * pairs,
                get(record, F.sines) + 4 * row * pairs,
            )
            for pair in range(pairs):
                a = values + 8 * pair if interleaved else values + 4 * pair
                b = a + 4 if interleaved else a + 4 * pairs
                x, y = float_at(a), float_at(b)
                cosine, sine = float_at(cosines + 4 * pair), float_at(sines + 4 * pair)
                set_float(a, x * cosine - y * sine)
                set_float(b, y * cosine + x * sine)

    return rope
