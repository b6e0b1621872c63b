"""Products of quantized weights and many rows of activations, eight at a time.

What `edgellm.kernels.matmul` does for a few rows, for tiles of activations (see `tile_layout`). 256 columns of two
groups of weights are unpacked to panels (see `panels`), which stay in the first-level cache while up to sixteen tiles
pass; sums wait in memory for the next columns. Whole rows of weights and of a tile do not fit that cache, and unpacking
them for every tile took up to half of the time.

Variants: as in `edgellm.kernels.matmul`; with ``_fine`` a tile is four rows and their remainders.
"""

from __future__ import annotations

from edgellm.kernels import matmul
from edgellm.kernels.blocks import TILE
from edgellm.kernels.matmul import store_result, store_tile
from edgellm.kernels.memory import get, int64_at, load_floats, prefetch, store_floats
from edgellm.kernels.packing import FORMATS
from edgellm.kernels.panels import GROUPS, panel_product, unpacker
from edgellm.kernels.records import MATMUL_TILES as F
from edgellm.kernels.simd import helper, share, splat_float
from edgellm.kernels.tile_layout import PANEL_BYTES, PIECE_BYTES, PIECES, SCALES, TILES, rows_of_tile

VARIANTS = matmul.VARIANTS
_HALF = 64 * TILE * GROUPS  # bytes of the sums of half a tile and the groups that are multiplied together


@helper
def _load_four(sums):
    return load_floats(sums), load_floats(sums + 64), load_floats(sums + 128), load_floats(sums + 192)


@helper
def _store_four(tile, sums):
    store_floats(sums, tile[0])
    store_floats(sums + 64, tile[1])
    store_floats(sums + 128, tile[2])
    store_floats(sums + 192, tile[3])


@helper
def _clear(sums, end):
    zero = splat_float(0.0)
    while sums < end:
        _store_four((zero, zero, zero, zero), sums)
        sums += 256


def _multiply_half(name):
    """``f(panels, pieces, x, s, sums)``: add the products of panels and four rows of a tile to their sums."""
    products = panel_product(name)
    if GROUPS == 1:

        @helper
        def multiply(panels, pieces, x, s, sums):
            _store_four(products(_load_four(sums), panels, pieces, x, s), sums)

        return multiply

    @helper
    def multiply(panels, pieces, x, s, sums):
        a, b = _load_four(sums), _load_four(sums + 256)
        tile = products((a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]), panels, pieces, x, s)
        _store_four((tile[0], tile[1], tile[2], tile[3]), sums)
        _store_four((tile[4], tile[5], tile[6], tile[7]), sums + 256)

    return multiply


def _ask_for_results(rows_in_half):
    """``f(record, group, end, row)``: have the lines at hand to which the results of half a tile will go.

    They lie far apart, so that no processor foresees them, and are written all at once: storing waited for them.
    """

    @helper
    def ask_for_results(record, group, end, row):
        stride = get(record, F.output_stride)
        place = get(record, F.output) + row * stride + 64 * group
        for _ in range(rows_in_half):
            prefetch(place)
            if GROUPS == 2 and group + 1 < end:
                prefetch(place + 64)
            place += stride

    return ask_for_results


def _multiply_groups(name, rows_in_half):
    """``f(record, group, end, tile, tiles, panels, sums)``: the products of `GROUPS` groups and some tiles.

    Where ``end`` leaves but one group, it is multiplied twice, to no avail.
    """
    unpack, multiply, ask_for_results = unpacker(name), _multiply_half(name), _ask_for_results(rows_in_half)
    values = FORMATS[name].values
    pieces_of_block, blocks_of_panel = values // 32, max(PIECES * 32 // values, 1)

    @helper
    def multiply_groups(record, group, end, tile, tiles, panels, sums):
        blocks, tile_bytes = get(record, F.blocks), get(record, F.tile_bytes)
        x = get(record, F.input) + tile * tile_bytes
        _clear(sums, sums + 2 * tiles * _HALF)
        for first in range(0, blocks, blocks_of_panel):
            stop = min(first + blocks_of_panel, blocks)
            for number in range(GROUPS):
                weights = get(record, F.weights) + min(group + number, end - 1) * get(record, F.group_bytes)
                unpack(weights, first, stop, panels + number * PANEL_BYTES)
            for half in range(2 * tiles):
                if first == 0:
                    ask_for_results(record, group, end, (2 * tile + half) * rows_in_half)
                piece, row = x + (half >> 1) * tile_bytes, TILE * (half & 1)
                place = sums + half * _HALF
                multiply(panels, (stop - first) * pieces_of_block, piece + 32 * row, piece + SCALES + 4 * row, place)
            x += (stop - first) * pieces_of_block * PIECE_BYTES

    return multiply_groups


@helper
def _finish(sums, output, stride, bias, accumulate):
    """Write the results of half a tile."""
    store_tile(_load_four(sums), output, stride, bias, accumulate)


@helper
def _finish_fine(sums, output, stride, bias, accumulate):
    """Write the results of half a tile in which each row is followed by its remainder."""
    tile = _load_four(sums)
    store_result(tile[0] + tile[1], output, bias, accumulate)
    store_result(tile[2] + tile[3], output + stride, bias, accumulate)


def kernel(variant):
    """The kernel ``output[row, :] = weights @ input[row]`` for one packed format; threads share the weights.

    Rows of the last tile that are not there are written all the same: the output must hold whole tiles.
    """
    name, _, fine = variant.partition("_")
    rows_in_tile = rows_of_tile(bool(fine))
    multiply_groups, finish = _multiply_groups(name, rows_in_tile // 2), _finish_fine if fine else _finish

    @helper
    def results(record, group, end, tile, tiles, sums):
        stride, accumulate, bias = get(record, F.output_stride), get(record, F.accumulate), get(record, F.bias)
        output = get(record, F.output) + tile * rows_in_tile * stride
        for number in range(group, end):
            place = sums + (number - group) * 64 * TILE
            for half in range(2 * tiles):
                row = output + number * 64 + half * (rows_in_tile // 2) * stride
                finish(place + half * _HALF, row, stride, bias + number * 64 if bias else bias, accumulate)

    def matmul_tiles(record, thread, threads):
        rows, at_once = int64_at(get(record, F.rows)), get(record, F.tiles_at_once)
        panels = get(record, F.scratch) + thread * get(record, F.scratch_stride)
        sums = panels + GROUPS * PANEL_BYTES
        all_tiles = (rows + rows_in_tile - 1) // rows_in_tile
        first, end = share(get(record, F.groups), thread, threads)
        for start in range(0, all_tiles, at_once):
            stop = min(all_tiles, start + at_once)
            for group in range(first, end, GROUPS):
                for tile in range(start, stop, TILES):
                    tiles = min(stop - tile, TILES)
                    multiply_groups(record, group, end, tile, tiles, panels, sums)
                    results(record, group, min(end, group + GROUPS), tile, tiles, sums)

    return matmul_tiles
