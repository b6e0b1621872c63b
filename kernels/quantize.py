"""Quantize activations to int8 in blocks of 32, the input of `edgellm.kernels.matmul`.

Per block of 32: d = max |x| / 127, q = round(x / d). The scales of a block are four float32:
d, d * sum(q), and the same sum over the first and over the last 16 values.

Where it matters, the remainder x - d q is quantized once more, with d / 254, as a second row of codes and scales: the
product of both has the precision of 16-bit activations.
"""

from __future__ import annotations

import numpy as np

from edgellm.kernels.memory import get, int64_at, load_floats, set_float, store_bytes
from edgellm.kernels.records import QUANTIZE as F
from edgellm.kernels.simd import (
    absolute,
    float_bits,
    helper,
    int_float,
    max_int_lanes,
    multiply_add,
    round_to_ints,
    share,
    splat_float,
    splat_int,
    sum_int_lanes,
    to_floats,
)

# Scales are computed in float64 and rounded once: `edgellm.kernels.tile_input` does the same, bit for bit.
STEP, FINE_STEP = 0.007874015748031496, 0.003937007874015748  # 1 / 127 and 1 / 254
NOT_FINITE = 0x7F800000  # the bits of infinity; those of any NaN are more


@helper
def _block(d, low, high):
    """Codes of a block, its scale, and the scaled sums of both halves: one sum over lanes, which hold both."""
    both = sum_int_lanes(low + (high << splat_int(16)))
    low_sum = ((both + 0x8000) & 0xFFFF) - 0x8000
    return low, high, d, d * low_sum, d * ((both - low_sum) >> 16)


@helper
def quantize_values(low, high):
    """32 float32 as a block of codes and scales, and their remainders as another.

    A value that is not finite gives NaN scales, so that it is seen in the result and not taken for a number.
    """
    # As integers the bits of magnitudes are in the order of the numbers, and what is not finite comes last.
    bits = max_int_lanes(float_bits(absolute(low)), float_bits(absolute(high)))
    peak = int_float(bits)
    d = peak * STEP if bits < NOT_FINITE else np.nan
    inverse = 127.0 / peak if peak > 1e-30 else 0.0
    low_codes, high_codes = round_to_ints(low * splat_float(inverse)), round_to_ints(high * splat_float(inverse))
    negative, finer = splat_float(0.0 - d), splat_float(254.0 * inverse)
    low_rest = round_to_ints(multiply_add(to_floats(low_codes), negative, low) * finer)
    high_rest = round_to_ints(multiply_add(to_floats(high_codes), negative, high) * finer)
    return _block(d, low_codes, high_codes), _block(d * FINE_STEP, low_rest, high_rest)


@helper
def _write_block(codes, scales, block):
    low, high, d, low_sum, high_sum = block
    store_bytes(codes, low)
    store_bytes(codes + 16, high)
    set_float(scales, d)
    set_float(scales + 4, low_sum + high_sum)
    set_float(scales + 8, low_sum)
    set_float(scales + 12, high_sum)


@helper
def quantize_block(source, codes, scales, fine_codes, fine_scales):
    """One block of 32 float32 to codes and scales, and its remainder too if ``fine_codes`` is not 0."""
    plain, rest = quantize_values(load_floats(source), load_floats(source + 64))
    _write_block(codes, scales, plain)
    if fine_codes:
        _write_block(codes + fine_codes, scales + fine_scales, rest)


VARIANTS = ("all",)


def kernel(variant):
    """The kernel that quantizes rows; blocks of all rows are shared among the threads."""

    def quantize(record, thread, threads):
        rows, blocks = int64_at(get(record, F.rows)), get(record, F.blocks)
        first, end = share(rows * blocks, thread, threads)
        for item in range(first, end):
            row, block = item // blocks, item % blocks
            source = get(record, F.input) + row * get(record, F.input_stride) + 128 * block
            codes = get(record, F.codes) + row * get(record, F.codes_stride) + 32 * block
            scales = get(record, F.scales) + row * get(record, F.scales_stride) + 16 * block
            quantize_block(source, codes, scales, get(record, F.fine_codes), get(record, F.fine_scales))

    return quantize
