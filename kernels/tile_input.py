"""Activations for products of many rows: float32 rows to int8 codes and scales, in tiles (see `tile_layout`).

Codes and scales are those of `edgellm.kernels.quantize`. A tile's eight rows are quantized together: their largest
magnitudes, and later their sums, are found by folding eight vectors into one, where one row after the other would wait
for each of its own. Rows beyond the last, up to a multiple of eight, are read and written
all the same: there must be room for them.

Variants: ``int8``; ``int8_fine`` with remainders; ``codes``, whose input is quantized already, as rows of codes and
scales, which are only brought in the order of tiles.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types

from edgellm.kernels.memory import copy_int32, get, int64_at
from edgellm.kernels.quantize import FINE_STEP, NOT_FINITE, STEP
from edgellm.kernels.records import TILE_INPUT as F
from edgellm.kernels.simd import (
    DOUBLES_IR,
    FLOATS_IR,
    INTS_IR,
    LANES,
    call_named,
    constant_lanes,
    helper,
    instruction,
    ints_constant,
    rounded_ir,
    share,
)
from edgellm.kernels.tile_layout import KIND, PIECE_BYTES, ROWS, SCALES

VARIANTS = ("int8", "int8_fine", "codes")
_i8, _i32, _i64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def _doubles(value):
    """The same float64 in all lanes."""
    return constant_lanes(ir.DoubleType(), [value] * LANES)


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
    """Scale of each row and its inverse, in float64, from pairs of vectors."""
    magnitude, larger = ints_constant(0x7FFFFFFF), _larger(builder)
    bits = [[builder.and_(builder.bitcast(half, INTS_IR), magnitude) for half in row] for row in rows]
    # As integers the bits of magnitudes are in the order of the numbers, and what is not finite comes last.
    peak_bits = fold(builder, [larger(*row) for row in bits], larger)
    peaks = builder.fpext(builder.bitcast(peak_bits, FLOATS_IR), DOUBLES_IR)
    finite = builder.icmp_signed("<", peak_bits, ints_constant(NOT_FINITE))
    nan, none = _doubles(float("nan")), _doubles(0.0)
    d = builder.select(finite, builder.fmul(peaks, _doubles(STEP)), nan)
    usable = builder.fcmp_ordered(">", peaks, _doubles(1e-30))
    return d, builder.select(usable, builder.fdiv(_doubles(127.0), peaks), none)


def _lane(builder, vector, number):
    return builder.shuffle_vector(vector, vector, constant_lanes(_i32, [number] * LANES))


def _codes_ir(builder, rows, inverses):
    """Pairs of vectors, each multiplied by its row's number and rounded."""
    codes, inverses = [], builder.fptrunc(inverses, FLOATS_IR)
    for number, row in enumerate(rows):
        inverse = _lane(builder, inverses, number)
        codes.append([rounded_ir(builder, builder.fmul(half, inverse)) for half in row])
    return codes


def _rests_ir(builder, rows, codes, d):
    """What the codes leave of their values."""
    negatives, rests = builder.fptrunc(builder.fsub(_doubles(0.0), d), FLOATS_IR), []
    for number, (row, row_codes) in enumerate(zip(rows, codes, strict=True)):
        negative = _lane(builder, negatives, number)
        pairs = [(builder.sitofp(code, FLOATS_IR), half) for code, half in zip(row_codes, row, strict=True)]
        rests.append(
            [call_named(builder, "llvm.fmuladd.v16f32", FLOATS_IR, [code, negative, half]) for code, half in pairs]
        )
    return rests


def _kinds_ir(builder, codes, d):
    """What a piece holds of its rows beside the codes: vectors with a lane for each row."""
    sixteen = ints_constant(16)
    both = [builder.add(low, builder.shl(high, sixteen)) for low, high in codes]  # one number holds both sums
    sums = fold(builder, both, builder.add)
    low = builder.ashr(builder.shl(sums, sixteen), sixteen)
    high = builder.ashr(builder.sub(sums, low), sixteen)
    low, high = (builder.fmul(d, builder.sitofp(half, DOUBLES_IR)) for half in (low, high))
    return [builder.fptrunc(kind, FLOATS_IR) for kind in (d, builder.fadd(low, high), low, high)]


def _write_ir(builder, piece, codes, kinds):
    """Eight rows of codes and eight lanes of each kind."""
    for number, row in enumerate(codes):
        for half, values in enumerate(row):
            _store(builder, builder.trunc(values, ir.VectorType(_i8, LANES)), piece, 32 * number + 16 * half, 1)
    for number, values in enumerate(kinds):
        _store(builder, values, piece, SCALES + KIND * number, 4)


def _load_ir(builder, source, stride):
    """32 values of eight rows, ``stride`` bytes apart: pairs of vectors."""
    rows = []
    for _ in range(ROWS):
        places = (source, builder.add(source, ir.Constant(_i64, 64)))
        rows.append([
            builder.load(builder.inttoptr(place, ir.PointerType()), align=4, typ=FLOATS_IR) for place in places
        ])  # fmt: skip
        source = builder.add(source, stride)
    return rows


@instruction(types.none, types.int64, types.int64, types.int64, types.int64)
def _quantize_tile(builder, source, stride, piece, _next):
    """32 values of eight rows to a piece."""
    rows = _load_ir(builder, source, stride)
    d, inverses = _scales_ir(builder, rows)
    codes = _codes_ir(builder, rows, inverses)
    eight = constant_lanes(_i32, range(ROWS))
    kinds = [builder.shuffle_vector(kind, kind, eight) for kind in _kinds_ir(builder, codes, d)]
    _write_ir(builder, piece, codes, kinds)


@instruction(types.none, types.int64, types.int64, types.int64, types.int64)
def _quantize_fine_tiles(builder, source, stride, piece, next_piece):
    """32 values of eight rows, each followed by its remainder, to two pieces."""
    rows = _load_ir(builder, source, stride)
    d, inverses = _scales_ir(builder, rows)
    codes = _codes_ir(builder, rows, inverses)
    finer = builder.fmul(inverses, _doubles(254.0))
    rests = _codes_ir(builder, _rests_ir(builder, rows, codes, d), finer)
    fine_d = builder.fmul(d, _doubles(FINE_STEP))
    kinds = list(zip(_kinds_ir(builder, codes, d), _kinds_ir(builder, rests, fine_d), strict=True))
    for first, place in ((0, piece), (ROWS // 2, next_piece)):
        numbers = range(first, first + ROWS // 2)
        lanes = constant_lanes(_i32, [lane for number in numbers for lane in (number, LANES + number)])
        in_turn = [row for number in numbers for row in (codes[number], rests[number])]
        _write_ir(builder, place, in_turn, [builder.shuffle_vector(*pair, lanes) for pair in kinds])


@helper
def _copy_row(codes, scales, piece, row):
    """32 codes and their scales to a piece."""
    for place in range(0, 32, 4):
        copy_int32(piece + 32 * row + place, codes + place)
    for kind in range(4):
        copy_int32(piece + SCALES + KIND * kind + 4 * row, scales + 4 * kind)


def _arrange(record, thread, threads):
    rows, blocks = int64_at(get(record, F.rows)), get(record, F.blocks)
    stride, scales_stride = get(record, F.input_stride), get(record, F.scales_stride)
    first, end = share((rows + ROWS - 1) // ROWS * blocks, thread, threads)
    for item in range(first, end):
        tile, block = item // blocks, item % blocks
        codes = get(record, F.input) + ROWS * tile * stride + 32 * block
        scales = get(record, F.scales) + ROWS * tile * scales_stride + 16 * block
        piece = get(record, F.output) + item * PIECE_BYTES
        for row in range(ROWS):
            _copy_row(codes + row * stride, scales + row * scales_stride, piece, row)


def kernel(variant):
    """The kernel that writes all rows; pieces are shared among the threads."""
    if variant == "codes":
        return _arrange
    quantize, tiles = (_quantize_fine_tiles, 2) if variant == "int8_fine" else (_quantize_tile, 1)

    def pack(record, thread, threads):
        rows, blocks, stride = int64_at(get(record, F.rows)), get(record, F.blocks), get(record, F.input_stride)
        first, end = share((rows + ROWS - 1) // ROWS * blocks, thread, threads)
        for item in range(first, end):
            tile, block = item // blocks, item % blocks
            source = get(record, F.input) + ROWS * tile * stride + 128 * block
            piece = get(record, F.output) + (tiles * tile * blocks + block) * PIECE_BYTES
            quantize(source, stride, piece, piece + blocks * PIECE_BYTES)

    return pack
