"""Loads and stores of scalars and of the vectors of `edgellm.kernels.simd`, and half precision.

Addresses are int64.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types

from edgellm.kernels.simd import (
    FLOATS,
    FLOATS_IR,
    INTS,
    INTS_IR,
    TARGET,
    constant_lanes,
    instruction,
    ints_constant,
    splat_ir,
)

_i8, _i16, _i32, _i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_f16, _f32 = ir.HalfType(), ir.FloatType()
_pointer = ir.PointerType()
LINE = 64  # bytes of a cache line


def _at(builder, address):
    return builder.inttoptr(address, _pointer)


def _load(builder, address, kind, align):
    return builder.load(_at(builder, address), align=align, typ=kind)


# -- scalars in memory -------------------------------------------------------------------------------------------


@instruction(types.int64, types.int64)
def int64_at(builder, address):
    return _load(builder, address, _i64, 8)


@instruction(types.int64, types.int64, types.int64)
def get(builder, record, field):
    """A field of a record; ``field`` is one of the offsets in `edgellm.kernels.records`."""
    return _load(builder, builder.add(record, field), _i64, 8)


@instruction(types.int64, types.int64)
def int32_at(builder, address):
    return builder.sext(_load(builder, address, _i32, 4), _i64)


@instruction(types.int64, types.int64)
def unaligned_int32_at(builder, address):
    return builder.sext(_load(builder, address, _i32, 1), _i64)


@instruction(types.float32, types.int64)
def float_at(builder, address):
    return _load(builder, address, _f32, 4)


@instruction(types.none, types.int64, types.float32)
def set_float(builder, address, value):
    builder.store(value, _at(builder, address), align=4)


@instruction(types.none, types.int64, types.float32)
def set_half(builder, address, value):
    """Store one value in half precision."""
    if _HARDWARE_HALF:
        half = builder.fptrunc(value, _f16)
    else:
        vector = _float_to_half(builder, splat_ir(builder, value))
        half = builder.extract_element(vector, ir.Constant(_i32, 0))
    builder.store(half, _at(builder, address), align=2)


@instruction(types.float32, types.int64)
def half_at(builder, address):
    if _HARDWARE_HALF:
        return builder.fpext(_load(builder, address, _f16, 2), _f32)
    vector = _half_to_float(builder, splat_ir(builder, _load(builder, address, _i16, 2)))
    return builder.extract_element(vector, ir.Constant(_i32, 0))


@instruction(types.none, types.int64, types.float32)
def set_byte(builder, address, value):
    """Store the nearest signed byte of a small value, halves to even: see `round_to_ints`."""
    shifted = builder.bitcast(builder.fadd(value, ir.Constant(_f32, 12582912.0)), _i32)
    builder.store(builder.trunc(shifted, _i8), _at(builder, address), align=1)


@instruction(types.none, types.int64, types.int64)
def set_int64(builder, address, value):
    builder.store(value, _at(builder, address), align=8)


@instruction(types.none, types.int64, types.int64)
def set_int32(builder, address, value):
    builder.store(builder.trunc(value, _i32), _at(builder, address), align=4)


@instruction(types.int64, types.int64)
def byte_at(builder, address):
    return builder.zext(_load(builder, address, _i8, 1), _i64)


@instruction(types.none, types.int64, types.int64)
def set_raw_byte(builder, address, value):
    """Store the low byte."""
    builder.store(builder.trunc(value, _i8), _at(builder, address), align=1)


@instruction(types.none, types.int64, types.int64)
def copy_int32(builder, destination, source):
    """Copy four bytes; neither address need be aligned."""
    builder.store(_load(builder, source, _i32, 1), _at(builder, destination), align=4)


@instruction(types.none, types.int64, types.int64)
def copy_int16(builder, destination, source):
    """Copy two bytes; neither address need be aligned."""
    builder.store(_load(builder, source, _i16, 1), _at(builder, destination), align=1)


def _prefetch_ir(builder, address, nearness):
    kind = ir.FunctionType(ir.VoidType(), [_pointer, _i32, _i32, _i32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    read, data = ir.Constant(_i32, 0), ir.Constant(_i32, 1)
    builder.call(function, [_at(builder, address), read, ir.Constant(_i32, nearness), data])


@instruction(types.none, types.int64)
def prefetch(builder, address):
    """Ask for the cache line at an address, into the second level; harmless beyond the end of a buffer.

    Waiting for the first level would take one of its few slots for outstanding lines (8 to 20 % slower).
    """
    _prefetch_ir(builder, address, 2)


@instruction(types.none, types.int64)
def prefetch_near(builder, address):
    """The same into the first level: for what is needed within a microsecond."""
    _prefetch_ir(builder, address, 3)


def prefetcher(size, ordered=True):
    """An instruction that asks for so many bytes from an address on, line by line, in the order of the program.

    Left alone the compiler gathers the requests of a whole stretch of code at its start, where they wait for one
    another. That order also keeps other reads and writes from moving past the requests: ``ordered`` says whether it
    is wanted.
    """

    @instruction(types.none, types.int64)
    def prefetch_lines(builder, address):
        for line in range(0, size, LINE):
            _prefetch_ir(builder, builder.add(address, ir.Constant(_i64, line)), 2)
        if ordered:
            builder.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], side_effect=True)

    return prefetch_lines


@instruction(types.int64, types.int64)
def here(builder, address):
    """The same address, of which the compiler knows nothing.

    What lies at constant distances from it is then reached by an address and a constant. Left alone, the compiler
    counts rounds of a loop in one register and adds it to each address, which makes two of every instruction that
    reads memory and has three operands.
    """
    return builder.asm(ir.FunctionType(_i64, [_i64]), "", "=r,0", [address], side_effect=False)


# -- vectors in memory -------------------------------------------------------------------------------------------


@instruction(FLOATS, types.int64)
def load_floats(builder, address):
    return _load(builder, address, FLOATS_IR, 4)


@instruction(types.none, types.int64, FLOATS)
def store_floats(builder, address, value):
    builder.store(value, _at(builder, address), align=4)


@instruction(INTS, types.int64)
def load_ints(builder, address):
    return _load(builder, address, INTS_IR, 4)


@instruction(types.none, types.int64, INTS)
def store_ints(builder, address, value):
    builder.store(value, _at(builder, address), align=4)


@instruction(INTS, types.int64)
def load_unsigned_bytes(builder, address):
    """16 bytes, each widened to an int32 lane."""
    return builder.zext(_load(builder, address, ir.VectorType(_i8, 16), 1), INTS_IR)


@instruction(INTS, types.int64)
def load_signed_bytes(builder, address):
    return builder.sext(_load(builder, address, ir.VectorType(_i8, 16), 1), INTS_IR)


@instruction(types.none, types.int64, INTS)
def store_bytes(builder, address, value):
    """The low byte of each lane."""
    builder.store(builder.trunc(value, ir.VectorType(_i8, 16)), _at(builder, address), align=1)


@instruction(FLOATS, types.int64)
def load_bfloats(builder, address):
    """16 bfloat16 values: the upper halves of float32."""
    raw = builder.zext(_load(builder, address, ir.VectorType(_i16, 16), 2), INTS_IR)
    return builder.bitcast(builder.shl(raw, constant_lanes(_i32, [16] * 16)), FLOATS_IR)


@instruction(FLOATS, types.int64)
def broadcast_float(builder, address):
    """The float32 at an address in every lane."""
    return splat_ir(builder, _load(builder, address, _f32, 4))


@instruction(INTS, types.int64)
def broadcast_int(builder, address):
    """The four bytes at an address in every lane."""
    return splat_ir(builder, _load(builder, address, _i32, 4))


# -- half precision ----------------------------------------------------------------------------------------------


def _half_to_float(builder, raw):
    """Half precision without F16C: shift into float32's place and let a multiplication mend the exponent.

    With denormals-are-zero set, half-precision denormals must not become float32 denormals on the way: 2^112 scales
    the shifted bits, whose smallest non-zero exponent field is then 0 for half denormals, so those are built from the
    integer instead.
    """
    bits = builder.zext(raw, INTS_IR)
    sign = builder.shl(builder.and_(bits, ints_constant(0x8000)), ints_constant(16))
    magnitude = builder.and_(bits, ints_constant(0x7FFF))
    shifted = builder.add(builder.shl(magnitude, ints_constant(13)), ints_constant(112 << 23))
    special = builder.add(builder.shl(magnitude, ints_constant(13)), ints_constant(224 << 23))
    integer = builder.sitofp(magnitude, FLOATS_IR)
    denormal = builder.fmul(integer, constant_lanes(_f32, [2.0**-24] * 16))
    value = builder.select(
        builder.icmp_unsigned("<", magnitude, ints_constant(0x400)), builder.bitcast(denormal, INTS_IR), shifted
    )
    value = builder.select(builder.icmp_unsigned(">=", magnitude, ints_constant(0x7C00)), special, value)
    return builder.bitcast(builder.or_(value, sign), FLOATS_IR)


def _float_to_half(builder, value):
    """Round to nearest even; too large becomes infinity; results below 2^-14 keep their denormal form."""
    bits = builder.bitcast(value, INTS_IR)
    sign = builder.lshr(builder.and_(bits, ints_constant(0x80000000)), ints_constant(16))
    magnitude = builder.and_(bits, ints_constant(0x7FFFFFFF))
    odd = builder.and_(builder.lshr(magnitude, ints_constant(13)), ints_constant(1))
    rounded = builder.add(builder.add(magnitude, ints_constant(0xFFF)), odd)
    normal = builder.sub(builder.lshr(rounded, ints_constant(13)), ints_constant(112 << 10))
    absolute = builder.bitcast(magnitude, FLOATS_IR)
    # Adding 0.5 leaves |value| / 2^-24, rounded to nearest even, in the low mantissa bits.
    shifted = builder.bitcast(builder.fadd(absolute, constant_lanes(_f32, [0.5] * 16)), INTS_IR)
    denormal = builder.sub(shifted, ints_constant(0x3F000000))
    half = builder.select(builder.icmp_unsigned("<", magnitude, ints_constant(113 << 23)), denormal, normal)
    large = builder.icmp_unsigned(">=", magnitude, ints_constant(0x477FF000))
    half = builder.select(large, ints_constant(0x7C00), half)
    nan = builder.icmp_unsigned(">", magnitude, ints_constant(0x7F800000))
    half = builder.select(nan, ints_constant(0x7E00), half)
    return builder.trunc(builder.or_(half, sign), ir.VectorType(_i16, 16))


_HARDWARE_HALF = TARGET.has("f16c") or TARGET.has("avx512f") or TARGET.has("neon")


@instruction(FLOATS, types.int64)
def load_halves(builder, address):
    """16 half-precision values."""
    if _HARDWARE_HALF:
        return builder.fpext(_load(builder, address, ir.VectorType(_f16, 16), 2), FLOATS_IR)
    return _half_to_float(builder, _load(builder, address, ir.VectorType(_i16, 16), 2))


@instruction(types.none, types.int64, FLOATS)
def store_halves(builder, address, value):
    half = builder.fptrunc(value, ir.VectorType(_f16, 16)) if _HARDWARE_HALF else _float_to_half(builder, value)
    builder.store(half, _at(builder, address), align=2)


@instruction(INTS, FLOATS)
def half_bits(builder, value):
    """The bits of each value in half precision."""
    half = builder.fptrunc(value, ir.VectorType(_f16, 16)) if _HARDWARE_HALF else _float_to_half(builder, value)
    return builder.zext(builder.bitcast(half, ir.VectorType(_i16, 16)), INTS_IR)


@instruction(FLOATS, INTS)
def half_value(builder, bits):
    """The inverse of `half_bits`."""
    raw = builder.trunc(bits, ir.VectorType(_i16, 16))
    if _HARDWARE_HALF:
        return builder.fpext(builder.bitcast(raw, ir.VectorType(_f16, 16)), FLOATS_IR)
    return _half_to_float(builder, raw)
