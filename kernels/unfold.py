"""Rows with their neighbours beside them, the input of a convolution's product. Variant: ``rows``.

Row r of the result is rows ``stride * r - size // 2`` and the ``size - 1`` after it, zeros where there are none.
"""

from __future__ import annotations

from edgellm.kernels.memory import float_at, get, int64_at, load_floats, set_float, store_floats
from edgellm.kernels.simd import helper, share, splat_float
from edgellm.kernels.sound_records import UNFOLD as F

VARIANTS = ("rows",)


@helper
def _copy(source, target, width):
    column = 0
    while column + 16 <= width:
        store_floats(target + 4 * column, load_floats(source + 4 * column))
        column += 16
    while column < width:
        set_float(target + 4 * column, float_at(source + 4 * column))
        column += 1


@helper
def _clear(target, width):
    column = 0
    while column + 16 <= width:
        store_floats(target + 4 * column, splat_float(0.0))
        column += 16
    while column < width:
        set_float(target + 4 * column, 0.0)
        column += 1


def kernel(variant):
    """The copying kernel; rows are shared among the threads."""

    def unfold(record, thread, threads):
        width, size, there = get(record, F.width), get(record, F.size), int64_at(get(record, F.input_rows))
        first, end = share(int64_at(get(record, F.rows)), thread, threads)
        for row in range(first, end):
            start = get(record, F.stride) * row - size // 2
            output = get(record, F.output) + row * get(record, F.output_stride)
            for tap in range(size):
                place = output + 4 * tap * width
                if 0 <= start + tap < there:
                    _copy(get(record, F.input) + (start + tap) * get(record, F.input_stride), place, width)
                else:
                    _clear(place, width)

    return unfold
