"""Interleave the rows of a weight matrix in groups of 16: the compiled half of `edgellm.kernels.packing`.

There is a variant for every type of weights, made from its recipe. A group is packed whole before the next one, so
that every byte of the file is fetched from memory once and every byte of the result written once.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types

from edgellm.kernels.memory import get
from edgellm.kernels.packing import FORMATS, LANES, RECIPES
from edgellm.kernels.records import PACK as F
from edgellm.kernels.simd import INTS, INTS_IR, constant_lanes, helper, instruction, join, share, splat_int

_i8, _i16, _i32, _i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))


def _pointer(builder, address):
    return builder.inttoptr(address, ir.PointerType())


def _rows(builder, source, stride, kind):
    """What lies at ``source`` and at each of the next 15 strides."""
    loaded = []
    for _lane in range(LANES):
        loaded.append(builder.load(_pointer(builder, source), align=1, typ=kind))
        source = builder.add(source, stride)
    return loaded


def _gather(builder, source, stride, element):
    lanes = ir.Constant(ir.VectorType(element, LANES), ir.Undefined)
    for lane, value in enumerate(_rows(builder, source, stride, element)):
        lanes = builder.insert_element(lanes, value, ir.Constant(_i32, lane))
    return lanes


@instruction(INTS, types.int64, types.int64)
def gather_words(builder, source, stride):
    """Four bytes of each of 16 rows."""
    return _gather(builder, source, stride, _i32)


@instruction(INTS, types.int64, types.int64)
def gather_halves(builder, source, stride):
    """Two bytes of each of 16 rows, zero-extended."""
    return builder.zext(_gather(builder, source, stride, _i16), INTS_IR)


@instruction(types.none, types.int64, INTS)
def store_words(builder, target, lanes):
    builder.store(lanes, _pointer(builder, target), align=4)


@instruction(types.none, types.int64, INTS)
def store_halves(builder, target, lanes):
    """The lower two bytes of each lane."""
    builder.store(builder.trunc(lanes, ir.VectorType(_i16, LANES)), _pointer(builder, target), align=2)


@instruction(types.none, types.int64, INTS)
def store_bytes(builder, target, lanes):
    """The lowest byte of each lane."""
    builder.store(builder.trunc(lanes, ir.VectorType(_i8, LANES)), _pointer(builder, target), align=1)


def _transposed(builder, source, stride):
    """Four words of each of 16 rows, as four vectors of 16 lanes.

    Four vectors hold four rows each, every fourth row; transposing them by quarters brings the rows in order.
    """
    rows = _rows(builder, source, stride, ir.VectorType(_i32, 4))
    a, b, c, d = (join(builder, rows[first::4]) for first in range(4))

    def mix(x, y, pattern):  # the pattern, of places in a quarter of x (0-3) and of y (4-7), in all four quarters
        lanes = [4 * quarter + place % 4 + 16 * (place // 4) for quarter in range(4) for place in pattern]
        return builder.shuffle_vector(x, y, constant_lanes(_i32, lanes))

    ab_low, ab_high = mix(a, b, (0, 4, 1, 5)), mix(a, b, (2, 6, 3, 7))
    cd_low, cd_high = mix(c, d, (0, 4, 1, 5)), mix(c, d, (2, 6, 3, 7))
    return [
        mix(low, high, pattern)
        for low, high in ((ab_low, cd_low), (ab_high, cd_high))
        for pattern in ((0, 1, 4, 5), (2, 3, 6, 7))
    ]


@instruction(types.none, types.int64, types.int64, types.int64, types.int64)
def move_four_words(builder, target, source, stride, flip):
    """Interleave four words of each of 16 rows, exclusive-or ``flip``."""
    flips = ir.Constant(INTS_IR, ir.Undefined)
    flips = builder.insert_element(flips, builder.trunc(flip, _i32), ir.Constant(_i32, 0))
    flips = builder.shuffle_vector(flips, flips, constant_lanes(_i32, [0] * LANES))
    for number, lanes in enumerate(_transposed(builder, source, stride)):
        place = builder.add(target, ir.Constant(_i64, 64 * number))
        builder.store(builder.xor(lanes, flips), _pointer(builder, place), align=4)


@instruction(types.none, types.int64, types.int64, types.int64)
def move_eight_halves(builder, target, source, stride):
    """Interleave eight halves of each of 16 rows."""
    halves = ir.VectorType(_i16, LANES)
    for number, lanes in enumerate(_transposed(builder, source, stride)):
        high = builder.lshr(lanes, constant_lanes(_i32, [16] * LANES))
        for part, values in enumerate((lanes, high)):
            place = builder.add(target, ir.Constant(_i64, 64 * number + 32 * part))
            builder.store(builder.trunc(values, halves), _pointer(builder, place), align=2)


# -- sections: f(source, stride, target) for one block of 16 rows ------------------------------------------------


def _words(count, flip):
    @helper
    def words(source, stride, target):
        for element in range(0, count - 3, 4):
            move_four_words(target + 64 * element, source + 4 * element, stride, flip)
        for element in range(count // 4 * 4, count):
            store_words(target + 64 * element, gather_words(source + 4 * element, stride) ^ splat_int(flip))

    return words


def _halves(count):
    @helper
    def halves(source, stride, target):
        for element in range(0, count - 7, 8):
            move_eight_halves(target + 32 * element, source + 2 * element, stride)
        for element in range(count // 8 * 8, count):
            store_halves(target + 32 * element, gather_halves(source + 2 * element, stride))

    return halves


@helper
def _store_four(target, lanes):
    """The four bytes of each lane, one vector of 16 bytes each."""
    store_bytes(target, lanes)
    store_bytes(target + 16, lanes >> splat_int(8))
    store_bytes(target + 32, lanes >> splat_int(16))
    store_bytes(target + 48, lanes >> splat_int(24))


@helper
def _low(lanes, shift, mask):
    return (lanes >> splat_int(shift)) & splat_int(mask)


@helper
def _less_32(lanes):
    """Each byte, which is less than 64, minus 32: bit 5 changes, and is copied to bits 6 and 7 if it is now set."""
    sign = (lanes & splat_int(0x20202020)) ^ splat_int(0x20202020)
    return (lanes ^ splat_int(0x20202020)) | (sign << splat_int(1)) | (sign << splat_int(2))


def _bytes(count):
    @helper
    def single_bytes(source, stride, target):
        for element in range(0, count, 4):
            _store_four(target + 16 * element, gather_words(source + element, stride))

    return single_bytes


@helper
def _k4_scales(source, stride, target):
    """Eight 6-bit scales and eight 6-bit minimums in 12 bytes: the upper two bits of the last four of each lie in the
    upper bits of the first eight bytes."""
    low, high, mixed = (
        gather_words(source, stride),
        gather_words(source + 4, stride),
        gather_words(source + 8, stride),
    )
    _store_four(target, low & splat_int(0x3F3F3F3F))
    _store_four(target + 64, _low(mixed, 0, 0x0F0F0F0F) | _low(low, 2, 0x30303030))
    _store_four(target + 128, high & splat_int(0x3F3F3F3F))
    _store_four(target + 192, _low(mixed, 4, 0x0F0F0F0F) | _low(high, 2, 0x30303030))


@helper
def _k3_scales(source, stride, target):
    """Sixteen 6-bit scales in 12 bytes, minus 32: lower four bits, two in a byte, then the upper two, four in one."""
    first, second, high = (
        gather_words(source, stride),
        gather_words(source + 4, stride),
        gather_words(source + 8, stride),
    )
    four, two = 0x0F0F0F0F, 0x30303030
    _store_four(target, _less_32(_low(first, 0, four) | ((high << splat_int(4)) & splat_int(two))))
    _store_four(target + 64, _less_32(_low(second, 0, four) | ((high << splat_int(2)) & splat_int(two))))
    _store_four(target + 128, _less_32(_low(first, 4, four) | _low(high, 0, two)))
    _store_four(target + 192, _less_32(_low(second, 4, four) | _low(high, 2, two)))


@helper
def _iq4_xs_scales(source, stride, target):
    """Eight 6-bit scales, minus 32: 2 bits of each in the first two bytes, 4 bits in the next four."""
    high, low = gather_halves(source, stride), gather_words(source + 2, stride)
    for element in range(8):
        scale = _low(low, 4 * element, 15) | (_low(high, 2 * element, 3) << splat_int(4))
        store_bytes(target + 16 * element, _less_32(scale))


@helper
def _swapped(lanes, mask, shift):
    """Bits under the mask and those ``shift`` above them change places."""
    changed = (lanes ^ (lanes >> splat_int(shift))) & splat_int(mask)
    return lanes ^ changed ^ (changed << splat_int(shift))


@helper
def _unshuffled(lanes):
    """Even bits to the lower half, odd ones to the upper (Warren, Hacker's Delight, section 7-2)."""
    lanes = _swapped(_swapped(lanes, 0x22222222, 1), 0x0C0C0C0C, 2)
    return _swapped(_swapped(lanes, 0x00F000F0, 4), 0x0000FF00, 8)


@helper
def _fifth_bits(source, stride, target):
    """The 32 fifth bits (one integer, bit k for value k) -> 4 bytes, bit j of byte b for value 4 j + b."""
    store_words(target, _unshuffled(_unshuffled(gather_words(source, stride))))


_UNPACK = {"k3": _k3_scales, "k4": _k4_scales, "iq4_xs": _iq4_xs_scales, "fifth": _fifth_bits}


def _mover(section):
    if section.unpack:
        return _UNPACK[section.unpack]
    return (
        {1: _bytes, 2: _halves}[section.size](section.count)
        if section.size < 4
        else _words(section.count, section.flip)
    )


def _step(section, before):
    """``f(source, stride, codes, scales)``: what ``before`` does, then one section."""
    move = _mover(section)
    offset, target, to_scales = section.source, section.target, section.to_scales

    @helper
    def step(source, stride, codes, scales):
        before(source, stride, codes, scales)
        move(source + offset, stride, (scales if to_scales else codes) + target)

    return step


@helper
def _nothing(source, stride, codes, scales):
    pass


def _quantized(recipe, layout):
    """``f(source, stride, target, blocks)`` for one group of blocks."""
    pack_block = _nothing
    for section in recipe.sections:
        pack_block = _step(section, pack_block)
    block_bytes = recipe.block_bytes
    codes_at, scales_at = (helper(place) for place in layout.places())

    @helper
    def pack_group(source, stride, target, blocks):
        for block in range(blocks):
            pack_block(source + block * block_bytes, stride, target + codes_at(block), target + scales_at(block))

    return pack_group


def _plain(size):
    """``f(source, stride, target, columns)`` for one group of plain numbers of ``size`` bytes."""
    if size == 4:

        @helper
        def pack_group(source, stride, target, columns):
            for column in range(0, columns - 3, 4):
                move_four_words(target + 64 * column, source + 4 * column, stride, 0)
            for column in range(columns // 4 * 4, columns):
                store_words(target + 64 * column, gather_words(source + 4 * column, stride))
    else:

        @helper
        def pack_group(source, stride, target, columns):
            for column in range(0, columns - 7, 8):
                move_eight_halves(target + 32 * column, source + 2 * column, stride)
            for column in range(columns // 8 * 8, columns):
                store_halves(target + 32 * column, gather_halves(source + 2 * column, stride))

    return pack_group


VARIANTS = tuple(RECIPES)


def kernel(variant):
    """The kernel that packs weights of one type; only whole groups of 16 rows."""
    recipe = RECIPES[variant]
    layout = FORMATS[recipe.format]
    pack_group = _quantized(recipe, layout) if layout.scale_bytes else _plain(recipe.block_bytes)

    def pack(record, thread, threads):
        source, stride, blocks = get(record, F.source), get(record, F.source_stride), get(record, F.blocks)
        target, group_bytes = get(record, F.target), get(record, F.group_bytes)
        first, end = share(get(record, F.groups), thread, threads)
        for group in range(first, end):
            pack_group(source + group * LANES * stride, stride, target + group * group_bytes, blocks)

    return pack
