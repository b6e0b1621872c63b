"""Activations for products of many rows: float32 rows to int8 codes and scales, in tiles (see `tile_layout`).

Codes and scales are those of `edgellm.kernels.quantize`. A tile's eight rows are quantized together: their largest
magnitudes, and later their sums, are found by folding eight vectors into one, where one row after the other would wait
for each of its own. Rows of the last tile that are not there are read all the same: the input must hold whole tiles.

Variants: ``int8``, and ``int8_fine`` with remainders.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types

from edgellm.kernels.quantize import NOT_FINITE, quantize_values
from edgellm.kernels.records import TILE_INPUT as F
from edgellm.kernels.simd import (
    FLOATS_IR,
    INTS_IR,
    LANES,
    constant_lanes,
    get,
    helper,
    instruction,
    int64_at,
    ints_constant,
    load_floats,
    rounded_ir,
    set_float,
    share,
    store_bytes,
)
from edgellm.kernels.tile_layout import KIND, PIECE_BYTES, ROWS, SCALES, rows_of_tile

VARIANTS = ("int8", "int8_fine")
_i8, _i32, _i64, _f32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()


def fold(builder, vectors, combine):
    """Eight vectors as one: lane r, and lane r + 8, combine all lanes of vector r."""

    def pick(a, b, lane_of):
        return builder.shuffle_vector(a, b, constant_lanes(_i32, [lane_of(lane) for lane in range(LANES)]))

    bit = 1
    while len(vectors) > 1:
        # Lanes whose number has the bit are taken from the second of two vectors.
        vectors = [
            combine(
                pick(a, b, lambda lane: lane ^ bit | LANES if lane & bit else lane),  # noqa: B023
                pick(a, b, lambda lane: lane | LANES if lane & bit else lane | bit),  # noqa: B023
            )
            for a, b in zip(vectors[::2], vectors[1::2], strict=True)
        ]
        bit *= 2
    return combine(vectors[0], pick(vectors[0], vectors[0], lambda lane: lane ^ ROWS))


def _store(builder, value, place, offset, align):
    place = builder.inttoptr(builder.add(place, ir.Constant(_i64, offset)), ir.PointerType())
    builder.store(value, place, align=align)


def _larger(builder):
    return lambda a, b: builder.select(builder.icmp_signed(">", a, b), a, b)


def _scales_ir(builder, rows):
    """Scale of each row and its inverse, from pairs of vectors."""
    magnitude, larger = ints_constant(0x7FFFFFFF), _larger(builder)
    bits = [[builder.and_(builder.bitcast(half, INTS_IR), magnitude) for half in row] for row in rows]
    # As integers the bits of magnitudes are in the order of the numbers, and what is not finite comes last.
    peak_bits = fold(builder, [larger(*row) for row in bits], larger)
    peaks = builder.bitcast(peak_bits, FLOATS_IR)
    finite = builder.icmp_signed("<", peak_bits, ints_constant(NOT_FINITE))
    nan, none = constant_lanes(_f32, [float("nan")] * LANES), constant_lanes(_f32, [0.0] * LANES)
    d = builder.select(finite, builder.fmul(peaks, constant_lanes(_f32, [1 / 127] * LANES)), nan)
    usable = builder.fcmp_ordered(">", peaks, constant_lanes(_f32, [1e-30] * LANES))
    return d, builder.select(usable, builder.fdiv(constant_lanes(_f32, [127.0] * LANES), peaks), none)


@instruction(types.none, types.int64, types.int64, types.int64)
def _quantize_tile(builder, source, stride, piece):
    """32 values of eight rows, ``stride`` bytes apart, to a piece."""
    rows = []
    for _ in range(ROWS):
        places = (source, builder.add(source, ir.Constant(_i64, 64)))
        pointers = [builder.inttoptr(place, ir.PointerType()) for place in places]
        rows.append([builder.load(pointer, align=4, typ=FLOATS_IR) for pointer in pointers])
        source = builder.add(source, stride)
    d, inverses = _scales_ir(builder, rows)
    both = []
    for number, row in enumerate(rows):
        inverse = builder.shuffle_vector(inverses, inverses, constant_lanes(_i32, [number] * LANES))
        low, high = (rounded_ir(builder, builder.fmul(half, inverse)) for half in row)
        for half, codes in enumerate((low, high)):
            _store(builder, builder.trunc(codes, ir.VectorType(_i8, LANES)), piece, 32 * number + 16 * half, 1)
        both.append(builder.add(low, builder.shl(high, ints_constant(16))))  # the sums of both fit one number
    sums, sixteen = fold(builder, both, builder.add), ints_constant(16)
    low = builder.ashr(builder.shl(sums, sixteen), sixteen)
    high = builder.ashr(builder.sub(sums, low), sixteen)
    low, high = (builder.fmul(d, builder.sitofp(half, FLOATS_IR)) for half in (low, high))
    for kind, values in enumerate((d, builder.fadd(low, high), low, high)):
        eight = builder.shuffle_vector(values, values, constant_lanes(_i32, range(ROWS)))
        _store(builder, eight, piece, SCALES + KIND * kind, 4)


@helper
def _write(piece, row, block):
    """A quantized block as row ``row`` of a piece."""
    low, high, d, low_sum, high_sum = block
    store_bytes(piece + 32 * row, low)
    store_bytes(piece + 32 * row + 16, high)
    scales = piece + SCALES + 4 * row
    set_float(scales, d)
    set_float(scales + KIND, low_sum + high_sum)
    set_float(scales + 2 * KIND, low_sum)
    set_float(scales + 3 * KIND, high_sum)


@helper
def _quantize_fine_tile(source, stride, piece):
    """32 values of four rows and their remainders."""
    for row in range(ROWS // 2):
        place = source + row * stride
        plain, rest = quantize_values(load_floats(place), load_floats(place + 64))
        _write(piece, 2 * row, plain)
        _write(piece, 2 * row + 1, rest)


def kernel(variant):
    """The kernel that writes all rows; pieces are shared among the threads."""
    fine = variant == "int8_fine"
    rows_in_tile, quantize_tile = rows_of_tile(fine), _quantize_fine_tile if fine else _quantize_tile

    def pack(record, thread, threads):
        rows, blocks, stride = int64_at(get(record, F.rows)), get(record, F.blocks), get(record, F.input_stride)
        first, end = share((rows + rows_in_tile - 1) // rows_in_tile * blocks, thread, threads)
        for item in range(first, end):
            tile, block = item // blocks, item % blocks
            source = get(record, F.input) + rows_in_tile * tile * stride + 128 * block
            quantize_tile(source, stride, get(record, F.output) + item * PIECE_BYTES)

    return pack
