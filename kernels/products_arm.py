"""Products of bytes on ARM: a vector of 16 lanes is four NEON registers of 4 lanes, 16 bytes.

Three ways, chosen by the target's features:

- i8mm: ``usdot`` multiplies bytes without a sign by bytes with one, four of each to a lane;
- dotprod: ``sdot`` does so where both have a sign, and codes of weights beyond 127 are taken minus 128;
- else 16-bit products, which are added in pairs.
"""

from __future__ import annotations

from llvmlite import ir

from edgellm.kernels.simd import TARGET, call_named, constant_lanes, join, slices

ARM = TARGET.has("neon")

_i8, _i16, _i32 = (ir.IntType(bits) for bits in (8, 16, 32))
_BYTES, _HALF, _WORDS, _INTS = (
    ir.VectorType(kind, count) for kind, count in ((_i8, 16), (_i8, 8), (_i16, 8), (_i32, 4))
)
_NEON = "llvm.aarch64.neon."
_NO_INTS = constant_lanes(_i32, [0] * 4)


def _dot(builder, name, total, weight, value):
    return call_named(builder, f"{_NEON}{name}.v4i32.v16i8", _INTS, [total, weight, value])


def _products(builder, weight, value):
    """The 16 products of signed bytes, as two vectors of 16 bits."""
    halves = zip(slices(builder, weight, 2), slices(builder, value, 2), strict=True)
    return [call_named(builder, f"{_NEON}smull.v8i16", _WORDS, list(pair)) for pair in halves]


def _add_pairs(builder, words):
    return call_named(builder, f"{_NEON}saddlp.v4i32.v8i16", _INTS, [words])


def _sum_of_four(builder, value):
    """Per lane, the sum of the four signed bytes."""
    return _add_pairs(builder, call_named(builder, f"{_NEON}saddlp.v8i16.v16i8", _WORDS, [value]))


def _dot4_register(builder, total, weight, value):
    """dot4 of one register, exact for all bytes."""
    if TARGET.has("i8mm"):
        return _dot(builder, "usdot", total, weight, value)
    # weight * value = (weight - 128) * value + 128 * value; what the inputs alone decide is computed once for all
    # registers that have the same.
    signed = builder.xor(weight, constant_lanes(_i8, [0x80] * 16))
    if TARGET.has("dotprod"):
        negative = _dot(builder, "sdot", _NO_INTS, value, constant_lanes(_i8, [-128] * 16))
        return builder.sub(_dot(builder, "sdot", total, signed, value), negative)
    low, high = (_add_pairs(builder, words) for words in _products(builder, signed, value))
    correction = builder.shl(_sum_of_four(builder, value), constant_lanes(_i32, [7] * 4))
    pairs = call_named(builder, f"{_NEON}addp.v4i32", _INTS, [low, high])
    return builder.add(builder.add(total, correction), pairs)


def dot4_arm(builder, total, weights, inputs):
    """Per int32 lane: total + the sum of 4 products of unsigned weight bytes and signed input bytes, exact."""
    bytes_of = ir.VectorType(_i8, 64)
    weights, inputs = builder.bitcast(weights, bytes_of), builder.bitcast(inputs, bytes_of)
    parts = [slices(builder, vector, 4) for vector in (total, weights, inputs)]
    return join(builder, [_dot4_register(builder, *registers) for registers in zip(*parts, strict=True)])


def lookup16_arm(builder, table, indices):
    """Each byte (0..15) of 64 replaced by the entry of a table of 16."""
    entries = constant_lanes(_i8, list(table))
    found = [call_named(builder, f"{_NEON}tbl1.v16i8", _BYTES, [entries, part]) for part in slices(builder, indices, 4)]
    return join(builder, found)
