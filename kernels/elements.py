"""Parts of rows put together, mixed and rounded.

Variants: ``join`` copies some values of each head of one matrix, and behind them some of another;
``weighted_sum`` adds up the parts of a row, each times a weight of its own; ``round_rows`` rounds a row to whole steps
of its largest value / 127, and gives the numbers of steps as codes for a product.
"""

from __future__ import annotations

import numpy as np

from edgellm.kernels.memory import (
    broadcast_float,
    float_at,
    get,
    int64_at,
    load_floats,
    set_float,
    store_bytes,
    store_floats,
)
from edgellm.kernels.records import JOIN as J
from edgellm.kernels.records import ROUND_ROWS as R
from edgellm.kernels.records import WEIGHTED_SUM as W
from edgellm.kernels.simd import (
    absolute,
    helper,
    max_lanes,
    maximum,
    multiply_add,
    round_to_ints,
    share,
    splat_float,
    sum_int_lanes,
    sum_lanes,
    to_floats,
)

VARIANTS = ("join", "weighted_sum", "round_rows")
SMALLEST_PEAK = np.float32(1e-5)


@helper
def _copy(target, source, width):
    column = 0
    while column + 16 <= width:
        store_floats(target + 4 * column, load_floats(source + 4 * column))
        column += 16
    while column < width:
        set_float(target + 4 * column, float_at(source + 4 * column))
        column += 1


def _join(record, thread, threads):
    """Pairs of row and head are shared among the threads."""
    heads, width, more = get(record, J.heads), get(record, J.a_width), get(record, J.b_width)
    first, end = share(int64_at(get(record, J.rows)) * heads, thread, threads)
    for item in range(first, end):
        row, head = item // heads, item % heads
        output = get(record, J.output) + row * get(record, J.output_stride) + 4 * head * (width + more)
        _copy(output, get(record, J.a) + row * get(record, J.a_stride) + head * get(record, J.a_head), width)
        if more:
            source = get(record, J.b) + row * get(record, J.b_stride) + head * get(record, J.b_head)
            _copy(output + 4 * width, source, more)


def _weighted_sum(record, thread, threads):
    """Vectors of 16 columns of all rows are shared among the threads."""
    width, parts = get(record, W.width), get(record, W.parts)
    vectors = -(-width // 16)
    first, end = share(int64_at(get(record, W.rows)) * vectors, thread, threads)
    for item in range(first, end):
        row, start = item // vectors, 64 * (item % vectors)
        source = get(record, W.input) + row * get(record, W.input_stride) + start
        weights = get(record, W.routes) + row * get(record, W.routes_stride) + 4 * parts
        total = load_floats(source) * broadcast_float(weights)
        for part in range(1, parts):
            total = multiply_add(load_floats(source + 4 * part * width), broadcast_float(weights + 4 * part), total)
        output = get(record, W.output) + row * get(record, W.output_stride) + start
        if get(record, W.accumulate):
            total = total + load_floats(output)
        store_floats(output, total)


@helper
def _largest(source, width):
    """The largest magnitude of a row, NaN if a value is not finite."""
    peak, nothing = splat_float(0.0), splat_float(0.0)
    column = 0
    while column + 16 <= width:
        value = load_floats(source + 4 * column)
        peak = maximum(absolute(value), peak)
        nothing = nothing + (value - value)
        column += 16
    largest, rest = max_lanes(peak), sum_lanes(nothing)
    while column < width:
        single = float_at(source + 4 * column)
        largest = max(largest, abs(single))
        rest += single - single
        column += 1
    return largest + rest


@helper
def _write_codes(codes, scales, step, low, high):
    store_bytes(codes, low)
    store_bytes(codes + 16, high)
    low_sum, high_sum = step * sum_int_lanes(low), step * sum_int_lanes(high)
    set_float(scales, step)
    set_float(scales + 4, low_sum + high_sum)
    set_float(scales + 8, low_sum)
    set_float(scales + 12, high_sum)


def _round_rows(record, thread, threads):
    """Rows are shared among the threads or, if there are too few, the columns: each thread then finds the largest
    value of all by itself."""
    rows, width, codes = int64_at(get(record, R.rows)), get(record, R.width), get(record, R.codes)
    first_row, end_row = share(rows, thread, threads)
    first, end = 0, -(-width // 32)
    if rows < threads:
        first_row, end_row = 0, rows
        first, end = share(end, thread, threads)
    for row in range(first_row, end_row):
        source = get(record, R.input) + row * get(record, R.input_stride)
        output = get(record, R.output) + row * get(record, R.output_stride)
        peak = _largest(source, width)
        if peak < SMALLEST_PEAK:
            peak = SMALLEST_PEAK
        inverse = np.float32(127.0) * (np.float32(1.0) / peak)  # as the originals: the last bit decides ties
        steps = splat_float(inverse)
        for block in range(first, end):
            place = source + 128 * block
            low = round_to_ints(load_floats(place) * steps)
            store_floats(output + 128 * block, to_floats(low) / steps)
            if width - 32 * block > 16:
                high = round_to_ints(load_floats(place + 64) * steps)
                store_floats(output + 128 * block + 64, to_floats(high) / steps)
                if codes:
                    row_scales = get(record, R.scales) + row * get(record, R.scales_stride)
                    row_codes = codes + row * get(record, R.codes_stride)
                    _write_codes(row_codes + 32 * block, row_scales + 16 * block, 1.0 / inverse, low, high)


_KERNELS = {"join": _join, "weighted_sum": _weighted_sum, "round_rows": _round_rows}


def kernel(variant):
    """The kernel of one function."""
    return _KERNELS[variant]
