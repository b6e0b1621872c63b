"""Products of quantized weights and many rows of activations, eight at a time.

What `edgellm.kernels.matmul` does for a few rows, for tiles of activations (see `tile_layout`): codes of weights are
unpacked once for eight rows, whose sums stay in registers.

Variants: as in `edgellm.kernels.matmul`; with ``_fine`` a tile is four rows and their remainders.
"""

from __future__ import annotations

from edgellm.kernels import matmul
from edgellm.kernels.blocks import TILE, WIDE
from edgellm.kernels.matmul import products_of_blocks, store_result, store_tile
from edgellm.kernels.memory import get, int64_at
from edgellm.kernels.records import MATMUL_TILES as F
from edgellm.kernels.simd import helper, share, splat_float
from edgellm.kernels.tile_layout import BY_TILE, ROWS, SCALES, rows_of_tile

VARIANTS = matmul.VARIANTS


def _half_tile(name, fine):
    """``multiply(record, weights, piece, first, output, bias)``: four rows of a tile from ``first`` on."""
    products = products_of_blocks(TILE, name, BY_TILE)

    @helper
    def multiply(record, weights, piece, first, output, bias):
        zero = splat_float(0.0)
        accumulate, stride, blocks = get(record, F.accumulate), get(record, F.output_stride), get(record, F.blocks)
        x, s = piece + 32 * first, piece + SCALES + 4 * first
        t = products((zero, zero, zero, zero), weights, blocks, x, (32, 32), s, (4, 4), 0)
        if fine:
            place = output + (first >> 1) * stride
            store_result(t[0] + t[1], place, bias, accumulate)
            store_result(t[2] + t[3], place + stride, bias, accumulate)
        else:
            store_tile(t, output + first * stride, stride, bias, accumulate)

    return multiply


def _whole_tile(name, fine):
    """``multiply(record, weights, piece, output, bias)``: a tile, at once or in halves."""
    if name not in WIDE:
        half = _half_tile(name, fine)

        @helper
        def multiply(record, weights, piece, output, bias):
            half(record, weights, piece, 0, output, bias)
            half(record, weights, piece, TILE, output, bias)

        return multiply
    products = products_of_blocks(ROWS, name, BY_TILE)

    @helper
    def multiply(record, weights, piece, output, bias):
        zero = splat_float(0.0)
        accumulate, stride, blocks = get(record, F.accumulate), get(record, F.output_stride), get(record, F.blocks)
        nothing = (zero, zero, zero, zero, zero, zero, zero, zero)
        t = products(nothing, weights, blocks, piece, (32, 32), piece + SCALES, (4, 4), 0)
        if fine:
            store_tile((t[0] + t[1], t[2] + t[3], t[4] + t[5], t[6] + t[7]), output, stride, bias, accumulate)
        else:
            store_tile((t[0], t[1], t[2], t[3]), output, stride, bias, accumulate)
            store_tile((t[4], t[5], t[6], t[7]), output + TILE * stride, stride, bias, accumulate)

    return multiply


def kernel(variant):
    """The kernel ``output[row, :] = weights @ input[row]`` for one packed format; threads share the weights.

    Rows of the last tile that are not there are written all the same: the output must hold whole tiles.
    """
    name, _, fine = variant.partition("_")
    rows_in_tile = rows_of_tile(bool(fine))
    multiply = _whole_tile(name, bool(fine))

    def matmul_tiles(record, thread, threads):
        rows, at_once = int64_at(get(record, F.rows)), get(record, F.tiles_at_once)
        tiles = (rows + rows_in_tile - 1) // rows_in_tile
        first, end = share(get(record, F.groups), thread, threads)
        for start in range(0, tiles, at_once):
            stop = min(tiles, start + at_once)
            for group in range(first, end):
                weights = get(record, F.weights) + group * get(record, F.group_bytes)
                bias = get(record, F.bias)
                if bias:
                    bias += group * 64
                for tile in range(start, stop):
                    piece = get(record, F.input) + tile * get(record, F.tile_bytes)
                    output = get(record, F.output) + group * 64 + tile * rows_in_tile * get(record, F.output_stride)
                    multiply(record, weights, piece, output, bias)

    return matmul_tiles
