"""Normalization of rows or of heads (RMSNorm, LayerNorm), optionally quantized at once for the next product.

Variants: ``rms``, ``layer``, and ``layer_double``, whose input and output are float64 and which quantizes nothing. A
part is a whole row or one head of it. A row's parts are shared among the threads; when a step has fewer rows than
threads the columns of each part are shared instead, and every thread sums the whole part by itself, which is cheaper
than meeting at a barrier.

LayerNorm is computed in float64 and rounded once: what is wrong with a mean or a factor is wrong with a whole row, and
the encoders of Whisper amplify it. RMSNorm rounds each step to float32, as the models do that have it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from edgellm.kernels.double_vectors import SIZE, double_at, load_doubles, set_double, store_doubles
from edgellm.kernels.memory import float_at, get, int64_at, load_floats, set_float, store_floats
from edgellm.kernels.quantize import quantize_block
from edgellm.kernels.records import NORM as F
from edgellm.kernels.simd import (
    helper,
    round_to_floats,
    share,
    splat_double,
    splat_float,
    sum_double_lanes,
    sum_lanes,
    to_doubles,
)


class _Memory(NamedTuple):
    """How numbers are read, and results written, 16 or one."""

    size: int  # bytes of a number
    load: Any
    load_one: Any
    store: Any
    store_one: Any


@helper
def _doubles(place):
    return to_doubles(load_floats(place))


@helper
def _double(place):
    return np.float64(float_at(place))


@helper
def _store_rounded(place, value):
    store_floats(place, round_to_floats(value))


@helper
def _set_rounded(place, value):
    set_float(place, np.float32(value))


_AS_FLOATS = _Memory(4, load_floats, float_at, store_floats, set_float)
_WIDENED = _Memory(4, _doubles, _double, _store_rounded, _set_rounded)
_AS_DOUBLES = _Memory(SIZE, load_doubles, double_at, store_doubles, set_double)


def _writer(memory, constants, splat):
    """``f(record, source, output, mean, factor, first, end)``: columns first..end of a part become
    (x - mean) * factor * weight + bias (+ what is there), in the precision of what is loaded; weight and bias are in
    the memory ``constants``."""
    size, load, load_one, store, store_one = memory
    load_constants, load_constant = constants.load, constants.load_one

    @helper
    def write(record, source, output, mean, factor, first, end):
        weight, bias, accumulate = (
            get(record, F.weight),
            get(record, F.bias),
            get(record, F.accumulate),
        )
        column = first
        while column + 16 <= end:
            value = (load(source + size * column) - splat(mean)) * splat(factor)
            if weight:
                value = value * load_constants(weight + 4 * column)
            if bias:
                value = value + load_constants(bias + 4 * column)
            if accumulate:
                value = value + load(output + size * column)
            store(output + size * column, value)
            column += 16
        while column < end:
            single = (load_one(source + size * column) - mean) * factor
            if weight:
                single *= load_constant(weight + 4 * column)
            if bias:
                single += load_constant(bias + 4 * column)
            if accumulate:
                single += load_one(output + size * column)
            store_one(output + size * column, single)
            column += 1

    return write


_write_rms = _writer(_AS_FLOATS, _AS_FLOATS, splat_float)


@helper
def _sum_of_squares(source, width):
    """Sum of x^2 over a part. Four sums keep rounding errors and waiting short."""
    a = b = c = d = splat_float(0.0)
    column = 0
    while column + 64 <= width:
        place = source + 4 * column
        u, v, w, x = load_floats(place), load_floats(place + 64), load_floats(place + 128), load_floats(place + 192)
        a, b, c, d = a + u * u, b + v * v, c + w * w, d + x * x
        column += 64
    while column + 16 <= width:
        value = load_floats(source + 4 * column)
        a = a + value * value
        column += 16
    rest = 0.0
    while column < width:
        single = float_at(source + 4 * column)
        rest += single * single
        column += 1
    return sum_lanes((a + b) + (c + d)) + rest


@helper
def _rms_part(record, source, output, width, first, end):
    mean_square = _sum_of_squares(source, width) / width
    factor = 1.0 / math.sqrt(mean_square + float_at(get(record, F.epsilon)))
    _write_rms(record, source, output, np.float32(0.0), factor, first, end)


def _moments_of(memory):
    """``f(source, width, shift)``: sums of x - shift and of its square over a part."""
    size, load, load_one = memory.size, memory.load, memory.load_one

    @helper
    def moments(source, width, shift):
        sums = squares = splat_double(0.0)
        column = 0
        while column + 16 <= width:
            value = load(source + size * column) - splat_double(shift)
            sums, squares = sums + value, squares + value * value
            column += 16
        total, square = sum_double_lanes(sums), sum_double_lanes(squares)
        while column < width:
            single = load_one(source + size * column) - shift
            total += single
            square += single * single
            column += 1
        return total, square

    return moments


def _layer_part(memory):
    moments, write, load_one = _moments_of(memory), _writer(memory, _WIDENED, splat_double), memory.load_one

    @helper
    def normalize(record, source, output, width, first, end):
        # The first number is taken off: what all have in common would drown their differences. That one of them is zero
        # then keeps the variance, a difference of two sums, well above their roundings.
        shift = load_one(source)
        total, square = moments(source, width, shift)
        rest = total / width
        factor = 1.0 / math.sqrt(square / width - rest * rest + float_at(get(record, F.epsilon)))
        write(record, source, output, shift + rest, factor, first, end)

    return normalize


_PARTS = {"rms": (_rms_part, 4), "layer": (_layer_part(_WIDENED), 4), "layer_double": (_layer_part(_AS_DOUBLES), SIZE)}
VARIANTS = tuple(_PARTS)


def kernel(variant):
    """The normalization kernel of one kind."""
    normalize_part, size = _PARTS[variant]

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
            source = get(record, F.input) + row * get(record, F.input_stride) + size * part * width
            output = get(record, F.output) + row * get(record, F.output_stride) + size * part * width
            normalize_part(record, source, output, width, first, end)
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
