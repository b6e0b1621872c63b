"""Quantize activations to int8 in blocks of 32, the input of `edgellm.kernels.matmul`.

Per block of 32: d = max |x| / 127, q = round(x / d). The scales of a block are four float32:
d, d * sum(q), and the same sum over the first and over the last 16 values.

Where it matters, the remainder x - d q is quantized once more, with d / 254, as a second row of codes and scales: the
product of both has the precision of 16-bit activations.
"""

from __future__ import annotations

from edgellm.kernels.records import QUANTIZE as F
from edgellm.kernels.simd import (
    absolute,
    get,
    helper,
    int64_at,
    load_floats,
    max_lanes,
    maximum,
    multiply_add,
    round_to_ints,
    set_float,
    share,
    splat_float,
    store_bytes,
    sum_int_lanes,
    sum_lanes,
    to_floats,
)


@helper
def _write_block(codes, scales, d, low, high):
    store_bytes(codes, low)
    store_bytes(codes + 16, high)
    low_sum, high_sum = d * sum_int_lanes(low), d * sum_int_lanes(high)
    set_float(scales, d)
    set_float(scales + 4, low_sum + high_sum)
    set_float(scales + 8, low_sum)
    set_float(scales + 12, high_sum)


@helper
def quantize_block(source, codes, scales, fine_codes, fine_scales):
    """One block of 32 float32 to codes and scales, and its remainder too if ``fine_codes`` is not 0.

    A value that is not finite gives NaN scales, so that it is seen in the result and not taken for a number.
    """
    low, high = load_floats(source), load_floats(source + 64)
    peak = max_lanes(maximum(absolute(low), absolute(high)))
    not_finite = sum_lanes((low - low) + (high - high))  # NaN if any value is NaN or infinite, else 0
    d = peak * 0.007874015748031496 + not_finite  # 1 / 127
    inverse = 127.0 / peak if peak > 1e-30 else 0.0
    low_codes, high_codes = round_to_ints(low * splat_float(inverse)), round_to_ints(high * splat_float(inverse))
    _write_block(codes, scales, d, low_codes, high_codes)
    if fine_codes:
        negative = splat_float(0.0 - d)
        low_rest = multiply_add(to_floats(low_codes), negative, low)
        high_rest = multiply_add(to_floats(high_codes), negative, high)
        finer = splat_float(254.0 * inverse)
        _write_block(
            codes + fine_codes,
            scales + fine_scales,
            d * 0.003937007874015748,  # 1 / 254
            round_to_ints(low_rest * finer),
            round_to_ints(high_rest * finer),
        )


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
