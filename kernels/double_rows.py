"""Element-wise functions of rows of float64.

Variants: ``gelu``, ``add`` (a + b), ``widen`` (a, which is float32, as float64) and ``narrow`` (the reverse). The
record is that of `edgellm.kernels.activation`; nothing is quantized. Widths are padded to 16.
"""

from __future__ import annotations

from edgellm.kernels.activation import below_by
from edgellm.kernels.double_vectors import (
    SIZE,
    absolute_doubles,
    exponential_doubles,
    load_doubles,
    maximum_doubles,
    minimum_doubles,
    multiply_add_doubles,
    store_doubles,
)
from edgellm.kernels.memory import get, int64_at, load_floats, store_floats
from edgellm.kernels.records import ACTIVATION as F
from edgellm.kernels.simd import helper, round_to_floats, share, splat_double, to_doubles

_below_by = below_by(splat_double, multiply_add_doubles, minimum_doubles, exponential_doubles)


@helper
def _gelu(a, b, output):
    """x Phi(x), as max(x, 0) - |x| Phi(-|x|), which nothing cancels out in  (Hendrycks and Gimpel 2016)."""
    value = load_doubles(a)
    store_doubles(output, maximum_doubles(value, splat_double(0.0)) - _below_by(absolute_doubles(value)))


@helper
def _add(a, b, output):
    store_doubles(output, load_doubles(a) + load_doubles(b))


@helper
def _widen(a, b, output):
    store_doubles(output, to_doubles(load_floats(a)))


@helper
def _narrow(a, b, output):
    store_floats(output, round_to_floats(load_doubles(a)))


_KINDS = {  # and the bytes of a number that is read and of one that is written
    "gelu": (_gelu, SIZE, SIZE),
    "add": (_add, SIZE, SIZE),
    "widen": (_widen, 4, SIZE),
    "narrow": (_narrow, SIZE, 4),
}
VARIANTS = tuple(_KINDS)


def kernel(variant):
    """The kernel of one function; vectors of 16 columns are shared among the threads."""
    function, read_bytes, written_bytes = _KINDS[variant]

    def rows_of_doubles(record, thread, threads):
        vectors = -(-get(record, F.width) // 16)
        first, end = share(int64_at(get(record, F.rows)) * vectors, thread, threads)
        for item in range(first, end):
            row, start = item // vectors, 16 * (item % vectors)
            a = get(record, F.a) + row * get(record, F.a_stride) + read_bytes * start
            b = get(record, F.b) + row * get(record, F.b_stride) + read_bytes * start
            output = get(record, F.output) + row * get(record, F.output_stride) + written_bytes * start
            function(a, b, output)

    return rows_of_doubles
