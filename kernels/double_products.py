"""Products of unquantized weights and float64 activations: F32, F16 and BF16, in groups of 16 rows.

The record is that of `edgellm.kernels.matmul`, as of `edgellm.kernels.floats`; inputs and outputs are float64.
"""

from __future__ import annotations

from edgellm.kernels.double_layout import MOST_ROWS
from edgellm.kernels.double_vectors import SIZE, add_products, add_there, store_rows, tile_of
from edgellm.kernels.memory import get, int64_at, load_bfloats, load_floats, load_halves
from edgellm.kernels.packing import FLOAT_FORMATS, FORMATS
from edgellm.kernels.records import MATMUL as F
from edgellm.kernels.simd import TARGET, helper, share, splat_double, to_doubles

TILE = MOST_ROWS if TARGET.has("avx512f") else 2  # rows whose sums stay in registers, with weights and activations
ROW_BLOCK = 48  # rows that stay in the second-level cache while all weights pass: whole tiles
VARIANTS = tuple(sorted(FLOAT_FORMATS))
_LOADS = {"f32": load_floats, "f16": load_halves, "bf16": load_bfloats}


def _products(name, rows):
    """``f(record, weights, columns, x, output, bias)``: of a group of weights and so many rows of activations."""
    size, load = FORMATS[name].code_bytes, _LOADS[name]
    tile_from, add_column, add_output, store = tile_of(rows), add_products(rows), add_there(rows), store_rows(rows)

    @helper
    def products(record, weights, columns, x, output, bias):
        stride, output_stride = get(record, F.input_stride), get(record, F.output_stride)
        tile = tile_from(to_doubles(load_floats(bias)) if bias else splat_double(0.0))
        for column in range(columns):
            tile = add_column(tile, to_doubles(load(weights + column * size)), x + SIZE * column, stride)
        if get(record, F.accumulate):
            tile = add_output(tile, output, output_stride)
        store(tile, output, output_stride)

    return products


def kernel(name):
    """The kernel ``output[row, :] = weights @ input[row]`` for one float format; threads share the groups."""
    tile, single = _products(name, TILE), _products(name, 1)

    def matmul(record, thread, threads):
        rows, columns, groups = int64_at(get(record, F.rows)), get(record, F.blocks), get(record, F.groups)
        x, x_stride, output_stride = get(record, F.input), get(record, F.input_stride), get(record, F.output_stride)
        first, end = share(groups, thread, threads)
        for start in range(0, rows, ROW_BLOCK):
            stop = min(rows, start + ROW_BLOCK)
            for group in range(first, end):
                weights = get(record, F.weights) + group * get(record, F.group_bytes)
                output, bias = get(record, F.output) + group * 16 * SIZE, get(record, F.bias)
                if bias:
                    bias += group * 64
                row = start
                while row + TILE <= stop:
                    tile(record, weights, columns, x + row * x_stride, output + row * output_stride, bias)
                    row += TILE
                while row < stop:
                    single(record, weights, columns, x + row * x_stride, output + row * output_stride, bias)
                    row += 1

    return matmul
