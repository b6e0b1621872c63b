"""What the quantizers need beyond `edgellm.kernels.simd`: choosing by lane, sums across lanes, writing to 16 places."""

from __future__ import annotations

from itertools import pairwise

from llvmlite import ir
from numba.core import types

from edgellm.kernels.memory import half_bits, half_value
from edgellm.kernels.quantizer_schemes import LANES, LARGEST_HALF, STEPS
from edgellm.kernels.simd import FLOATS, INTS, constant_lanes, helper, instruction, maximum, minimum, splat_float

ROUNDING = 12582912.0
"""1.5 * 2^23: adding and subtracting it rounds to the nearest integer, halves to even, where |value| < 2^22; what is
larger stays large."""

_i8, _i16, _i32, _i64, _f32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


@instruction(FLOATS, FLOATS, FLOATS, FLOATS, FLOATS)
def where_greater(builder, a, b, yes, no):
    """Per lane: ``yes`` where a > b, else ``no``, also where either is not a number."""
    return builder.select(builder.fcmp_ordered(">", a, b), yes, no)


def _across(builder, vector, width, combine):
    """Combine each ``width`` neighbouring lanes; all of them get the result."""
    step = 1
    while step < width:
        lanes = constant_lanes(_i32, [lane ^ step for lane in range(LANES)])
        vector = combine(vector, builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), lanes))
        step *= 2
    return vector


def sum_across(width):
    """``f(vector)``: the sum of each ``width`` neighbouring lanes in all of them."""

    @instruction(FLOATS, FLOATS)
    def total(builder, vector):
        return _across(builder, vector, width, builder.fadd)

    return total


def largest_across(width):
    """``f(vector)``: the largest of each ``width`` neighbouring lanes in all of them."""

    @instruction(FLOATS, FLOATS)
    def largest(builder, vector):
        return _across(builder, vector, width, lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))

    return largest


@helper
def round_half(value):
    """The nearest numbers of half precision, none infinite."""
    inside = maximum(minimum(value, splat_float(LARGEST_HALF)), splat_float(-LARGEST_HALF))
    return half_value(half_bits(inside))


@helper
def ratio(a, b):
    """a / b, and 0 where b is not positive."""
    zero, one = splat_float(0.0), splat_float(1.0)
    return where_greater(b, zero, a / where_greater(b, zero, b, one), zero)


@helper
def inverse_or_zero(value):
    """1 / value, and 0 where it would not be finite."""
    zero, one = splat_float(0.0), splat_float(1.0)
    usable = where_greater(value * value, splat_float(1e-37), one, zero)
    return where_greater(usable, zero, one / where_greater(usable, zero, value, one), zero)


def nearest_between(low, high):
    """``f(value)``: the nearest integer from ``low`` to ``high``, as a float."""

    @helper
    def nearest(value):
        whole = (value + splat_float(ROUNDING)) - splat_float(ROUNDING)
        return maximum(minimum(whole, splat_float(high)), splat_float(low))

    return nearest


def _by_steps(builder, value, first, gains, emit_add):
    """``first`` plus the gain of every midpoint between two `STEPS` that the value exceeds."""
    total = first
    for lower, upper, gain in zip(STEPS[:-1], STEPS[1:], gains, strict=True):
        middle = constant_lanes(_f32, [(lower + upper) / 2] * LANES)
        above = builder.fcmp_ordered(">", value, middle)
        some = constant_lanes(total.type.element, [gain] * LANES)
        none = constant_lanes(total.type.element, [type(gain)(0)] * LANES)
        total = emit_add(total, builder.select(above, some, none))
    return total


@instruction(FLOATS, FLOATS)
def nearest_step(builder, value):
    """The nearest of `STEPS`."""
    gains = [float(upper - lower) for lower, upper in pairwise(STEPS)]
    return _by_steps(builder, value, constant_lanes(_f32, [float(STEPS[0])] * LANES), gains, builder.fadd)


@instruction(INTS, FLOATS)
def step_number(builder, value):
    """Which of `STEPS` is nearest."""
    return _by_steps(builder, value, constant_lanes(_i32, [0] * LANES), [1] * (len(STEPS) - 1), builder.add)


@instruction(types.none, types.int64, types.int64, INTS)
def scatter_words(builder, target, stride, lanes):
    """The four bytes of each lane, ``stride`` bytes apart; no address need be aligned."""
    for lane in range(LANES):
        value = builder.extract_element(lanes, ir.Constant(_i32, lane))
        builder.store(value, builder.inttoptr(target, ir.PointerType()), align=1)
        target = builder.add(target, stride)


@instruction(types.none, types.int64, types.int64, INTS)
def scatter_halves(builder, target, stride, lanes):
    """The lower two bytes of each lane, ``stride`` bytes apart."""
    for lane in range(LANES):
        value = builder.trunc(builder.extract_element(lanes, ir.Constant(_i32, lane)), _i16)
        builder.store(value, builder.inttoptr(target, ir.PointerType()), align=1)
        target = builder.add(target, stride)


@instruction(types.none, types.int64, types.int64)
def put_byte(builder, address, value):
    """The lowest byte of an integer."""
    builder.store(builder.trunc(value, _i8), builder.inttoptr(address, ir.PointerType()), align=1)


@instruction(types.int64, types.int64)
def byte_at(builder, address):
    return builder.zext(builder.load(builder.inttoptr(address, ir.PointerType()), align=1, typ=_i8), _i64)


@instruction(types.none, types.int64, types.int64)
def put_half(builder, address, bits):
    """The lower two bytes of an integer."""
    builder.store(builder.trunc(bits, _i16), builder.inttoptr(address, ir.PointerType()), align=1)


@instruction(INTS, INTS, INTS)
def shift_each(builder, lanes, counts):
    """Each lane shifted left by a number of its own."""
    return builder.shl(lanes, counts)
