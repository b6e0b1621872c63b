"""The blocks of each quantized type, written from codes and scales: the inverse of the decoders of the gguf package.

Codes lie one a byte, group after group; the groups' small scales and minima are int32. Source: the structures of ggml
(``ggml-common.h``), described beside each decoder in `edgellm.gguf`.
"""

from __future__ import annotations

from edgellm.kernels.memory import int32_at, load_unsigned_bytes, store_bytes
from edgellm.kernels.quantizer_vectors import byte_at, put_byte, put_half, shift_each
from edgellm.kernels.simd import helper, lane_numbers, splat_int, sum_int_lanes


@helper
def _joined(codes, distance, bits, parts, mask):
    """16 bytes, each with some bits of ``parts`` codes that lie ``distance`` apart, the first in the lowest bits."""
    result = load_unsigned_bytes(codes) & splat_int(mask)
    for part in range(1, parts):
        result = result | ((load_unsigned_bytes(codes + distance * part) & splat_int(mask)) << splat_int(bits * part))
    return result


@helper
def nibbles(codes, target, distance):
    """Twice ``distance`` codes: the lower four bits of code i and of code i + distance in byte i."""
    for column in range(0, distance, 16):
        store_bytes(target + column, _joined(codes + column, distance, 4, 2, 15))


@helper
def pairs_of_bits(codes, target, shift):
    """256 codes: in byte i of each 32 two bits of the codes i, i + 32, i + 64 and i + 96 of 128."""
    for half in range(2):
        for column in range(0, 32, 16):
            place = codes + 128 * half + column
            joined = (load_unsigned_bytes(place) >> splat_int(shift)) & splat_int(3)
            for part in range(1, 4):
                more = (load_unsigned_bytes(place + 32 * part) >> splat_int(shift)) & splat_int(3)
                joined = joined | (more << splat_int(2 * part))
            store_bytes(target + 32 * half + column, joined)


@helper
def single_bits(codes, target, shift):
    """256 codes: bit k of byte i is one bit of code 32 k + i."""
    for column in range(0, 32, 16):
        joined = (load_unsigned_bytes(codes + column) >> splat_int(shift)) & splat_int(1)
        for part in range(1, 8):
            more = (load_unsigned_bytes(codes + column + 32 * part) >> splat_int(shift)) & splat_int(1)
            joined = joined | (more << splat_int(part))
        store_bytes(target + column, joined)


@helper
def fifth_bits(codes, target):
    """32 codes: bit i of the four bytes is the fifth bit of code i."""
    for half in range(2):
        bits = (load_unsigned_bytes(codes + 16 * half) >> splat_int(4)) & splat_int(1)
        put_half(target + 2 * half, sum_int_lanes(shift_each(bits, lane_numbers())))


# -- f(codes, small, block): one block, without its half-precision numbers ---------------------------------------


@helper
def _q4_0(codes, small, block):
    nibbles(codes, block + 2, 16)


@helper
def _q4_1(codes, small, block):
    nibbles(codes, block + 4, 16)


@helper
def _q5_0(codes, small, block):
    fifth_bits(codes, block + 2)
    nibbles(codes, block + 6, 16)


@helper
def _q5_1(codes, small, block):
    fifth_bits(codes, block + 4)
    nibbles(codes, block + 8, 16)


@helper
def _q8_0(codes, small, block):
    store_bytes(block + 2, load_unsigned_bytes(codes))
    store_bytes(block + 18, load_unsigned_bytes(codes + 16))


@helper
def _q2_k(codes, small, block):
    for group in range(16):
        put_byte(block + group, int32_at(small + 4 * group) | int32_at(small + 64 + 4 * group) << 4)
    pairs_of_bits(codes, block + 16, 0)


@helper
def _q3_k(codes, small, block):
    single_bits(codes, block, 2)
    pairs_of_bits(codes, block + 32, 0)
    for group in range(8):
        first, second = int32_at(small + 4 * group) + 32, int32_at(small + 4 * group + 32) + 32
        put_byte(block + 96 + group, (first & 15) | (second & 15) << 4)
    for group in range(4):
        upper = 0
        for part in range(4):
            upper |= (int32_at(small + 4 * (group + 4 * part)) + 32 >> 4) << (2 * part)
        put_byte(block + 104 + group, upper)


@helper
def _scales_and_minima(small, target):
    """Eight scales and eight minima of six bits in 12 bytes."""
    for group in range(4):
        scale, minimum = int32_at(small + 4 * group), int32_at(small + 64 + 4 * group)
        late_scale, late_minimum = int32_at(small + 4 * group + 16), int32_at(small + 64 + 4 * group + 16)
        put_byte(target + group, scale | (late_scale >> 4) << 6)
        put_byte(target + 4 + group, minimum | (late_minimum >> 4) << 6)
        put_byte(target + 8 + group, (late_scale & 15) | (late_minimum & 15) << 4)


@helper
def _q4_k(codes, small, block):
    _scales_and_minima(small, block + 4)
    for part in range(4):
        nibbles(codes + 64 * part, block + 16 + 32 * part, 32)


@helper
def _q5_k(codes, small, block):
    _scales_and_minima(small, block + 4)
    single_bits(codes, block + 16, 4)
    for part in range(4):
        nibbles(codes + 64 * part, block + 48 + 32 * part, 32)


@helper
def _q6_k(codes, small, block):
    for half in range(2):
        nibbles(codes + 128 * half, block + 64 * half, 64)
    pairs_of_bits(codes, block + 128, 4)
    for group in range(16):
        put_byte(block + 192 + group, int32_at(small + 4 * group))


@helper
def _iq4_xs(codes, small, block):
    upper = 0
    for group in range(8):
        upper |= (int32_at(small + 4 * group) + 32 >> 4) << (2 * group)
    put_half(block + 2, upper)
    for group in range(4):
        first, second = int32_at(small + 8 * group) + 32, int32_at(small + 8 * group + 4) + 32
        put_byte(block + 4 + group, (first & 15) | (second & 15) << 4)
    for part in range(8):
        nibbles(codes + 32 * part, block + 8 + 16 * part, 16)


@helper
def _tq2_0(codes, small, block):
    pairs_of_bits(codes, block, 0)


@helper
def _digits(codes, target, width, count):
    """``count`` ternary digits that lie ``width`` apart in a byte: the fraction in base 3, rounded up."""
    for column in range(width):
        number = 0
        for digit in range(count):
            number = 3 * number + byte_at(codes + column + width * digit)
        if count == 4:
            number *= 3
        put_byte(target + column, (256 * number + 242) // 243)


@helper
def _tq1_0(codes, small, block):
    _digits(codes, block, 32, 5)
    _digits(codes + 160, block + 32, 16, 5)
    _digits(codes + 240, block + 48, 4, 4)


WRITERS = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _q4_0,
    "IQ4_XS": _iq4_xs,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
}
