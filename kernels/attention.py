"""Causal attention over the paged cache, block by block with a running softmax (Dao et al. 2022, FlashAttention).

Variants: ``f16`` and ``q8_0``, the types of the cache, whose layout `edgellm.kernels.cache` describes. One item of
work is one row and one key/value head with all its query heads.
"""

from __future__ import annotations

from edgellm.kernels.cache import BLOCK_TOKENS
from edgellm.kernels.records import ATTENTION as F
from edgellm.kernels.simd import (
    broadcast_float,
    exponential,
    float_at,
    get,
    half_at,
    helper,
    int32_at,
    int64_at,
    lane_numbers,
    load_floats,
    load_halves,
    load_signed_bytes,
    max_lanes,
    multiply_add,
    set_float,
    splat_float,
    splat_int,
    store_floats,
    sum_lanes,
    tanh,
    to_floats,
    where_not_greater,
)

_MASKED = -1e30


@helper
def _scores_of_halves(query, keys, width, lane):
    """16 scores: tokens lane..lane + 15 of a block against one query."""
    even = odd = splat_float(0.0)
    place = keys + 2 * lane
    column = 0
    while column + 2 <= width:
        even = multiply_add(broadcast_float(query + 4 * column), load_halves(place + 64 * column), even)
        odd = multiply_add(broadcast_float(query + 4 * column + 4), load_halves(place + 64 * column + 64), odd)
        column += 2
    if column < width:
        even = multiply_add(broadcast_float(query + 4 * column), load_halves(place + 64 * column), even)
    return even + odd


@helper
def _scores_of_codes(query, keys, width, lane):
    total = splat_float(0.0)
    for block in range(width // 32):
        part = splat_float(0.0)
        for column in range(32 * block, 32 * block + 32):
            codes = to_floats(load_signed_bytes(keys + 32 * column + lane))
            part = multiply_add(broadcast_float(query + 4 * column), codes, part)
        total = multiply_add(part, load_halves(keys + 32 * width + 64 * block + 2 * lane), total)
    return total


@helper
def _add_halves(total, weights, values, first, end, padded, column):
    """total + sum over tokens of weight * value, 16 columns."""
    for token in range(first, end):
        row = load_halves(values + 2 * (token * padded + column))
        total = multiply_add(broadcast_float(weights + 4 * token), row, total)
    return total


@helper
def _add_codes(total, weights, values, first, end, padded, column):
    scales = values + 32 * padded + column // 32 * 2
    for token in range(first, end):
        row = to_floats(load_signed_bytes(values + token * padded + column))
        weight = float_at(weights + 4 * token) * half_at(scales + token * (padded // 32) * 2)
        total = multiply_add(splat_float(weight), row, total)
    return total


def kernel(variant):
    """The attention kernel for one type of cache."""
    scores_of = _scores_of_halves if variant == "f16" else _scores_of_codes
    add_values = _add_halves if variant == "f16" else _add_codes

    @helper
    def masked_scores(query, keys, width, lane, constants, first, last):
        """Scores of 16 tokens, scaled and capped; those outside first..last become very small."""
        scores = scores_of(query, keys, width, lane) * broadcast_float(constants)
        cap = float_at(constants + 4)
        if cap != 0.0:
            scores = splat_float(cap) * tanh(scores / splat_float(cap))
        tokens = lane_numbers() + splat_int(lane)
        scores = where_not_greater(tokens, splat_int(last), scores, splat_float(_MASKED))
        return where_not_greater(splat_int(first), tokens, scores, splat_float(_MASKED))

    @helper
    def one_head(record, query, key_offset, value_offset, table, position, first_token, output, sink, scratch):
        """One query head: all blocks it sees, then the normalised sum of values."""
        key_width, value_width = get(record, F.key_width), get(record, F.value_width)
        constants, sums = get(record, F.constants), scratch + 4 * BLOCK_TOKENS
        padded = -(-value_width // 16) * 16
        peak, total = _MASKED, 0.0
        if sink:
            peak, total = float_at(sink) + 0.0, 1.0
        for column in range(0, padded, 16):
            store_floats(sums + 4 * column, splat_float(0.0))
        for number in range(first_token // BLOCK_TOKENS, position // BLOCK_TOKENS + 1):
            block = get(record, F.cache) + int32_at(table + 4 * number) * get(record, F.block_bytes)
            first = max(first_token - number * BLOCK_TOKENS, 0)
            last = min(position - number * BLOCK_TOKENS, BLOCK_TOKENS - 1)
            low = masked_scores(query, block + key_offset, key_width, 0, constants, first, last)
            high = masked_scores(query, block + key_offset, key_width, 16, constants, first, last)
            new_peak = max(peak, max(max_lanes(low), max_lanes(high)))
            low, high = exponential(low - splat_float(new_peak)), exponential(high - splat_float(new_peak))
            store_floats(scratch, low)
            store_floats(scratch + 64, high)
            shrink = exponential(splat_float(peak - new_peak))
            total = total * max_lanes(shrink) + sum_lanes(low) + sum_lanes(high)
            peak = new_peak
            for column in range(0, padded, 16):
                so_far = load_floats(sums + 4 * column) * shrink
                so_far = add_values(so_far, scratch, block + value_offset, first, last + 1, padded, column)
                store_floats(sums + 4 * column, so_far)
        inverse = 1.0 / total
        for column in range(value_width):
            set_float(output + 4 * column, float_at(sums + 4 * column) * inverse)

    def attention(record, thread, threads):
        rows, heads, group = (
            int64_at(get(record, F.rows)),
            get(record, F.heads),
            get(record, F.group),
        )
        key_width, value_width = get(record, F.key_width), get(record, F.value_width)
        window, sinks = get(record, F.window), get(record, F.sinks)
        scratch = get(record, F.scratch) + thread * get(record, F.scratch_stride)
        # Later rows see more tokens, so threads take turns instead of ranges.
        for item in range(thread, rows * heads, threads):
            row, head = item // heads, item % heads
            position = int32_at(get(record, F.positions) + 4 * row)
            sequence = int32_at(get(record, F.sequences) + 4 * row)
            table = get(record, F.tables) + sequence * int64_at(get(record, F.tables_stride))
            first_token = max(position - window + 1, 0) if window else 0
            key_offset = head * get(record, F.head_key_bytes)
            value_offset = get(record, F.values_offset) + head * get(record, F.head_value_bytes)
            for member in range(group):
                query_head = head * group + member
                query = get(record, F.queries) + row * get(record, F.queries_stride) + 4 * query_head * key_width
                output = get(record, F.output) + row * get(record, F.output_stride) + 4 * query_head * value_width
                sink = sinks + 4 * query_head if sinks else 0
                one_head(
                    record, query, key_offset, value_offset, table, position, first_token, output, sink, scratch
                )  # fmt: skip

    return attention
