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
SIGNED_CODES = ARM and not TARGET.has("i8mm")
_LARGEST_INPUT = 127  # of quantized activations, either sign

_i8, _i16, _i32, _i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_BYTES, _HALF, _WORDS, _INTS = (
    ir.VectorType(kind, count) for kind, count in ((_i8, 16), (_i8, 8), (_i16, 8), (_i32, 4))
)
_FLOATS = ir.VectorType(ir.FloatType(), 4)
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


# -- whole blocks ------------------------------------------------------------------------------------------------


def _load(builder, address, offset, kind, align):
    place = builder.add(address, ir.Constant(_i64, offset))
    return builder.load(builder.inttoptr(place, ir.PointerType()), align=align, typ=kind)


def _same_lanes(builder, register, lane):
    """One lane in all lanes: an operand "by lane" of most instructions, which costs none of its own."""
    return builder.shuffle_vector(register, ir.Constant(register.type, ir.Undefined), constant_lanes(_i32, [lane] * 4))


def _input_fours(builder, address, count):
    """Quantized activations in memory, as registers that repeat four of them."""
    registers = []
    for start in range(0, count, 4):
        sixteen = _load(builder, address, 4 * start, _INTS, 4)
        registers += [builder.bitcast(_same_lanes(builder, sixteen, lane), _BYTES) for lane in range(4)]
    return registers


class _Sums:
    """The sums of products of one register of weights (4 rows) and one row of activations."""

    def __init__(self, largest):
        self.total, self._words, self._held = _NO_INTS, None, 0
        # Products that 16 bits hold, of which pairs are added: without extensions.
        self._room = max(1, 32767 // (2 * largest * _LARGEST_INPUT))

    def add(self, builder, weight, value):
        if TARGET.has("i8mm"):
            self.total = _dot(builder, "usdot", self.total, weight, value)
        elif TARGET.has("dotprod"):
            self.total = _dot(builder, "sdot", self.total, weight, value)
        else:
            new = _products(builder, weight, value)
            pairs = zip(self._words or (), new, strict=False)
            self._words = [builder.add(a, b) for a, b in pairs] or new
            self._held += 1
            if self._held == self._room:
                self.finish(builder)

    def finish(self, builder):
        if self._words is not None:
            pairs = call_named(builder, f"{_NEON}addp.v8i16", _WORDS, self._words)
            self.total = builder.add(self.total, _add_pairs(builder, pairs))
        self._words, self._held = None, 0
        return self.total


def add_tile_products(builder, tile, vectors, scale, offset, sum_offset, largest, addresses):
    """Add the products of a block to a tile of results: what `edgellm.kernels.matmul` says, in an order and with loads
    that suit four registers a vector.

    Args:
        tile: the results so far, 16 weight rows by some activation rows.
        vectors: the block's codes; ``scale``, ``offset``: of the weight rows.
        sum_offset: place of the block's sum among the activation's scales, in bytes.
        largest: the largest code. Formats with codes beyond 127 have the offset -128 * scale.
        addresses: inputs, their stride, scales, their stride.

    Returns:
        The new results.
    """
    weights = _weight_registers(builder, vectors, largest)
    signed = largest > 127 and SIGNED_CODES  # the offset is in the codes
    inputs, input_stride, scales, scales_stride = addresses
    fours, factors = [], []
    for _ in tile:
        fours.append(_input_fours(builder, inputs, len(vectors)))
        factors.append(_load(builder, scales, 0, _FLOATS, 4))
        inputs, scales = builder.add(inputs, input_stride), builder.add(scales, scales_stride)
    scale_parts, offset_parts = slices(builder, scale, 4), slices(builder, offset, 4)
    results = [slices(builder, result, 4) for result in tile]
    # Registers are few: those of four weight rows meet all rows of activations before the next four do.
    for part in range(4):
        sums = [_Sums(largest) for _ in tile]
        for registers, *row_fours in zip(weights, *fours, strict=True):
            for row, four in enumerate(row_fours):
                sums[row].add(builder, registers[part], four)
        for row, factor in enumerate(factors):
            total = builder.sitofp(sums[row].finish(builder), _FLOATS)
            product = builder.fmul(total, _same_lanes(builder, factor, 0))
            value = _multiply_add(builder, product, scale_parts[part], results[row][part])
            if not signed:
                block_sum = _same_lanes(builder, factor, sum_offset // 4)
                value = _multiply_add(builder, offset_parts[part], block_sum, value)
            results[row][part] = value
    return [join(builder, parts) for parts in results]


def _weight_registers(builder, vectors, largest):
    """Each vector's four registers of bytes."""
    registers = [slices(builder, builder.bitcast(vector, ir.VectorType(_i8, 64)), 4) for vector in vectors]
    if largest <= 127 or not SIGNED_CODES:
        return registers
    flip = constant_lanes(_i8, [0x80] * 16)
    return [[builder.xor(register, flip) for register in four] for four in registers]


def _multiply_add(builder, a, b, c):
    return call_named(builder, "llvm.fmuladd.v4f32", _FLOATS, [a, b, c])
