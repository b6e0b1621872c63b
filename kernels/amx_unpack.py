"""Packed weights to bfloat16 in the order of AMX tiles, 16 weight rows at a time.

A tile takes 32 values of 16 rows; its row p holds, for each weight row, the values 2 p and 2 p + 1.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from edgellm.kernels.amx_input import to_bfloats_ir
from edgellm.kernels.amx_layout import STEP
from edgellm.kernels.blocks import fifth_bits, low_and_high, nibbles, or_codes, select_bits
from edgellm.kernels.memory import load_bfloats, load_halves, load_ints, load_signed_bytes, load_unsigned_bytes
from edgellm.kernels.packing import FORMATS
from edgellm.kernels.products import lookup16
from edgellm.kernels.simd import (
    FLOATS,
    INTS,
    INTS_IR,
    call_named,
    constant_lanes,
    float_bits,
    helper,
    instruction,
    ints_constant,
    splat_float,
    splat_int,
    to_floats,
    where_not_greater,
)

_f32 = ir.FloatType()
FLOATS_IR = ir.VectorType(_f32, 16)
PANEL_STEP_BYTES = 2048  # from one 32 values to the next: the tiles of two groups lie side by side


def _store_pair(builder, low, high, address, offset):
    """Two vectors of bfloat16, given as the upper halves of int32 lanes, side by side."""
    word = builder.or_(builder.and_(high, ints_constant(0xFFFF0000)), builder.lshr(low, ints_constant(16)))
    place = builder.add(address, ir.Constant(ir.IntType(64), offset))
    builder.store(word, builder.inttoptr(place, ir.PointerType()), align=4)


def _no_payload(builder, value):
    """The same vector with one kind of NaN, which rounding by adding cannot carry into the sign."""
    bits = builder.bitcast(value, INTS_IR)
    size = builder.and_(bits, ints_constant(0x7FFFFFFF))
    no_number = builder.icmp_unsigned(">", size, ints_constant(0x7F800000))
    return builder.bitcast(builder.select(no_number, ints_constant(0x7FC00000), bits), FLOATS_IR)


_CODES = types.UniTuple(INTS, 8)


@intrinsic
def write_tile(context, codes, scale, offset, second_scale, second_offset, address):
    """Write the tile of 32 values of 16 rows, ``scale * code + offset``; the second 16 values have their own.

    ``codes``: 8 vectors of 4 unsigned bytes a row. A code is not converted to a float but put into the mantissa of
    1.0, which makes it 1 + code / 256: one fused operation then gives weight = 256 scale * that + (offset - 256 scale).
    Rounding to bfloat16 takes halves away from zero.
    """

    def codegen(context, builder, _signature, values):
        codes, address = values[0], values[5]
        fused = "llvm.fmuladd.v16f32"
        for half in (0, 1):
            scale = _no_payload(builder, values[1 + 2 * half])
            large = builder.fmul(scale, constant_lanes(_f32, [256.0] * 16))
            rest = builder.fsub(_no_payload(builder, values[2 + 2 * half]), large)
            for number in range(4 * half, 4 * half + 4):
                vector = builder.extract_value(codes, number)
                halves = []
                for shift in (15, 7, -1, -9):  # the byte's place to the upper bits of the mantissa
                    move = builder.shl if shift > 0 else builder.lshr
                    mantissa = builder.and_(move(vector, ints_constant(abs(shift))), ints_constant(0xFF << 15))
                    one_and = builder.bitcast(builder.or_(mantissa, ints_constant(0x3F800000)), FLOATS_IR)
                    weight = call_named(builder, fused, FLOATS_IR, [one_and, large, rest])
                    halves.append(builder.add(builder.bitcast(weight, INTS_IR), ints_constant(0x8000)))
                _store_pair(builder, halves[0], halves[1], address, 128 * number)
                _store_pair(builder, halves[2], halves[3], address, 128 * number + 64)
        return context.get_dummy_value()

    parameters = (_CODES, FLOATS, FLOATS, FLOATS, FLOATS, types.int64)
    return types.none(*parameters), codegen


@instruction(types.none, types.int64, FLOATS, FLOATS)
def store_bfloat_pairs(builder, address, low, high):
    """One row of a tile: two values of each weight row."""
    _store_pair(builder, to_bfloats_ir(builder, low), to_bfloats_ir(builder, high), address, 0)


# -- one function for each format: the codes of the 32 values number ``sub`` of a block, and their scales ---------


def _codes_function(name):
    look_up = lookup16(FORMATS["iq4"].table)

    @helper
    def looked_up(n):
        return (
            look_up(n[0]), look_up(n[1]), look_up(n[2]), look_up(n[3]),
            look_up(n[4]), look_up(n[5]), look_up(n[6]), look_up(n[7]),
        )  # fmt: skip

    @helper
    def bytes_of(codes, sub):
        return (
            load_ints(codes), load_ints(codes + 64), load_ints(codes + 128), load_ints(codes + 192),
            load_ints(codes + 256), load_ints(codes + 320), load_ints(codes + 384), load_ints(codes + 448),
        )  # fmt: skip

    @helper
    def nibbles_of(codes, sub):
        return nibbles(codes)

    @helper
    def five_bits(codes, sub):
        return fifth_bits(load_ints(codes + 256), nibbles(codes))

    @helper
    def table_of_block(codes, sub):
        return looked_up(nibbles(codes))

    @helper
    def table_of_superblock(codes, sub):
        return looked_up(nibbles(codes + 256 * sub))

    @helper
    def two_bits(codes, sub):
        return select_bits(codes + 512 * (sub >> 2), 2 * (sub & 3), 0x03030303, 0)

    @helper
    def three_bits(codes, sub):
        return or_codes(two_bits(codes, sub), select_bits(codes + 1024, sub, 0x01010101, 2))

    @helper
    def four_bits(codes, sub):
        return low_and_high(codes + 512 * (sub >> 1), (sub & 1) * 4)

    @helper
    def four_and_one_bits(codes, sub):
        return or_codes(four_bits(codes, sub), select_bits(codes + 2048, sub, 0x01010101, 4))

    @helper
    def four_and_two_bits(codes, sub):
        low = low_and_high(codes + 1024 * (sub >> 2) + 512 * (sub & 1), ((sub & 3) >> 1) * 4)
        return or_codes(low, select_bits(codes + 2048 + 512 * (sub >> 2), 2 * (sub & 3), 0x03030303, 4))

    return {
        "q8": bytes_of, "q4": nibbles_of, "q4m": nibbles_of, "q5": five_bits, "q5m": five_bits, "iq4": table_of_block,
        "k2": two_bits, "k3": three_bits, "k4": four_bits, "k5": four_and_one_bits, "k6": four_and_two_bits,
        "iq4x": table_of_superblock, "t2": two_bits,
    }[name]  # fmt: skip


def _scales_function(name):
    """(scales, sub, normal) -> scale and offset of the first and of the second 16 values."""
    zero = {"q8": -128.0, "q4": -8.0, "q5": -16.0, "iq4": -128.0, "iq4x": -128.0, "k3": -4.0, "k6": -32.0}.get(
        name, 0.0
    )

    @helper
    def one_scale(scales, sub, normal):
        scale = load_halves(scales)
        offset = scale * splat_float(zero)
        return scale, offset, scale, offset

    @helper
    def scale_and_minimum(scales, sub, normal):
        scale, offset = load_halves(scales), load_halves(scales + 32)
        return scale, offset, scale, offset

    @helper
    def small_scale(scales, sub, normal):
        scale = load_halves(scales) * to_floats(load_signed_bytes(scales + 32 + 16 * sub))
        offset = scale * splat_float(zero)
        return scale, offset, scale, offset

    @helper
    def small_scale_and_minimum(scales, sub, normal):
        scale = load_halves(scales) * to_floats(load_unsigned_bytes(scales + 64 + 16 * sub))
        minimum = splat_float(0.0) - load_halves(scales + 32)
        offset = minimum * to_floats(load_unsigned_bytes(scales + 192 + 16 * sub))
        return scale, offset, scale, offset

    @helper
    def two_nibbles(scales, sub, normal):
        d, minimum = load_halves(scales), splat_float(0.0) - load_halves(scales + 32)
        a, b = load_unsigned_bytes(scales + 64 + 32 * sub), load_unsigned_bytes(scales + 80 + 32 * sub)
        low, four = splat_int(15), splat_int(4)
        return (
            d * to_floats(a & low), minimum * to_floats(a >> four),
            d * to_floats(b & low), minimum * to_floats(b >> four),
        )  # fmt: skip

    @helper
    def two_scales(scales, sub, normal):
        d = load_halves(scales)
        a = d * to_floats(load_signed_bytes(scales + 64 + 32 * sub))
        b = d * to_floats(load_signed_bytes(scales + 80 + 32 * sub))
        return a, a * splat_float(zero), b, b * splat_float(zero)

    @helper
    def normalized(scales, sub, normal):
        scale = load_halves(scales) * normal
        offset = scale * splat_float(-1.0)
        return scale, offset, scale, offset

    return {
        "q8": one_scale, "q4": one_scale, "q5": one_scale, "iq4": one_scale, "q4m": scale_and_minimum,
        "q5m": scale_and_minimum, "iq4x": small_scale, "k4": small_scale_and_minimum, "k5": small_scale_and_minimum,
        "k2": two_nibbles, "k3": two_scales, "k6": two_scales, "t2": normalized,
    }[name]  # fmt: skip


def row_scales(name):
    """(weights, blocks) -> 16 factors that the products of a group of rows are multiplied by in the end.

    Ternary weights mostly have one scale for a whole matrix. As weights are divided by the scale of their row's first
    block, they become -1, 0 and 1 then, which bfloat16 holds exactly.
    """
    if name != "t2":

        @helper
        def ones(weights, blocks):
            return splat_float(1.0)

        return ones
    first = FORMATS[name].places()[1](0)

    @helper
    def first_scales(weights, blocks):
        scale = load_halves(weights + first)
        size = float_bits(scale) & splat_int(0x7FFFFFFF)
        return where_not_greater(size, splat_int(0x007FFFFF), splat_float(1.0), scale)

    return first_scales


def unpacker(name):
    """(weights, blocks, first, count, panel): write ``count`` tiles of a group, from its 32 values number ``first`` on.

    ``weights`` is the group's address, ``blocks`` the number of blocks in its rows; in formats with blocks of 256
    values ``first`` and ``count`` are multiples of 8.
    """
    if name == "bf16":
        return _bfloat_unpacker()
    layout = FORMATS[name]
    codes_at, scales_at = (helper(place) for place in layout.places())
    subs = layout.values // STEP
    codes_of, scales_of, normals = _codes_function(name), _scales_function(name), row_scales(name)

    @helper
    def unpack(weights, blocks, first, count, panel):
        normal = splat_float(1.0) / normals(weights, blocks)
        for block in range(first // subs, (first + count) // subs):
            for sub in range(subs):
                codes = codes_of(weights + codes_at(block), sub)
                a, b, c, d = scales_of(weights + scales_at(block), sub, normal)
                write_tile(codes, a, b, c, d, panel)
                panel += PANEL_STEP_BYTES

    return unpack


def _bfloat_unpacker():
    size = FORMATS["bf16"].code_bytes

    @helper
    def unpack(weights, blocks, first, count, panel):
        source = weights + first * STEP * size
        for step in range(count):
            for pair in range(16):
                place = source + (STEP * step + 2 * pair) * size
                low, high = load_bfloats(place), load_bfloats(place + size)
                store_bfloat_pairs(panel + PANEL_STEP_BYTES * step + 64 * pair, low, high)

    return unpack
