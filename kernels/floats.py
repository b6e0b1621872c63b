"""Products of unquantized weights and float32 activations: F32, F16 and BF16, in groups of 16 rows.

The record is that of `edgellm.kernels.matmul`; ``blocks`` counts single columns and the inputs are float32.
"""

from __future__ import annotations

from edgellm.kernels.matmul import ROW_BLOCK, store_result, store_tile
from edgellm.kernels.memory import broadcast_float, get, int64_at, load_bfloats, load_floats, load_halves, prefetch
from edgellm.kernels.packing import FLOAT_FORMATS, FORMATS
from edgellm.kernels.records import MATMUL as F
from edgellm.kernels.simd import helper, multiply_add, share, splat_float

TILE = 4


VARIANTS = tuple(sorted(FLOAT_FORMATS))


def group_products(name):
    """Products of a group of 16 weight rows and a tile of activation rows, or one, as those of the quantized formats.

    The address of scales and what follows are not used.
    """
    size = FORMATS[name].code_bytes
    load = {"f32": load_floats, "f16": load_halves, "bf16": load_bfloats}[name]

    @helper
    def four_rows(record, weights, columns, x, s, output, bias, turn):
        x_stride = get(record, F.input_stride)
        a = b = c = d = splat_float(0.0)
        for column in range(columns):
            weight, place = load(weights + column * size), x + 4 * column
            a = multiply_add(weight, broadcast_float(place), a)
            b = multiply_add(weight, broadcast_float(place + x_stride), b)
            c = multiply_add(weight, broadcast_float(place + 2 * x_stride), c)
            d = multiply_add(weight, broadcast_float(place + 3 * x_stride), d)
        store_tile((a, b, c, d), output, get(record, F.output_stride), bias, get(record, F.accumulate))

    @helper
    def one_row(record, weights, columns, x, s, output, bias, turn):
        # Four sums hide the latency of the additions.
        a = b = c = d = splat_float(0.0)
        column = 0
        while column + 4 <= columns:
            place, start = x + 4 * column, weights + column * size
            prefetch(start + 2048)
            a = multiply_add(load(start), broadcast_float(place), a)
            b = multiply_add(load(start + size), broadcast_float(place + 4), b)
            c = multiply_add(load(start + 2 * size), broadcast_float(place + 8), c)
            d = multiply_add(load(start + 3 * size), broadcast_float(place + 12), d)
            column += 4
        while column < columns:
            a = multiply_add(load(weights + column * size), broadcast_float(x + 4 * column), a)
            column += 1
        store_result((a + b) + (c + d), output, bias, get(record, F.accumulate))

    return four_rows, one_row, TILE


def kernel(name):
    """The kernel ``output[row, :] = weights @ input[row]`` for one float format."""
    four_rows, one_row, _ = group_products(name)

    def matmul(record, thread, threads):
        rows, groups, columns = (
            int64_at(get(record, F.rows)),
            get(record, F.groups),
            get(record, F.blocks),
        )
        x, x_stride = get(record, F.input), get(record, F.input_stride)
        first, end = share(groups, thread, threads)
        for start in range(0, rows, ROW_BLOCK):
            stop = min(rows, start + ROW_BLOCK)
            for group in range(first, end):
                weights = get(record, F.weights) + group * get(record, F.group_bytes)
                output = get(record, F.output) + group * 64
                bias = get(record, F.bias)
                if bias:
                    bias += group * 64
                row = start
                while row + TILE <= stop:
                    four_rows(
                        record,
                        weights,
                        columns,
                        x + row * x_stride,
                        0,
                        output + row * get(record, F.output_stride),
                        bias,
                        (0, 0),
                    )
                    row += TILE
                while row < stop:
                    one_row(
                        record,
                        weights,
                        columns,
                        x + row * x_stride,
                        0,
                        output + row * get(record, F.output_stride),
                        bias,
                        (0, 0),
                    )
                    row += 1

    return matmul
