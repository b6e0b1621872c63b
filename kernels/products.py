"""Products of bytes and tables of bytes: the instructions that differ most from one CPU to the next."""

from __future__ import annotations

from llvmlite import ir

from edgellm.kernels.products_arm import ARM, dot4_arm, lookup16_arm
from edgellm.kernels.simd import (
    BYTES_IR,
    INTS,
    INTS_IR,
    TARGET,
    call_named,
    constant_lanes,
    instruction,
    ints_constant,
    join,
    slices,
)

_i8, _i16 = ir.IntType(8), ir.IntType(16)


def _dot4_words(builder, total, weights, inputs):
    """dot4 where no byte product exists: even and odd bytes as 16-bit words, which `pmaddwd` multiplies exactly."""
    width, name = 4, "llvm.x86.sse2.pmadd.wd"
    if TARGET.has("avx512bw"):
        width, name = 16, "llvm.x86.avx512.pmaddw.d.512"
    elif TARGET.has("avx2"):
        width, name = 8, "llvm.x86.avx2.pmadd.wd"
    words = ir.VectorType(_i16, 2 * width)
    eight = constant_lanes(_i16, [8] * 2 * width)
    results = []
    parts = 16 // width
    pieces = [[vector] if parts == 1 else slices(builder, vector, parts) for vector in (total, weights, inputs)]
    for accumulated, weight, value in zip(*pieces, strict=True):
        weight, value = builder.bitcast(weight, words), builder.bitcast(value, words)
        even = (
            builder.and_(weight, constant_lanes(_i16, [0xFF] * 2 * width)),
            builder.ashr(builder.shl(value, eight), eight),
        )
        odd = builder.lshr(weight, eight), builder.ashr(value, eight)
        result = accumulated.type
        products = [call_named(builder, name, result, list(pair)) for pair in (even, odd)]
        results.append(builder.add(accumulated, builder.add(*products)))
    return join(builder, results)


def _dot4_plain(builder, total, weights, inputs):
    """dot4 in plain IR, for CPUs other than x86 and ARM."""
    for shift in (0, 8, 16, 24):
        weight = builder.and_(builder.lshr(weights, ints_constant(shift)), ints_constant(0xFF))
        value = builder.ashr(builder.shl(inputs, ints_constant(24 - shift)), ints_constant(24))
        total = builder.add(total, builder.mul(weight, value))
    return total


def dot4_ir(builder, total, weights, inputs):
    """Per int32 lane: total + the sum of 4 products of unsigned weight bytes and signed input bytes, exact."""
    if TARGET.has("avx512vnni"):
        arguments = [total, builder.bitcast(weights, BYTES_IR), builder.bitcast(inputs, BYTES_IR)]
        return call_named(builder, "llvm.x86.avx512.vpdpbusd.512", INTS_IR, arguments)
    if TARGET.has("avxvnni"):
        halves = [slices(builder, vector, 2) for vector in (total, weights, inputs)]
        bytes_half = ir.VectorType(_i8, 32)
        return join(builder, [
            call_named(builder, "llvm.x86.avx512.vpdpbusd.256", part.type,
                  [part, builder.bitcast(weight, bytes_half), builder.bitcast(value, bytes_half)])
            for part, weight, value in zip(*halves, strict=True)
        ])  # fmt: skip
    if TARGET.has("sse2"):
        return _dot4_words(builder, total, weights, inputs)
    if ARM:
        return dot4_arm(builder, total, weights, inputs)
    return _dot4_plain(builder, total, weights, inputs)


@instruction(INTS, INTS, INTS, INTS)
def dot4(builder, total, weights, inputs):
    """Per lane: total + the sum of 4 products of unsigned weight bytes and signed input bytes."""
    return dot4_ir(builder, total, weights, inputs)


def lookup16(table):
    """An instruction that replaces each byte (0..15) of a vector by the entry of a constant table of 16 bytes."""

    @instruction(INTS, INTS)
    def look_up(builder, indices):
        indices = builder.bitcast(indices, BYTES_IR)
        if TARGET.has("avx512bw"):
            entries = constant_lanes(_i8, list(table) * 4)
            found = call_named(builder, "llvm.x86.avx512.pshuf.b.512", BYTES_IR, [entries, indices])
        elif TARGET.has("avx2"):
            entries = constant_lanes(_i8, list(table) * 2)
            found = join(builder, [
                call_named(builder, "llvm.x86.avx2.pshuf.b", entries.type, [entries, half])
                for half in slices(builder, indices, 2)
            ])  # fmt: skip
        elif ARM:
            found = lookup16_arm(builder, table, indices)
        else:
            found = constant_lanes(_i8, [table[0]] * 64)
            for number, entry in enumerate(table[1:], start=1):
                same = builder.icmp_unsigned("==", indices, constant_lanes(_i8, [number] * 64))
                found = builder.select(same, constant_lanes(_i8, [entry] * 64), found)
        return builder.bitcast(found, INTS_IR)

    return look_up
