"""Products of unquantized weights and float32 activations: F32, F16 and BF16, in groups of 16 rows.

The record is that of `edgellm.kernels.matmul`; ``blocks`` counts single columns and the inputs are float32.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types

from edgellm.kernels.attention_tiles import zeros
from edgellm.kernels.blocks import MANY_REGISTERS
from edgellm.kernels.matmul import ROW_BLOCK, store_result, store_tile
from edgellm.kernels.memory import broadcast_float, get, int64_at, load_bfloats, load_floats, load_halves, prefetch
from edgellm.kernels.packing import FLOAT_FORMATS, FORMATS
from edgellm.kernels.records import MATMUL as F
from edgellm.kernels.simd import (
    FLOATS,
    FLOATS_IR,
    add_exactly_ir,
    call_named,
    helper,
    instruction,
    multiply_add,
    share,
    splat_float,
    splat_ir,
    with_rest_ir,
)

TILE = 4
# Rows at once where there are many. Four sums wait for their additions half of the time; with more rows than eight,
# their places in wide inputs would push each other out of the first-level cache, whose sets have eight lines.
LARGE_TILE = 8 if MANY_REGISTERS else TILE
# Products of SPAN columns are added up first, then their sums, and what these additions round off is kept: rounding
# errors grow with the number of additions one after another, and some rows in Whisper amplify them a thousand times.
# Shorter spans round less, but spans of 8 cost half-precision weights a tenth of their speed.
SPAN = 16
ROW_SPAN = 4 * SPAN  # of a single row, which has four sums


VARIANTS = tuple(sorted(FLOAT_FORMATS))


def _column_products(rows):
    """An instruction: add the products of a column of 16 weights and ``rows`` activations, ``stride`` bytes apart."""
    tile = types.UniTuple(FLOATS, rows)

    @instruction(tile, tile, FLOATS, types.int64, types.int64)
    def add_column(builder, results, weight, place, stride):
        for row in range(rows):
            value = builder.load(builder.inttoptr(place, ir.PointerType()), align=4, typ=ir.FloatType())
            total = builder.extract_value(results, row)
            total = call_named(builder, "llvm.fmuladd.v16f32", FLOATS_IR, [weight, splat_ir(builder, value), total])
            results = builder.insert_value(results, total, row)
            place = builder.add(place, stride)
        return results

    return add_column


def _add_exactly(rows):
    """An instruction: add the sums of spans to totals, behind which is what was rounded off so far."""
    tile, pair = types.UniTuple(FLOATS, rows), types.UniTuple(FLOATS, 2 * rows)

    @instruction(pair, pair, tile)
    def add(builder, totals, sums):
        for row in range(rows):
            total, rest = builder.extract_value(totals, row), builder.extract_value(totals, rows + row)
            total, rest = add_exactly_ir(builder, total, rest, builder.extract_value(sums, row))
            totals = builder.insert_value(totals, total, row)
            totals = builder.insert_value(totals, rest, rows + row)
        return totals

    return add


def _add_rests(rows):
    """An instruction: totals with what was rounded off."""
    tile, pair = types.UniTuple(FLOATS, rows), types.UniTuple(FLOATS, 2 * rows)

    @instruction(tile, pair)
    def add(builder, totals):
        result = ir.Constant(ir.ArrayType(FLOATS_IR, rows), ir.Undefined)
        for row in range(rows):
            total, rest = builder.extract_value(totals, row), builder.extract_value(totals, rows + row)
            result = builder.insert_value(result, with_rest_ir(builder, total, rest), row)
        return result

    return add


def _weights_of(name):
    """What loads 16 weights of a format."""
    return {"f32": load_floats, "f16": load_halves, "bf16": load_bfloats}[name]


def _sums_of_spans(name, rows):
    """``f(weights, columns, x, stride)``: the products of 16 weight rows and a tile of activation rows, ``stride``
    bytes apart. Every column's product is added in the same order, however many rows a tile has."""
    size, load, add_column = FORMATS[name].code_bytes, _weights_of(name), _column_products(rows)
    nothing, no_totals = zeros(rows, 1), zeros(rows, 2)
    add_exactly, add_rests = _add_exactly(rows), _add_rests(rows)

    @helper
    def sums(weights, columns, x, stride):
        totals = no_totals()
        whole = columns // SPAN * SPAN
        for first in range(0, whole, SPAN):
            span_sum = nothing()
            for column in range(first, first + SPAN):
                span_sum = add_column(span_sum, load(weights + column * size), x + 4 * column, stride)
            totals = add_exactly(totals, span_sum)
        span_sum = nothing()
        for column in range(whole, columns):
            span_sum = add_column(span_sum, load(weights + column * size), x + 4 * column, stride)
        return add_rests(add_exactly(totals, span_sum))

    return sums


def _large_tile_products(name):
    """Products of a group of 16 weight rows and LARGE_TILE activation rows."""
    sums = _sums_of_spans(name, LARGE_TILE)

    @helper
    def many_rows(record, weights, columns, x, output, bias):
        stride, output_stride = get(record, F.input_stride), get(record, F.output_stride)
        accumulate = get(record, F.accumulate)
        tile = sums(weights, columns, x, stride)
        store_tile((tile[0], tile[1], tile[2], tile[3]), output, output_stride, bias, accumulate)
        output += 4 * output_stride
        store_tile((tile[4], tile[5], tile[6], tile[7]), output, output_stride, bias, accumulate)

    return many_rows


def group_products(name):
    """Products of a group of 16 weight rows and a tile of activation rows, or one, as those of the quantized formats.

    The address of scales and what follows are not used.
    """
    size, load, sums = FORMATS[name].code_bytes, _weights_of(name), _sums_of_spans(name, TILE)
    no_totals, add_exactly, add_rests = zeros(1, 2), _add_exactly(1), _add_rests(1)

    @helper
    def four_rows(record, weights, columns, x, s, output, bias, turn):
        tile = sums(weights, columns, x, get(record, F.input_stride))
        store_tile(tile, output, get(record, F.output_stride), bias, get(record, F.accumulate))

    @helper
    def one_row(record, weights, columns, x, s, output, bias, turn):
        totals = no_totals()
        for first in range(0, columns, ROW_SPAN):
            # Four sums hide the latency of the additions.
            a = b = c = d = splat_float(0.0)
            column, end = first, min(first + ROW_SPAN, columns)
            while column + 4 <= end:
                place, start = x + 4 * column, weights + column * size
                prefetch(start + 2048)
                a = multiply_add(load(start), broadcast_float(place), a)
                b = multiply_add(load(start + size), broadcast_float(place + 4), b)
                c = multiply_add(load(start + 2 * size), broadcast_float(place + 8), c)
                d = multiply_add(load(start + 3 * size), broadcast_float(place + 12), d)
                column += 4
            while column < end:
                a = multiply_add(load(weights + column * size), broadcast_float(x + 4 * column), a)
                column += 1
            totals = add_exactly(totals, ((a + b) + (c + d),))
        total = add_rests(totals)[0]
        store_result(total, output, bias, get(record, F.accumulate))

    return four_rows, one_row, TILE


def kernel(name):
    """The kernel ``output[row, :] = weights @ input[row]`` for one float format."""
    four_rows, one_row, _ = group_products(name)
    many_rows = _large_tile_products(name) if LARGE_TILE > TILE else None

    @helper
    def large_tiles(record, weights, columns, row, stop, output, bias):
        """Returns the first row that is left."""
        stride = get(record, F.output_stride)
        if many_rows is not None:
            while row + LARGE_TILE <= stop:
                x, place = get(record, F.input) + row * get(record, F.input_stride), output + row * stride
                many_rows(record, weights, columns, x, place, bias)
                row += LARGE_TILE
        return row

    def matmul(record, thread, threads):
        rows, columns = int64_at(get(record, F.rows)), get(record, F.blocks)
        x, x_stride, output_stride = get(record, F.input), get(record, F.input_stride), get(record, F.output_stride)
        first, end = share(get(record, F.groups), thread, threads)
        for start in range(0, rows, ROW_BLOCK):
            stop = min(rows, start + ROW_BLOCK)
            for group in range(first, end):
                weights = get(record, F.weights) + group * get(record, F.group_bytes)
                output, bias = get(record, F.output) + group * 64, get(record, F.bias)
                if bias:
                    bias += group * 64
                row = large_tiles(record, weights, columns, start, stop, output, bias)
                while row + TILE <= stop:
                    place = output + row * output_stride
                    four_rows(record, weights, columns, x + row * x_stride, 0, place, bias, (0, 0))
                    row += TILE
                while row < stop:
                    place = output + row * output_stride
                    one_row(record, weights, columns, x + row * x_stride, 0, place, bias, (0, 0))
                    row += 1

    return matmul
