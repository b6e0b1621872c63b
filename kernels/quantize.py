"""Quantize activations to int8 in blocks of 32, the input of `edgellm.kernels.matmul`.

Per block of 32: d = max |x| / 127, q = round(x / d). The scales of a block are four float32:
d, d * sum(q), and the same sum over the first and over the last 16 values.
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
    round_to_ints,
    set_float,
    share,
    splat_float,
    store_bytes,
    sum_int_lanes,
    sum_lanes,
)


@helper
def quantize_block(source, codes, scales):
    """One block of 32 float32 to codes and scales. A value that is not finite gives NaN scales, so that it is seen in
    the result and not taken for a number."""
    low, high = load_floats(source), load_floats(source + 64)
    peak = max_lanes(maximum(absolute(low), absolute(high)))
    not_finite = sum_lanes((low - low) + (high - high))  # NaN if any value is NaN or infinite, else 0
    d = peak * 0.007874015748031496 + not_finite  # 1 / 127
    inverse = 127.0 / peak if peak > 1e-30 else 0.0
    low_codes, high_codes = round_to_ints(low * splat_float(inverse)), round_to_ints(high * splat_float(inverse))
    store_bytes(codes, low_codes)
    store_bytes(codes + 16, high_codes)
    low_sum, high_sum = d * sum_int_lanes(low_codes), d * sum_int_lanes(high_codes)
    set_float(scales, d)
    set_float(scales + 4, low_sum + high_sum)
    set_float(scales + 8, low_sum)
    set_float(scales + 12, high_sum)


def kernel(variant):
    """The kernel that quantizes rows; blocks of all rows are shared among the threads."""

    def quantize(record, thread, threads):
        rows, blocks = int64_at(get(record, F.rows)), get(record, F.blocks)
        first, end = share(rows * blocks, thread, threads)
        for item in range(first, end):
            row, block = item // blocks, item % blocks
            source = get(record, F.input) + row * get(record, F.input_stride) + 128 * block
            codes = get(record, F.codes) + row * get(record, F.codes_stride) + 32 * block
            quantize_block(
                source,
                codes,
                get(record, F.scales) + row * get(record, F.scales_stride) + 16 * block,
            )

    return quantize
