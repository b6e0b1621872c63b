"""Memory and functions of vectors of 16 float64, for the kernels that compute in float64."""

from __future__ import annotations

import operator

from llvmlite import ir
from numba.core import types

from edgellm.kernels.simd import (
    DOUBLES,
    DOUBLES_IR,
    LANES,
    arithmetic,
    call_named,
    chooser,
    constant_lanes,
    helper,
    instruction,
    reduce_lanes,
    splat_double,
    splat_ir,
)

_i64, _f64 = ir.IntType(64), ir.DoubleType()
_LONGS_IR = ir.VectorType(_i64, LANES)
SIZE = 8  # bytes of a number

arithmetic(operator.truediv, DOUBLES, lambda builder, a, b: builder.fdiv(a, b))


def _load(builder, address, kind):
    return builder.load(builder.inttoptr(address, ir.PointerType()), align=8, typ=kind)


@instruction(types.float64, types.int64)
def double_at(builder, address):
    return _load(builder, address, _f64)


@instruction(types.none, types.int64, types.float64)
def set_double(builder, address, value):
    builder.store(value, builder.inttoptr(address, ir.PointerType()), align=8)


@instruction(DOUBLES, types.int64)
def load_doubles(builder, address):
    return _load(builder, address, DOUBLES_IR)


@instruction(types.none, types.int64, DOUBLES)
def store_doubles(builder, address, value):
    builder.store(value, builder.inttoptr(address, ir.PointerType()), align=8)


@instruction(DOUBLES, DOUBLES, DOUBLES, DOUBLES)
def multiply_add_doubles(builder, a, b, c):
    """a * b + c, in one rounding where the CPU can."""
    return call_named(builder, "llvm.fmuladd.v16f64", DOUBLES_IR, [a, b, c])


maximum_doubles, minimum_doubles = chooser(DOUBLES, ">"), chooser(DOUBLES, "<")


@instruction(DOUBLES, DOUBLES)
def absolute_doubles(builder, a):
    return call_named(builder, "llvm.fabs.v16f64", DOUBLES_IR, [a])


@instruction(types.float64, DOUBLES)
def max_double_lanes(builder, vector):
    """The largest lane; where there is no number among them, perhaps another."""
    return reduce_lanes(builder, vector, lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))


_ROUNDING = 6755399441055744.0  # 1.5 * 2^52: adding it leaves the rounded integer in the low mantissa bits


@instruction(DOUBLES, DOUBLES)
def _power_of_two(builder, shifted):
    """2^n of a whole number n from -1022 to 1023 to which `_ROUNDING` was added."""
    bits = builder.add(builder.bitcast(shifted, _LONGS_IR), constant_lanes(_i64, [1023] * LANES))
    return builder.bitcast(builder.shl(bits, constant_lanes(_i64, [52] * LANES)), DOUBLES_IR)


_TAYLOR = tuple(1.0 / factor for factor in (39916800, 3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2, 1, 1))


@helper
def exponential_doubles(value):
    """e^x with a relative error of about 1e-14: 2^n times Taylor's series of the remainder, which is at most ln(2) / 2.

    What is beyond -708 and 709 counts as these; what is not a number stays so.
    """
    value = minimum_doubles(splat_double(709.0), maximum_doubles(splat_double(-708.0), value))
    shifted = multiply_add_doubles(value, splat_double(1.4426950408889634), splat_double(_ROUNDING))
    n = shifted - splat_double(_ROUNDING)
    r = multiply_add_doubles(n, splat_double(-0.693147180369123816490), value)  # ln(2) in two parts, so that n times
    r = multiply_add_doubles(n, splat_double(-1.90821492927058770002e-10), r)  # the first is exact
    p = splat_double(_TAYLOR[0])
    for number in range(1, 12):
        p = multiply_add_doubles(p, r, splat_double(_TAYLOR[number]))
    return p * _power_of_two(shifted)


# -- tiles -------------------------------------------------------------------------------------------------------


def tile_type(rows):
    """The sums of so many rows, 16 columns each."""
    return types.UniTuple(DOUBLES, rows)


def tile_of(rows):
    """An instruction: every row is a given vector."""

    @instruction(tile_type(rows), DOUBLES)
    def make(builder, value):
        tile = ir.Constant(ir.ArrayType(DOUBLES_IR, rows), ir.Undefined)
        for row in range(rows):
            tile = builder.insert_value(tile, value, row)
        return tile

    return make


def add_products(rows):
    """An instruction: add the products of a vector and a number of each row, ``stride`` bytes apart from ``place``."""

    @instruction(tile_type(rows), tile_type(rows), DOUBLES, types.int64, types.int64)
    def add(builder, tile, vector, place, stride):
        for row in range(rows):
            value = splat_ir(builder, _load(builder, place, _f64))
            total = builder.extract_value(tile, row)
            total = call_named(builder, "llvm.fmuladd.v16f64", DOUBLES_IR, [vector, value, total])
            tile = builder.insert_value(tile, total, row)
            place = builder.add(place, stride)
        return tile

    return add


def add_there(rows):
    """An instruction: add what is stored at ``place`` and every ``stride`` bytes from there."""

    @instruction(tile_type(rows), tile_type(rows), types.int64, types.int64)
    def add(builder, tile, place, stride):
        for row in range(rows):
            total = builder.fadd(builder.extract_value(tile, row), _load(builder, place, DOUBLES_IR))
            tile = builder.insert_value(tile, total, row)
            place = builder.add(place, stride)
        return tile

    return add


def store_rows(rows):
    """An instruction: store at ``place`` and every ``stride`` bytes from there."""

    @instruction(types.none, tile_type(rows), types.int64, types.int64)
    def store(builder, tile, place, stride):
        for row in range(rows):
            builder.store(builder.extract_value(tile, row), builder.inttoptr(place, ir.PointerType()), align=8)
            place = builder.add(place, stride)

    return store
