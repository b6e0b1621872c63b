"""Vectors of 16 lanes and the instructions on them, as Numba intrinsics.

Two vector types exist, ``FLOATS`` (16 float32) and ``INTS`` (16 int32; also read as 64 bytes). LLVM lowers them to
one AVX-512 register, two of AVX2 or four of NEON, so one source serves all. `edgellm.kernels.memory` loads and stores
them. Where roundings matter more than time a third serves, ``DOUBLES`` (16 float64, twice as many registers).

Only what plain LLVM IR cannot say is chosen by the target's features (`dot4`, `lookup16`, half precision): a
target-specific instruction that the target lacks would abort the process.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_jitable, register_model

from edgellm.kernels.target import current_target

LANES = 16
TARGET = current_target()

_i8, _i16, _i32, _i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_f32 = ir.FloatType()


class Vector(types.Type):
    """Numba's view of an LLVM vector."""

    def __init__(self, name: str, element: ir.Type) -> None:
        self.element = element
        super().__init__(name=name)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, ir.VectorType(vector.element, LANES))


FLOATS = Vector("floats", _f32)
INTS = Vector("ints", _i32)
DOUBLES = Vector("doubles", ir.DoubleType())
DOUBLES_IR = ir.VectorType(ir.DoubleType(), LANES)
FLOATS_IR, INTS_IR, BYTES_IR = ir.VectorType(_f32, 16), ir.VectorType(_i32, 16), ir.VectorType(_i8, 64)


def instruction(result, *parameters):
    """Decorator: make ``emit(builder, *values)``, which writes LLVM IR, callable from kernels."""

    def wrap(emit):
        def codegen(context, builder, _signature, values):
            value = emit(builder, *values)
            return context.get_dummy_value() if result is types.none else value

        pair = (result(*parameters), codegen)
        # Numba reads the arity from the definition, so there is one for each.
        definitions = [
            lambda context: pair,
            lambda context, a: pair,
            lambda context, a, b: pair,
            lambda context, a, b, c: pair,
            lambda context, a, b, c, d: pair,
        ]
        definition = definitions[len(parameters)]
        definition.__name__ = emit.__name__
        definition.__doc__ = emit.__doc__
        return intrinsic(definition)

    return wrap


def helper(function):
    """Decorator: a function that kernels call and that is always inlined."""
    return register_jitable(forceinline=True)(function)


# -- building blocks of IR ---------------------------------------------------------------------------------------


def call_named(builder, name, result, arguments):
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def constant_lanes(kind, values):
    """A constant vector of the given values."""
    return ir.Constant(ir.VectorType(kind, len(values)), list(values))


def ints_constant(value):
    return constant_lanes(_i32, [value] * 16)


def splat_ir(builder, value, lanes=LANES):
    """A vector with the same scalar in every lane."""
    kind = ir.VectorType(value.type, lanes)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_i32, 0))
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), constant_lanes(_i32, [0] * lanes))


def slices(builder, vector, parts):
    """Cut a vector in equal parts."""
    width = vector.type.count // parts
    none = ir.Constant(vector.type, ir.Undefined)
    return [
        builder.shuffle_vector(vector, none, constant_lanes(_i32, range(part * width, (part + 1) * width)))
        for part in range(parts)
    ]


def join(builder, parts):
    """The inverse of `slices`; the number of parts is a power of two."""
    while len(parts) > 1:
        lanes = constant_lanes(_i32, range(2 * parts[0].type.count))
        parts = [builder.shuffle_vector(a, b, lanes) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def add_exactly_ir(builder, total, rest, value):
    """A value added to a total, and what that rounds off to ``rest``.

    Dekker's Fast2Sum (1971): exact where the total is larger than the value, and nearly so otherwise.
    """
    result = builder.fadd(total, value)
    rounded_off = builder.fsub(value, builder.fsub(result, total))
    return result, builder.fadd(rest, rounded_off)


def with_rest_ir(builder, total, rest):
    """A total with what was rounded off on the way; without, where that is no number, as behind an infinite total."""
    result = builder.fadd(total, rest)
    return builder.select(builder.fcmp_ordered("==", result, result), result, total)


# -- making vectors ----------------------------------------------------------------------------------------------


@instruction(FLOATS, types.float32)
def splat_float(builder, value):
    return splat_ir(builder, value)


@instruction(DOUBLES, types.float64)
def splat_double(builder, value):
    return splat_ir(builder, value)


@instruction(DOUBLES, FLOATS)
def to_doubles(builder, value):
    return builder.fpext(value, DOUBLES_IR)


@instruction(FLOATS, DOUBLES)
def round_to_floats(builder, value):
    return builder.fptrunc(value, FLOATS_IR)


@instruction(INTS, types.int64)
def splat_int(builder, value):
    return splat_ir(builder, builder.trunc(value, _i32))


@instruction(INTS)
def lane_numbers(builder):
    """0, 1, ... 15."""
    return constant_lanes(_i32, range(16))


@instruction(INTS, FLOATS)
def float_bits(builder, value):
    return builder.bitcast(value, INTS_IR)


@instruction(FLOATS, INTS)
def bits_float(builder, value):
    return builder.bitcast(value, FLOATS_IR)


@instruction(FLOATS, INTS)
def to_floats(builder, value):
    return builder.sitofp(value, FLOATS_IR)


# -- arithmetic --------------------------------------------------------------------------------------------------


@instruction(FLOATS, FLOATS, FLOATS, FLOATS)
def multiply_add(builder, a, b, c):
    """a * b + c, in one rounding where the CPU can."""
    return call_named(builder, "llvm.fmuladd.v16f32", FLOATS_IR, [a, b, c])


def chooser(vector, sign):
    """An instruction on two vectors: of each lane ``a`` where ``a sign b``, else ``b``, also where one is no number."""

    @instruction(vector, vector, vector)
    def choose(builder, a, b):
        return builder.select(builder.fcmp_ordered(sign, a, b), a, b)

    return choose


maximum, minimum = chooser(FLOATS, ">"), chooser(FLOATS, "<")


@instruction(types.UniTuple(FLOATS, 2), FLOATS, FLOATS, FLOATS)
def add_exactly(builder, total, rest, value):
    """`add_exactly_ir` for kernels."""
    results = add_exactly_ir(builder, total, rest, value)
    pair = ir.Constant(ir.ArrayType(FLOATS_IR, 2), ir.Undefined)
    return builder.insert_value(builder.insert_value(pair, results[0], 0), results[1], 1)


@instruction(FLOATS, FLOATS, FLOATS)
def with_rest(builder, total, rest):
    """`with_rest_ir` for kernels."""
    return with_rest_ir(builder, total, rest)


@instruction(FLOATS, FLOATS)
def absolute(builder, a):
    return call_named(builder, "llvm.fabs.v16f32", FLOATS_IR, [a])


@instruction(types.boolean, FLOATS, FLOATS)
def any_greater(builder, a, b):
    """Whether a > b in any lane."""
    lanes = builder.bitcast(builder.fcmp_ordered(">", a, b), _i16)
    return builder.icmp_unsigned("!=", lanes, ir.Constant(_i16, 0))


@instruction(FLOATS, INTS, INTS, FLOATS, FLOATS)
def where_not_greater(builder, a, b, yes, no):
    """Per lane: ``yes`` where a <= b, else ``no``."""
    return builder.select(builder.icmp_signed("<=", a, b), yes, no)


def reduce_lanes(builder, vector, combine):
    """All lanes as one, half with half; the result of each step is ``combine`` of two vectors."""
    while vector.type.count > 1:
        low, high = slices(builder, vector, 2)
        vector = combine(low, high)
    return builder.extract_element(vector, ir.Constant(_i32, 0))


@instruction(types.float32, FLOATS)
def sum_lanes(builder, vector):
    return reduce_lanes(builder, vector, builder.fadd)


@instruction(types.float64, DOUBLES)
def sum_double_lanes(builder, vector):
    return reduce_lanes(builder, vector, builder.fadd)


@instruction(types.float32, FLOATS)
def max_lanes(builder, vector):
    return reduce_lanes(builder, vector, lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))


@instruction(types.int64, INTS)
def sum_int_lanes(builder, vector):
    return builder.sext(reduce_lanes(builder, vector, builder.add), _i64)


@instruction(types.int64, INTS, INTS)
def max_int_lanes(builder, a, b):
    """The largest lane of two vectors."""

    def larger(a, b):
        return builder.select(builder.icmp_signed(">", a, b), a, b)

    return builder.sext(reduce_lanes(builder, larger(a, b), larger), _i64)


@instruction(types.float32, types.int64)
def int_float(builder, bits):
    """The float32 of 32 bits."""
    return builder.bitcast(builder.trunc(bits, _i32), _f32)


def arithmetic(operation, vector, emit):
    """Let kernels write ``a + b`` on vectors."""

    @infer_global(operation)
    class _Typing(AbstractTemplate):
        def generic(self, arguments, keywords):
            if not keywords and arguments == (vector, vector):
                return signature(vector, vector, vector)
            return None

    @lower_builtin(operation, vector, vector)
    def _lower(context, builder, _signature, arguments):
        return emit(builder, *arguments)


arithmetic(operator.add, FLOATS, lambda builder, a, b: builder.fadd(a, b))
arithmetic(operator.sub, FLOATS, lambda builder, a, b: builder.fsub(a, b))
arithmetic(operator.mul, FLOATS, lambda builder, a, b: builder.fmul(a, b))
arithmetic(operator.truediv, FLOATS, lambda builder, a, b: builder.fdiv(a, b))
arithmetic(operator.add, DOUBLES, lambda builder, a, b: builder.fadd(a, b))
arithmetic(operator.sub, DOUBLES, lambda builder, a, b: builder.fsub(a, b))
arithmetic(operator.mul, DOUBLES, lambda builder, a, b: builder.fmul(a, b))
arithmetic(operator.add, INTS, lambda builder, a, b: builder.add(a, b))
arithmetic(operator.sub, INTS, lambda builder, a, b: builder.sub(a, b))
arithmetic(operator.mul, INTS, lambda builder, a, b: builder.mul(a, b))
arithmetic(operator.and_, INTS, lambda builder, a, b: builder.and_(a, b))
arithmetic(operator.or_, INTS, lambda builder, a, b: builder.or_(a, b))
arithmetic(operator.xor, INTS, lambda builder, a, b: builder.xor(a, b))
arithmetic(operator.lshift, INTS, lambda builder, a, b: builder.shl(a, b))
arithmetic(operator.rshift, INTS, lambda builder, a, b: builder.lshr(a, b))  # bits move in as zeros


# -- functions made of the above ---------------------------------------------------------------------------------

_ROUNDING = 12582912.0  # 1.5 * 2^23: adding it leaves the rounded integer in the low mantissa bits
_ROUNDING_BITS = 0x4B400000


def rounded_ir(builder, value):
    """`round_to_ints` as IR."""
    shifted = builder.fadd(value, constant_lanes(_f32, [_ROUNDING] * LANES))
    return builder.sub(builder.bitcast(shifted, INTS_IR), ints_constant(_ROUNDING_BITS))


@helper
def round_to_ints(value):
    """Nearest integers, halves to even; |value| < 2^22."""
    return float_bits(value + splat_float(_ROUNDING)) - splat_int(_ROUNDING_BITS)


@helper
def exponential(value):
    """e^x to about 2 units in the last place: 2^n times a polynomial in the remainder (Cephes' coefficients).

    Infinity from 88.4 on; what is not a number stays so.
    """
    value = minimum(splat_float(89.0), maximum(splat_float(-87.3), value))
    whole = round_to_ints(value * splat_float(1.4426950408889634))
    n = to_floats(whole)
    r = multiply_add(n, splat_float(-0.693359375), value)
    r = multiply_add(n, splat_float(2.12194440e-4), r)
    p = splat_float(1.9875691500e-4)
    p = multiply_add(p, r, splat_float(1.3981999507e-3))
    p = multiply_add(p, r, splat_float(8.3334519073e-3))
    p = multiply_add(p, r, splat_float(4.1665795894e-2))
    p = multiply_add(p, r, splat_float(1.6666665459e-1))
    p = multiply_add(p, r, splat_float(5.0000001201e-1))
    p = multiply_add(p, r * r, r + splat_float(1.0))
    return p * bits_float((whole + splat_int(127)) << splat_int(23))


@helper
def logarithm(value):
    """ln of positive normal numbers to about 1e-7: the exponent, and a series (2 atanh) of the mantissa."""
    bits = float_bits(value)
    # The mantissa between sqrt(1/2) and sqrt(2): take off so much of the exponent.
    whole = (bits - splat_int(0x3F3504F3)) >> splat_int(23)
    whole = (whole ^ splat_int(256)) - splat_int(256)  # the shift moved zeros in: back to negative exponents
    mantissa = bits_float(bits - (whole << splat_int(23)))
    one = splat_float(1.0)
    ratio = (mantissa - one) / (mantissa + one)
    square = ratio * ratio
    p = splat_float(0.22222222)
    p = multiply_add(p, square, splat_float(0.28571429))
    p = multiply_add(p, square, splat_float(0.4))
    p = multiply_add(p, square, splat_float(0.66666667))
    p = multiply_add(p, square, splat_float(2.0))
    return multiply_add(to_floats(whole), splat_float(0.6931471805599453), ratio * p)


@helper
def tanh(value):
    """1 - 2 / (e^2x + 1)."""
    one = splat_float(1.0)
    return one - splat_float(2.0) / (exponential(value + value) + one)


@helper
def share(count, thread, threads):
    """The first item that a thread takes of ``count``, and the one after its last."""
    return count * thread // threads, count * (thread + 1) // threads
