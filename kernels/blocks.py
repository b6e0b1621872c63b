"""Blocks of packed weights: unpacked to vectors of codes, scales and offsets, and multiplied by activations.

What `edgellm.kernels.matmul` and others repeat for every block of a group. Codes are unpacked once for a tile of
several activation rows.
"""

from __future__ import annotations

import itertools
from operator import itemgetter

from numba.core import types
from numba.extending import intrinsic

from edgellm.kernels.memory import load_halves, load_ints, load_signed_bytes, load_unsigned_bytes, prefetcher
from edgellm.kernels.packing import FORMATS
from edgellm.kernels.products import dot4_ir, lookup16
from edgellm.kernels.simd import FLOATS, INTS, TARGET, helper, splat_float, splat_int, splat_ir, to_floats

TILE = 4  # activation rows that share one unpacking of the weights
MANY_REGISTERS = TARGET.has("avx512f")  # with few, sums of more rows would spill


def _load(builder, address, offset, kind, align=4):
    from llvmlite import ir

    place = builder.add(address, ir.Constant(ir.IntType(64), offset))
    return builder.load(builder.inttoptr(place, ir.PointerType()), align=align, typ=kind)


def tile_product(rows, chunks, sum_place, shift=None):
    """An instruction: add one block's products to a tile of ``rows`` vectors of results.

    ``chunks`` vectors of codes hold 4 values each of 16 weight rows; ``sum_place`` is where the block's sum stands
    among the activation scales. With a ``shift`` the second half of the vectors is summed by itself, and that sum
    divided by ``2^shift``: those codes are that much too large. The loop over the tile is unrolled while the
    instruction is written.

    The strides of inputs and scales are pairs: the bytes from a row with an even number to the next, and from one with
    an odd number, so that every second row of a tile may be the remainder of the one before.
    """
    from llvmlite import ir

    tile = types.UniTuple(FLOATS, rows)
    codes = types.UniTuple(INTS, chunks)
    floats, ints = ir.VectorType(ir.FloatType(), 16), ir.VectorType(ir.IntType(32), 16)

    def codegen(context, builder, _signature, values):
        results, weights, scale, offset, inputs, input_strides, scales, scales_strides = values
        fused = ir.FunctionType(floats, [floats] * 3)
        multiply_and_add = builder.module.globals.get("llvm.fmuladd.v16f32")
        if multiply_and_add is None:
            multiply_and_add = ir.Function(builder.module, fused, "llvm.fmuladd.v16f32")
        vectors = [builder.extract_value(weights, number) for number in range(chunks)]
        places = [(inputs, scales)]
        for row in range(rows - 1):
            strides = (builder.extract_value(pair, row % 2) for pair in (input_strides, scales_strides))
            places.append(tuple(builder.add(*pair) for pair in zip(places[-1], strides, strict=True)))
        none = ir.Constant(ints, [0] * 16)
        totals = [[none, none] for _ in range(rows)]
        # Vector by vector over all rows: sums of a row wait for each other, those of different rows do not, and the
        # window in which a processor looks for work ahead is too small to find the next row's by itself.
        # With few registers that order would spill the sums.
        order = itertools.product(range(chunks), range(rows))
        for number, row in order if MANY_REGISTERS else sorted(order, key=itemgetter(1)):
            half = 0 if shift is None else 2 * number // chunks
            four = splat_ir(builder, _load(builder, places[row][0], 4 * number, ir.IntType(32)))
            totals[row][half] = dot4_ir(builder, totals[row][half], vectors[number], four)
        for row, ((total, upper), (_, row_scales)) in enumerate(zip(totals, places, strict=True)):
            if shift is not None:
                divided = builder.ashr(upper, ir.Constant(ints, [shift] * 16)) if shift else upper
                total = builder.add(total, divided)
            d = splat_ir(builder, _load(builder, row_scales, 0, ir.FloatType()))
            block_sum = splat_ir(builder, _load(builder, row_scales, sum_place, ir.FloatType()))
            value = builder.extract_value(results, row)
            product = builder.fmul(builder.sitofp(total, floats), d)
            value = builder.call(multiply_and_add, [product, scale, value])
            value = builder.call(multiply_and_add, [offset, block_sum, value])
            results = builder.insert_value(results, value, row)
        return results

    @intrinsic
    def add_products(context, results, weights, scale, offset, inputs, input_strides, scales, scales_strides):
        strides = types.UniTuple(types.int64, 2)
        parameters = (tile, codes, FLOATS, FLOATS, types.int64, strides, types.int64, strides)
        return tile(*parameters), codegen

    return add_products


# -- unpacking: one block of a group to vectors of codes, scales and offsets ---------------------------------------
# A block function adds one block's products to a tile: codes and scales are addresses of the block in the group,
# x and s those of the activations' codes and scales at the same place, ahead what to prefetch, if anything. Where
# activations lie is an `InputLayout`. What becomes of the unpacked block is for ``product`` to say: a function like
# `tile_product`.


_LONG = frozenset({"k2", "k3", "k5", "k6", "iq4x"})  # formats whose blocks are unpacked in eight parts


def _prefetch_parts(rows, name, size):
    """``f(ahead, part)``: prefetch one part of a block, ``size`` bytes each. Every line is asked for: with every second
    one decode took up to half longer.

    For a tile the order of the program costs more than it brings, except in long blocks.
    """
    lines = prefetcher(size, ordered=rows != TILE or name in _LONG)

    @helper
    def prefetch_part(ahead, part):
        lines(ahead + part * size)

    return prefetch_part


@helper
def nibbles(codes):
    """32 values of 16 rows from 4 vectors: the low halves of the bytes are values 0-15, the high halves 16-31."""
    low = splat_int(0x0F0F0F0F)
    four = splat_int(4)
    a, b, c, d = load_ints(codes), load_ints(codes + 64), load_ints(codes + 128), load_ints(codes + 192)
    return (
        a & low, b & low, c & low, d & low,
        (a >> four) & low, (b >> four) & low, (c >> four) & low, (d >> four) & low,
    )  # fmt: skip


@helper
def _nibbles_in_place(codes):
    """The same, but that the high halves are left where they are: 16 times too large."""
    low, high = splat_int(0x0F0F0F0F), splat_int(0xF0F0F0F0 - (1 << 32))
    a, b, c, d = load_ints(codes), load_ints(codes + 64), load_ints(codes + 128), load_ints(codes + 192)
    return a & low, b & low, c & low, d & low, a & high, b & high, c & high, d & high


@helper
def fifth_bits(bits, codes):
    """Add bit 4 to eight vectors of codes: byte b, bit j of ``bits`` belongs to value 4 j + b."""
    mask = splat_int(0x10101010)
    return (
        codes[0] | ((bits << splat_int(4)) & mask), codes[1] | ((bits << splat_int(3)) & mask),
        codes[2] | ((bits << splat_int(2)) & mask), codes[3] | ((bits << splat_int(1)) & mask),
        codes[4] | (bits & mask), codes[5] | ((bits >> splat_int(1)) & mask),
        codes[6] | ((bits >> splat_int(2)) & mask), codes[7] | ((bits >> splat_int(3)) & mask),
    )  # fmt: skip


def _bytes_per_32_values(name):
    """Of 16 packed rows."""
    layout = FORMATS[name]
    return (layout.code_bytes + layout.scale_bytes) * 32 // layout.values


def _blocks_of_32(rows, name, layout, product=tile_product):
    """Formats with one half-precision scale, and perhaps an offset, per 32 values.

    For few rows two short chains of products are faster than a long one, and unpacking less costs most.
    """
    prefetch_part = _prefetch_parts(rows, name, _bytes_per_32_values(name))
    in_place = rows < TILE and name in ("q4", "q4m")
    add = product(rows, 8, layout.total, None if rows >= TILE else 4 if in_place else 0)
    look_up = lookup16(FORMATS["iq4"].table)
    unsigned = {"q8": -128.0, "q4": -8.0, "q5": -16.0, "iq4": -128.0}

    if name in ("q4m", "q5m"):

        @helper
        def offset_of(scale, scales):
            return load_halves(scales + 32)
    else:
        zero = unsigned[name]

        @helper
        def offset_of(scale, scales):
            return scale * splat_float(zero)

    if name == "q8":

        @helper
        def codes_of(codes):
            return (
                load_ints(codes), load_ints(codes + 64), load_ints(codes + 128), load_ints(codes + 192),
                load_ints(codes + 256), load_ints(codes + 320), load_ints(codes + 384), load_ints(codes + 448),
            )  # fmt: skip
    elif name in ("q5", "q5m"):

        @helper
        def codes_of(codes):
            return fifth_bits(load_ints(codes + 256), nibbles(codes))
    elif name == "iq4":

        @helper
        def codes_of(codes):
            n = nibbles(codes)
            return (
                look_up(n[0]), look_up(n[1]), look_up(n[2]), look_up(n[3]),
                look_up(n[4]), look_up(n[5]), look_up(n[6]), look_up(n[7]),
            )  # fmt: skip
    elif in_place:

        @helper
        def codes_of(codes):
            return _nibbles_in_place(codes)
    else:

        @helper
        def codes_of(codes):
            return nibbles(codes)

    @helper
    def block(tile, codes, scales, x, x_stride, s, s_stride, ahead):
        scale = load_halves(scales)
        prefetch_part(ahead, 0)
        return add(tile, codes_of(codes), scale, offset_of(scale, scales), x, x_stride, s, s_stride)

    return block


@helper
def low_and_high(codes, shift):
    """Eight vectors: 32 values that are halves of bytes, the low ones (shift 0) or the high ones (4)."""
    mask, by = splat_int(0x0F0F0F0F), splat_int(shift)
    return (
        (load_ints(codes) >> by) & mask, (load_ints(codes + 64) >> by) & mask,
        (load_ints(codes + 128) >> by) & mask, (load_ints(codes + 192) >> by) & mask,
        (load_ints(codes + 256) >> by) & mask, (load_ints(codes + 320) >> by) & mask,
        (load_ints(codes + 384) >> by) & mask, (load_ints(codes + 448) >> by) & mask,
    )  # fmt: skip


@helper
def select_bits(address, shift, mask, left):
    """Eight vectors of a few bits each: (load >> shift) & mask << left."""
    by, keep, up = splat_int(shift), splat_int(mask), splat_int(left)
    return (
        ((load_ints(address) >> by) & keep) << up, ((load_ints(address + 64) >> by) & keep) << up,
        ((load_ints(address + 128) >> by) & keep) << up, ((load_ints(address + 192) >> by) & keep) << up,
        ((load_ints(address + 256) >> by) & keep) << up, ((load_ints(address + 320) >> by) & keep) << up,
        ((load_ints(address + 384) >> by) & keep) << up, ((load_ints(address + 448) >> by) & keep) << up,
    )  # fmt: skip


@helper
def or_codes(a, b):
    return (
        a[0] | b[0], a[1] | b[1], a[2] | b[2], a[3] | b[3], a[4] | b[4], a[5] | b[5], a[6] | b[6], a[7] | b[7]
    )  # fmt: skip


@helper
def _masked(codes, mask):
    """Eight vectors: the bytes' bits under a mask."""
    keep = splat_int(mask)
    return (
        load_ints(codes) & keep, load_ints(codes + 64) & keep,
        load_ints(codes + 128) & keep, load_ints(codes + 192) & keep,
        load_ints(codes + 256) & keep, load_ints(codes + 320) & keep,
        load_ints(codes + 384) & keep, load_ints(codes + 448) & keep,
    )  # fmt: skip


def _repeated(byte):
    """A byte in all four places of a signed 32-bit number."""
    return int.from_bytes(bytes([byte] * 4), "little", signed=True)


def _four_bits_by_superblock(rows, name, layout, product=tile_product):
    """Q4_K: 8 sub-blocks of 32, each with a 6-bit scale and a 6-bit minimum. Two share their bytes; the codes in the
    high halves stay there, 16 times too large, and their scale makes up for it."""
    prefetch_part = _prefetch_parts(rows, name, 2 * _bytes_per_32_values(name))
    add = product(rows, 8, layout.total, None if rows >= TILE else 0)
    codes_step, scales_step = layout.codes_step, layout.scales_step
    low, high = _repeated(0x0F), _repeated(0xF0)

    @helper
    def block(tile, codes, scales, x, x_stride, s, s_stride, ahead):
        d = load_halves(scales)
        sixteenth = d * splat_float(0.0625)
        minimum = load_halves(scales + 32) * splat_float(-1.0)
        for sub in range(0, 8, 2):
            prefetch_part(ahead, sub >> 1)
            scale = d * to_floats(load_unsigned_bytes(scales + 64 + 16 * sub))
            offset = minimum * to_floats(load_unsigned_bytes(scales + 192 + 16 * sub))
            x_sub, s_sub, place = x + codes_step * sub, s + scales_step * sub, codes + 256 * sub
            tile = add(tile, _masked(place, low), scale, offset, x_sub, x_stride, s_sub, s_stride)
            scale = sixteenth * to_floats(load_unsigned_bytes(scales + 80 + 16 * sub))
            offset = minimum * to_floats(load_unsigned_bytes(scales + 208 + 16 * sub))
            x_sub, s_sub = x_sub + codes_step, s_sub + scales_step
            tile = add(tile, _masked(place, high), scale, offset, x_sub, x_stride, s_sub, s_stride)
        return tile

    return block


def _eight_parts(add_part):
    """A block of 256 values, 32 at a time, of a function that adds one such part.

    The parts are written out: shifts by a constant cost half of those by a variable.
    """

    @helper
    def block(tile, codes, scales, x, x_stride, s, s_stride, ahead):
        d, minimum = load_halves(scales), load_halves(scales + 32) * splat_float(-1.0)
        tile = add_part(tile, 0, d, minimum, codes, scales, x, x_stride, s, s_stride, ahead)
        tile = add_part(tile, 1, d, minimum, codes, scales, x, x_stride, s, s_stride, ahead)
        tile = add_part(tile, 2, d, minimum, codes, scales, x, x_stride, s, s_stride, ahead)
        tile = add_part(tile, 3, d, minimum, codes, scales, x, x_stride, s, s_stride, ahead)
        tile = add_part(tile, 4, d, minimum, codes, scales, x, x_stride, s, s_stride, ahead)
        tile = add_part(tile, 5, d, minimum, codes, scales, x, x_stride, s, s_stride, ahead)
        tile = add_part(tile, 6, d, minimum, codes, scales, x, x_stride, s, s_stride, ahead)
        return add_part(tile, 7, d, minimum, codes, scales, x, x_stride, s, s_stride, ahead)

    return block


def _five_bits_by_superblock(rows, name, layout, product=tile_product):
    """Q5_K: as Q4_K, with a fifth bit."""
    prefetch_part = _prefetch_parts(rows, name, _bytes_per_32_values(name))
    add = product(rows, 8, layout.total, None if rows >= TILE else 0)
    codes_step, scales_step = layout.codes_step, layout.scales_step

    @helper
    def add_part(tile, sub, d, minimum, codes, scales, x, x_stride, s, s_stride, ahead):
        prefetch_part(ahead, sub)
        scale = d * to_floats(load_unsigned_bytes(scales + 64 + 16 * sub))
        offset = minimum * to_floats(load_unsigned_bytes(scales + 192 + 16 * sub))
        values = low_and_high(codes + 512 * (sub >> 1), (sub & 1) * 4)
        values = or_codes(values, select_bits(codes + 2048, sub, 0x01010101, 4))
        return add(tile, values, scale, offset, x + codes_step * sub, x_stride, s + scales_step * sub, s_stride)

    return _eight_parts(add_part)


def _sixteen_value_scales(rows, name, layout, product=tile_product):
    """Q2_K, Q3_K and Q6_K: 16 sub-blocks of 16 values, each with its scale (Q2_K: and minimum)."""
    prefetch_part = _prefetch_parts(rows, name, _bytes_per_32_values(name))
    add_low, add_high = product(rows, 4, layout.first_half), product(rows, 4, layout.second_half)
    codes_step, scales_step = layout.codes_step, layout.scales_step
    two, three = name == "k2", name == "k3"

    @helper
    def values_of(codes, half, part):
        # Values 128 half + 32 part + (0..31).
        if two:
            return select_bits(codes + 512 * half, 2 * part, 0x03030303, 0)
        if three:
            low = select_bits(codes + 512 * half, 2 * part, 0x03030303, 0)
            return or_codes(low, select_bits(codes + 1024, 4 * half + part, 0x01010101, 2))
        low = low_and_high(codes + 1024 * half + 512 * (part & 1), (part >> 1) * 4)
        return or_codes(low, select_bits(codes + 2048 + 512 * half, 2 * part, 0x03030303, 4))

    @helper
    def scale_and_offset(d, minimum, address):
        if two:
            both = load_unsigned_bytes(address)
            return d * to_floats(both & splat_int(15)), minimum * to_floats(both >> splat_int(4))
        scale = d * to_floats(load_signed_bytes(address))
        return scale, scale * splat_float(-4.0 if three else -32.0)

    @helper
    def add_part(tile, sub, d, minimum, codes, scales, x, x_stride, s, s_stride, ahead):
        prefetch_part(ahead, sub)
        v = values_of(codes, sub >> 2, sub & 3)
        scale, offset = scale_and_offset(d, minimum, scales + 64 + 32 * sub)
        x_sub, s_sub = x + codes_step * sub, s + scales_step * sub
        tile = add_low(tile, (v[0], v[1], v[2], v[3]), scale, offset, x_sub, x_stride, s_sub, s_stride)
        scale, offset = scale_and_offset(d, minimum, scales + 64 + 32 * sub + 16)
        return add_high(tile, (v[4], v[5], v[6], v[7]), scale, offset, x_sub + 16, x_stride, s_sub, s_stride)

    return _eight_parts(add_part)


def _table_by_superblock(rows, name, layout, product=tile_product):
    """IQ4_XS: 8 sub-blocks of 32 table entries, each with a 6-bit scale (stored as a signed byte)."""
    prefetch_part = _prefetch_parts(rows, name, _bytes_per_32_values(name))
    add = product(rows, 8, layout.total)
    codes_step, scales_step = layout.codes_step, layout.scales_step
    look_up = lookup16(FORMATS["iq4"].table)

    @helper
    def block(tile, codes, scales, x, x_stride, s, s_stride, ahead):
        d = load_halves(scales)
        for sub in range(8):
            prefetch_part(ahead, sub)
            scale = d * to_floats(load_signed_bytes(scales + 32 + 16 * sub))
            n = nibbles(codes + 256 * sub)
            values = (
                look_up(n[0]), look_up(n[1]), look_up(n[2]), look_up(n[3]),
                look_up(n[4]), look_up(n[5]), look_up(n[6]), look_up(n[7]),
            )  # fmt: skip
            offset = scale * splat_float(-128.0)
            tile = add(tile, values, scale, offset, x + codes_step * sub, x_stride, s + scales_step * sub, s_stride)
        return tile

    return block


def _ternary(rows, name, layout, product=tile_product):
    """TQ1_0 and TQ2_0: codes 0, 1, 2 for -1, 0, 1 and one scale per 256 values. The codes stay where they are in their
    bytes, 1, 4, 16 and 64 times too large, and their scales make up for it."""
    prefetch_part = _prefetch_parts(rows, name, 4 * _bytes_per_32_values(name))
    add = product(rows, 8, layout.total, None if rows >= TILE else 0)
    codes_step, scales_step = layout.codes_step, layout.scales_step
    first, second, third, fourth = (_repeated(3 << shift) for shift in (0, 2, 4, 6))

    @helper
    def half_block(tile, scale, offset, codes, x, x_stride, s, s_stride):
        quarter, sixteenth, last = scale * splat_float(0.25), scale * splat_float(0.0625), scale * splat_float(1 / 64)
        tile = add(tile, _masked(codes, first), scale, offset, x, x_stride, s, s_stride)
        x, s = x + codes_step, s + scales_step
        tile = add(tile, _masked(codes, second), quarter, offset, x, x_stride, s, s_stride)
        x, s = x + codes_step, s + scales_step
        tile = add(tile, _masked(codes, third), sixteenth, offset, x, x_stride, s, s_stride)
        x, s = x + codes_step, s + scales_step
        return add(tile, _masked(codes, fourth), last, offset, x, x_stride, s, s_stride)

    @helper
    def block(tile, codes, scales, x, x_stride, s, s_stride, ahead):
        scale = load_halves(scales)
        offset = scale * splat_float(-1.0)
        prefetch_part(ahead, 0)
        tile = half_block(tile, scale, offset, codes, x, x_stride, s, s_stride)
        prefetch_part(ahead, 1)
        x, s = x + 4 * codes_step, s + 4 * scales_step
        return half_block(tile, scale, offset, codes + 512, x, x_stride, s, s_stride)

    return block


BLOCKS = {
    "q8": _blocks_of_32, "q4": _blocks_of_32, "q4m": _blocks_of_32, "q5": _blocks_of_32, "q5m": _blocks_of_32,
    "iq4": _blocks_of_32, "k4": _four_bits_by_superblock, "k5": _five_bits_by_superblock,
    "k2": _sixteen_value_scales, "k3": _sixteen_value_scales, "k6": _sixteen_value_scales,
    "iq4x": _table_by_superblock, "t2": _ternary,
}  # fmt: skip
