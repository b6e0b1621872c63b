"""The absolute value of scaled and shifted rows, of which only the largest and smallest of each few values are known.

``output = max(scale * a + shift, scale * b - shift)`` with a factor for all and a shift for each row: where ``a`` holds
the largest of several values and ``b`` the largest of their negatives, that is the largest absolute value of what they
become.
"""

from __future__ import annotations

from edgellm.kernels.memory import float_at, get, int64_at, load_floats, set_float, store_floats
from edgellm.kernels.simd import maximum, multiply_add, share, splat_float
from edgellm.kernels.sound_records import FOLD as F

VARIANTS = ("rows",)


def kernel(variant):
    """The only variant, ``rows``."""

    def fold(record, thread, threads):
        rows, width = int64_at(get(record, F.rows)), get(record, F.width)
        scale = float_at(get(record, F.scale))
        first, end = share(rows, thread, threads)
        for row in range(first, end):
            a = get(record, F.a) + row * get(record, F.stride)
            b = get(record, F.b) + row * get(record, F.stride)
            output = get(record, F.output) + row * get(record, F.output_stride)
            shift = float_at(get(record, F.shifts) + 4 * row)
            scales, up, down = splat_float(scale), splat_float(shift), splat_float(-shift)
            column = 0
            while column + 16 <= width:
                above = multiply_add(load_floats(a + 4 * column), scales, up)
                below = multiply_add(load_floats(b + 4 * column), scales, down)
                store_floats(output + 4 * column, maximum(above, below))
                column += 16
            while column < width:
                above = float_at(a + 4 * column) * scale + shift
                below = float_at(b + 4 * column) * scale - shift
                set_float(output + 4 * column, above if above > below else below)
                column += 1

    return fold
