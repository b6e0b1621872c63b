"""The likeliest tokens that the rules of timestamps allow (Radford et al. 2022). Variant: ``tokens``.

Each row has rules (int32): the row of the bias, the first text token allowed, the first timestamp allowed and the one
after the last, and whether probabilities decide between text and timestamps: where all allowed timestamps together are
likelier than every single text token, text is ruled out. Tokens from one range's end to the other's beginning are not
looked at. What is written are log-probabilities among what is allowed.
"""

from __future__ import annotations

import numpy as np

from edgellm.kernels.memory import float_at, get, int32_at, int64_at, load_floats, set_float, set_int32, store_floats
from edgellm.kernels.simd import (
    any_greater,
    exponential,
    helper,
    lane_numbers,
    logarithm,
    max_lanes,
    maximum,
    splat_float,
    splat_int,
    sum_lanes,
    where_not_greater,
)
from edgellm.kernels.sound_records import CHOOSE as F

VARIANTS = ("tokens",)
MOST = 16
RULES = 8
_LOW = -3e38  # below every logit that is a number and allowed
_BIAS, _FIRST_TEXT, _FIRST_TIMESTAMP, _END, _DECIDE = 0, 4, 8, 12, 16


@helper
def _values(logits, bias, start, first, end):
    """16 logits from ``start`` on; those outside ``first`` .. ``end`` - 1 become very small."""
    value = maximum(load_floats(logits + 4 * start) + load_floats(bias + 4 * start), splat_float(_LOW))
    if start < first or start + 16 > end:
        lanes = lane_numbers() + splat_int(start)
        value = where_not_greater(splat_int(first), lanes, value, splat_float(_LOW))
        value = where_not_greater(lanes, splat_int(end - 1), value, splat_float(_LOW))
    return value


@helper
def _largest(logits, bias, first, end):
    peak = splat_float(_LOW)
    for start in range(first // 16 * 16, end, 16):
        peak = maximum(_values(logits, bias, start, first, end), peak)
    return max_lanes(peak)


@helper
def _sum(logits, bias, first, end, peak):
    """Sum of e^(x - peak)."""
    total = splat_float(0.0)
    for start in range(first // 16 * 16, end, 16):
        total = total + exponential(_values(logits, bias, start, first, end) - splat_float(peak))
    return sum_lanes(total)


@helper
def _insert(value, token, tokens, scores, count):
    """Put a candidate at its place among the best; equals stay in the order they came."""
    place = count - 1
    while place > 0 and float_at(scores + 4 * (place - 1)) < value:
        set_float(scores + 4 * place, float_at(scores + 4 * (place - 1)))
        set_int32(tokens + 4 * place, int32_at(tokens + 4 * (place - 1)))
        place -= 1
    set_float(scores + 4 * place, value)
    set_int32(tokens + 4 * place, token)


@helper
def _collect(logits, bias, first, end, tokens, scores, count):
    """Find the best of a range and put them among those found before."""
    for start in range(first // 16 * 16, end, 16):
        value = _values(logits, bias, start, first, end)
        if any_greater(value, splat_float(float_at(scores + 4 * (count - 1)))):
            for lane in range(max(first - start, 0), min(end - start, 16)):
                single = float_at(logits + 4 * (start + lane)) + float_at(bias + 4 * (start + lane))
                if single > float_at(scores + 4 * (count - 1)):
                    _insert(single, start + lane, tokens, scores, count)


def kernel(variant):
    """The kernel; each row is one thread's."""

    def choose(record, thread, threads):
        rows, count = int64_at(get(record, F.rows)), get(record, F.count)
        boundary = get(record, F.timestamps)
        for row in range(thread, rows, threads):
            logits = get(record, F.logits) + row * get(record, F.logits_stride)
            rules = get(record, F.rules) + 4 * RULES * row
            bias = get(record, F.bias) + int32_at(rules + _BIAS) * get(record, F.bias_stride)
            text, stamp, end = (
                int32_at(rules + _FIRST_TEXT), int32_at(rules + _FIRST_TIMESTAMP), int32_at(rules + _END)
            )  # fmt: skip
            text_peak, stamp_peak = _largest(logits, bias, text, boundary), _largest(logits, bias, stamp, end)
            peak = max(text_peak, stamp_peak)
            text_sum, stamp_sum = _sum(logits, bias, text, boundary, peak), _sum(logits, bias, stamp, end, peak)
            # Both sides are relative to e^peak: the timestamps' sum against the largest single text token.
            if int32_at(rules + _DECIDE) and stamp_peak > _LOW:
                largest = splat_float(text_peak - peak)
                if stamp_sum > max_lanes(exponential(largest)) or text_peak <= _LOW:
                    text, text_sum = boundary, np.float32(0.0)
            tokens, scores = get(record, F.tokens) + 4 * MOST * row, get(record, F.scores) + 4 * MOST * row
            store_floats(scores, splat_float(_LOW))
            for place in range(MOST):
                set_int32(tokens + 4 * place, -1)
            _collect(logits, bias, text, boundary, tokens, scores, count)
            _collect(logits, bias, stamp, end, tokens, scores, count)
            total = logarithm(splat_float(text_sum + stamp_sum)) + splat_float(peak)
            store_floats(scores, load_floats(scores) - total)

    return choose
