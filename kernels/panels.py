"""Panels: some columns of a group of weights, unpacked once for many rows of activations.

A panel lies in the first-level cache, one piece after the other, in the order of the activations' pieces (see
`edgellm.kernels.tile_layout`): eight vectors of codes, then scale and offset of 16 weight rows in float32; or, where 16
values have their own scale, twice four vectors of codes, each with scale and offset.
"""

from __future__ import annotations

import itertools
from operator import itemgetter
from typing import NamedTuple

from llvmlite import ir
from numba.core import types

from edgellm.kernels import tile_layout
from edgellm.kernels.blocks import BLOCKS, MANY_REGISTERS, TILE
from edgellm.kernels.memory import store_floats, store_ints
from edgellm.kernels.packing import FORMATS
from edgellm.kernels.products import dot4_ir
from edgellm.kernels.simd import (
    FLOATS,
    FLOATS_IR,
    INTS_IR,
    call_named,
    helper,
    instruction,
    ints_constant,
    splat_ir,
)
from edgellm.kernels.tile_layout import BY_TILE, PANEL_BYTES, PANEL_PIECE, PIECE_BYTES, PIECES, ROWS

HALVES = frozenset({"k2", "k3", "k6"})  # formats with a scale for 16 values
GROUPS = tile_layout.GROUPS if MANY_REGISTERS else 1  # whose panels are multiplied together
_VECTOR = 64


class _Part(NamedTuple):
    """Of a piece of a panel, or of two: values that have one scale."""

    vector: int  # the number of the first
    chunks: int  # vectors of codes
    codes: int  # where its activations are, from those of the first row and piece
    scale: int  # where their scale is
    total: int  # where their sum is


def piece_bytes(name):
    """From one piece of a panel to the next."""
    return PANEL_PIECE if name in HALVES else 10 * _VECTOR


def _write(rows, chunks, sum_place, shift=None):
    """What takes the place of `tile_product`: unpacked codes go to a panel, whose next free address is the result."""

    @helper
    def write_four(panel, codes):
        store_ints(panel, codes[0])
        store_ints(panel + _VECTOR, codes[1])
        store_ints(panel + 2 * _VECTOR, codes[2])
        store_ints(panel + 3 * _VECTOR, codes[3])

    if chunks == 4:

        @helper
        def write(panel, codes, scale, offset, x, x_stride, s, s_stride):
            write_four(panel, codes)
            store_floats(panel + 4 * _VECTOR, scale)
            store_floats(panel + 5 * _VECTOR, offset)
            return panel + 6 * _VECTOR
    else:

        @helper
        def write(panel, codes, scale, offset, x, x_stride, s, s_stride):
            write_four(panel, codes)
            write_four(panel + 4 * _VECTOR, (codes[4], codes[5], codes[6], codes[7]))
            store_floats(panel + 8 * _VECTOR, scale)
            store_floats(panel + 9 * _VECTOR, offset)
            return panel + 10 * _VECTOR

    return write


def unpacker(name):
    """``f(weights, first, end, panel)``: write the blocks from ``first`` to ``end`` of a group to a panel.

    The blocks that follow are asked for ahead: they are needed next, but after other groups'.
    """
    layout = FORMATS[name]
    block = BLOCKS[name](ROWS, name, BY_TILE, _write)
    codes_at, scales_at = (helper(place) for place in layout.places())
    ahead = layout.group_bytes(max(PIECES * 32 // layout.values, 1))

    @helper
    def unpack(weights, first, end, panel):
        for number in range(first, end):
            codes = weights + codes_at(number)
            panel = block(panel, codes, weights + scales_at(number), 0, (0, 0), 0, (0, 0), codes + ahead)

    return unpack


def _part_products(parts):
    """An instruction: add the products of some parts of panels and four rows of a tile of activations.

    The results are four rows of the first panel's group, then those of the second's.
    Vectors take turns, and within these rows, parts and groups: sums of the same three wait for each other, those of
    others do not, and the window in which a processor looks for work ahead is too small to find much by itself. Each
    activation is read once for both groups. With few registers there is one group, and its rows come one by one, so
    that sums are not spilled.
    """
    tile = types.UniTuple(FLOATS, TILE * GROUPS)
    sums = list(itertools.product(range(TILE), range(len(parts)), range(GROUPS)))
    order = list(itertools.product(range(8), sums))
    if not MANY_REGISTERS:
        order.sort(key=itemgetter(1))

    @instruction(tile, tile, types.int64, types.int64, types.int64)
    def add_products(builder, results, panel, x, s):
        def load(address, offset, kind):
            place = builder.add(address, ir.Constant(ir.IntType(64), offset))
            return builder.load(builder.inttoptr(place, ir.PointerType()), align=4, typ=kind)

        def spread(address, offset, kind):
            return splat_ir(builder, load(address, offset, kind))

        totals = dict.fromkeys(sums, ints_constant(0))
        fours = {}
        weights = {}
        for number, (row, part, group) in order:
            if number < parts[part].chunks:
                if (number, part, group) not in weights:
                    place = PANEL_BYTES * group + _VECTOR * (parts[part].vector + number)
                    weights[number, part, group] = load(panel, place, INTS_IR)
                if (number, row, part) not in fours:
                    fours[number, row, part] = spread(x, parts[part].codes + 32 * row + 4 * number, ir.IntType(32))
                total, vector = totals[row, part, group], weights[number, part, group]
                totals[row, part, group] = dot4_ir(builder, total, vector, fours[number, row, part])
        for number, part in enumerate(parts):
            for group in range(GROUPS):
                place = PANEL_BYTES * group + _VECTOR * (part.vector + part.chunks)
                scale, offset = load(panel, place, FLOATS_IR), load(panel, place + _VECTOR, FLOATS_IR)
                for row in range(TILE):
                    d = spread(s, part.scale + 4 * row, ir.FloatType())
                    block_sum = spread(s, part.total + 4 * row, ir.FloatType())
                    product = builder.fmul(builder.sitofp(totals[row, number, group], FLOATS_IR), d)
                    value = builder.extract_value(results, TILE * group + row)
                    value = call_named(builder, "llvm.fmuladd.v16f32", FLOATS_IR, [product, scale, value])
                    value = call_named(builder, "llvm.fmuladd.v16f32", FLOATS_IR, [offset, block_sum, value])
                    results = builder.insert_value(results, value, TILE * group + row)
        return results

    return add_products


def panel_product(name):
    """``f(tile, panels, pieces, x, s)``: add the products of the panels of `GROUPS` groups and four rows of a tile."""
    size = piece_bytes(name)
    if name in HALVES:
        low, high = _Part(0, 4, 0, 0, BY_TILE.first_half), _Part(6, 4, 16, 0, BY_TILE.second_half)
        add = _part_products((low, high))

        @helper
        def products(tile, panels, pieces, x, s):
            for number in range(pieces):
                tile = add(tile, panels + number * size, x + number * PIECE_BYTES, s + number * PIECE_BYTES)
            return tile

        return products
    first = _Part(0, 8, 0, 0, BY_TILE.total)
    second = _Part(10, 8, PIECE_BYTES, PIECE_BYTES, PIECE_BYTES + BY_TILE.total)
    add, add_two = _part_products((first,)), _part_products((first, second))

    @helper
    def products(tile, panels, pieces, x, s):
        for number in range(0, pieces - 1, 2):
            tile = add_two(tile, panels + number * size, x + number * PIECE_BYTES, s + number * PIECE_BYTES)
        if pieces & 1:
            last = pieces - 1
            tile = add(tile, panels + last * size, x + last * PIECE_BYTES, s + last * PIECE_BYTES)
        return tile

    return products
