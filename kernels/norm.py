"""Normalization of rows or of heads (RMSNorm, LayerNorm), optionally quantized at once for the next product.

Variants: ``rms``, ``layer``. A part is a whole row or one head of it. A row's parts are shared among the threads;
when a step has fewer rows than threads the columns of each part are shared instead, and every thread sums the whole
part by itself, which is cheaper than meeting at a barrier.
"""

from __future__ import annotations

import math

import numpy as np

from edgellm.kernels.memory import float_at, get, int64_at, load_floats, set_float, store_floats
from edgellm.kernels.quantize import quantize_block
from edgellm.kernels.records import NORM as F
from edgellm.kernels.simd import helper, multiply_add, share, splat_float, sum_lanes


@helper
def _sum_of(source, width, mean, squared):
    """Sum of (x - mean), or of its square, over a part. Four sums keep rounding errors and waiting short."""
    a = b = c = d = splat_float(0.0)
    shift = splat_float(mean)
    column = 0
    while column + 64 <= width:
        place = source + 4 * column
        u, v = load_floats(place) - shift, load_floats(place + 64) - shift
        w, x = load_floats(place + 128) - shift, load_floats(place + 192) - shift
        a, b = a + (u * u if squared else u), b + (v * v if squared else v)
        c, d = c + (w * w if squared else w), d + (x * x if squared else x)
        column += 64
    while column + 16 <= width:
        value = load_floats(source + 4 * column) - shift
        a = a + (value * value if squared else value)
        column += 16
    rest = 0.0
    while column < width:
        single = float_at(source + 4 * column) - mean
        rest += single * single if squared else single
        column += 1
    return sum_lanes((a + b) + (c + d)) + rest


@helper
def _write(record, source, output, mean, factor, shift, first, end):
    """Columns first..end of a part: ((x - mean) * factor + shift) * weight + bias (+ what is there)."""
    weight, bias, accumulate = (
        get(record, F.weight),
        get(record, F.bias),
        get(record, F.accumulate),
    )
    column = first
    while column + 16 <= end:
        value = load_floats(source + 4 * column) - splat_float(mean)
        value = multiply_add(value, splat_float(factor), splat_float(shift))
        if weight:
            value = value * load_floats(weight + 4 * column)
        if bias:
            value = value + load_floats(bias + 4 * column)
        if accumulate:
            value = value + load_floats(output + 4 * column)
        store_floats(output + 4 * column, value)
        column += 16
    while column < end:
        single = (float_at(source + 4 * column) - mean) * factor + shift
        if weight:
            single *= float_at(weight + 4 * column)
        if bias:
            single += float_at(bias + 4 * column)
        if accumulate:
            single += float_at(output + 4 * column)
        set_float(output + 4 * column, single)
        column += 1


VARIANTS = ("rms", "layer")


def kernel(variant):
    """The normalization kernel of one kind."""
    centred = variant == "layer"

    def norm(record, thread, threads):
        rows, parts, width = (
            int64_at(get(record, F.rows)),
            get(record, F.parts),
            get(record, F.width),
        )
        codes = get(record, F.codes)
        if get(record, F.by_column) and rows < threads:
            first_item, end_item = 0, rows * parts
            first, end = share(-(-width // 32), thread, threads)
            first, end = 32 * first, min(32 * end, width)
        else:
            first_item, end_item = share(rows * parts, thread, threads)
            first, end = 0, width
        for item in range(first_item, end_item):
            row, part = item // parts, item % parts
            source = get(record, F.input) + row * get(record, F.input_stride) + 4 * part * width
            output = get(record, F.output) + row * get(record, F.output_stride) + 4 * part * width
            mean = np.float32(_sum_of(source, width, 0.0, False) / width) if centred else np.float32(0.0)
            variance = _sum_of(source, width, mean, True) / width
            factor = 1.0 / math.sqrt(variance + float_at(get(record, F.epsilon)))
            # The mean of what the rounded mean leaves, so that a row does not shift as a whole.
            shift = -_sum_of(source, width, mean, False) / width * factor if centred else 0.0
            _write(record, source, output, mean, factor, shift, first, end)
            if codes:
                row_codes = codes + row * get(record, F.codes_stride)
                row_scales = get(record, F.scales) + row * get(record, F.scales_stride)
                for block in range(first // 32, end // 32):
                    quantize_block(
                        output + 128 * block,
                        row_codes + 32 * block,
                        row_scales + 16 * block,
                        get(record, F.fine_codes),
                        get(record, F.fine_scales),
                    )

    return norm
