"""Instructions on a tile of queries: the sums of each are one or two vectors, and all of them stay in registers.

The loops over the queries of a tile are unrolled while the instructions are written.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from edgellm.kernels.simd import FLOATS, FLOATS_IR, add_exactly_ir, call_named, splat_ir

_i64, _f32 = ir.IntType(64), ir.FloatType()


def _pointer(builder, address, offset=0):
    return builder.inttoptr(builder.add(address, ir.Constant(_i64, offset)), ir.PointerType())


def _made(builder, context, kind, elements):
    """A tuple of values."""
    result = ir.Constant(context.get_value_type(kind), ir.Undefined)
    for number, element in enumerate(elements):
        result = builder.insert_value(result, element, number)
    return result


def _elements(builder, value, count):
    return [builder.extract_value(value, number) for number in range(count)]


def spread(tile):
    """``f(address, stride)``: the addresses of so many queries' parts, ``stride`` bytes apart."""
    addresses = types.UniTuple(types.int64, tile)

    def codegen(context, builder, _signature, values):
        places = [values[0]]
        for _ in range(tile - 1):
            places.append(builder.add(places[-1], values[1]))
        return _made(builder, context, addresses, places)

    @intrinsic
    def spread_addresses(context, address, stride):
        return addresses(types.int64, types.int64), codegen

    return spread_addresses


def load_addresses(tile, stride):
    """``f(place)``: the addresses that stand at ``place``, ``stride`` bytes apart."""
    addresses = types.UniTuple(types.int64, tile)

    def codegen(context, builder, _signature, values):
        places = [_pointer(builder, values[0], stride * number) for number in range(tile)]
        return _made(builder, context, addresses, [builder.load(place, align=8, typ=_i64) for place in places])

    @intrinsic
    def load(context, place):
        return addresses(types.int64), codegen

    return load


def zeros(tile, vectors):
    """``f()``: sums of nothing."""
    sums = types.UniTuple(FLOATS, tile * vectors)

    def codegen(context, builder, _signature, _values):
        return _made(builder, context, sums, [ir.Constant(FLOATS_IR, [0.0] * 16)] * (tile * vectors))

    @intrinsic
    def make(context):
        return sums(), codegen

    return make


def store_sums(tile, vectors):
    """``f(sums, places)``."""
    sums, addresses = types.UniTuple(FLOATS, tile * vectors), types.UniTuple(types.int64, tile)

    def codegen(context, builder, _signature, values):
        places = _elements(builder, values[1], tile)
        for number, value in enumerate(_elements(builder, values[0], tile * vectors)):
            place = _pointer(builder, places[number // vectors], 64 * (number % vectors))
            builder.store(value, place, align=4)
        return context.get_dummy_value()

    @intrinsic
    def store(context, sums_, places):
        return types.none(sums, addresses), codegen

    return store


def add_sums(tile, vectors):
    """``f(sums, places)``: add them to what stands at these addresses."""
    sums, addresses = types.UniTuple(FLOATS, tile * vectors), types.UniTuple(types.int64, tile)

    def codegen(context, builder, _signature, values):
        places = _elements(builder, values[1], tile)
        for number, value in enumerate(_elements(builder, values[0], tile * vectors)):
            place = _pointer(builder, places[number // vectors], 64 * (number % vectors))
            before = builder.load(place, align=4, typ=FLOATS_IR)
            builder.store(builder.fadd(before, value), place, align=4)
        return context.get_dummy_value()

    @intrinsic
    def add(context, sums_, places):
        return types.none(sums, addresses), codegen

    return add


def add_sums_exactly(tile, vectors):
    """``f(sums, places, offset)``: add them to what stands at these addresses, and what that rounds off to what stands
    ``offset`` bytes behind."""
    sums, addresses = types.UniTuple(FLOATS, tile * vectors), types.UniTuple(types.int64, tile)

    def codegen(context, builder, _signature, values):
        places = _elements(builder, values[1], tile)
        for number, value in enumerate(_elements(builder, values[0], tile * vectors)):
            address, shift = places[number // vectors], 64 * (number % vectors)
            place = _pointer(builder, address, shift)
            rest_place = _pointer(builder, builder.add(address, values[2]), shift)
            before, rest = (builder.load(there, align=4, typ=FLOATS_IR) for there in (place, rest_place))
            total, rest = add_exactly_ir(builder, before, rest, value)
            builder.store(total, place, align=4)
            builder.store(rest, rest_place, align=4)
        return context.get_dummy_value()

    @intrinsic
    def add(context, sums_, places, offset):
        return types.none(sums, addresses, types.int64), codegen

    return add


def add_products(tile, vectors):
    """``f(sums, row, places, offset)``: add to each query's sums the vectors in ``row``, times the number that stands
    ``offset`` bytes behind the query's address in ``places``."""
    sums, addresses = types.UniTuple(FLOATS, tile * vectors), types.UniTuple(types.int64, tile)
    row_kind = types.UniTuple(FLOATS, vectors)

    def codegen(context, builder, _signature, values):
        before, row = _elements(builder, values[0], tile * vectors), _elements(builder, values[1], vectors)
        after = []
        for number, place in enumerate(_elements(builder, values[2], tile)):
            factor = builder.load(_pointer(builder, builder.add(place, values[3])), align=4, typ=_f32)
            factor = splat_ir(builder, factor)
            for vector in range(vectors):
                arguments = [factor, row[vector], before[number * vectors + vector]]
                after.append(call_named(builder, "llvm.fmuladd.v16f32", FLOATS_IR, arguments))
        return _made(builder, context, sums, after)

    @intrinsic
    def add(context, sums_, row, places, offset):
        return sums(sums, row_kind, addresses, types.int64), codegen

    return add
