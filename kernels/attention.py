"""Causal attention over the paged cache, block by block with a running softmax (Dao et al. 2022, FlashAttention).

Variants: ``f32``, ``f16`` and ``q8_0``, the types of the cache, whose layout `edgellm.kernels.cache` describes, and the
same with ``_latent``, where each key's first numbers are its value.

Four queries that read the same key/value head pass over the cache together, or eight where there are registers for
their sums, so that each key and value is loaded and converted once for all: they are neighbours in the list of (row,
query head of the group). The maximum that keeps
the softmax in range is only updated when a block exceeds it, and sums stay in lanes until the end.
"""

from __future__ import annotations

import numpy as np

from edgellm.kernels.attention_layout import (
    BLOCK_TOKENS,
    OUTPUT,
    PEAK,
    POSITION,
    QUERY,
    STATE_BYTES,
    SUMS,
    TILE,
    TOTAL_RESTS,
    TOTALS,
    WEIGHTS,
    WEIGHTS_BYTES,
    WIDE_TILE,
)
from edgellm.kernels.attention_tiles import (
    add_products,
    add_sums,
    add_sums_exactly,
    load_addresses,
    spread,
    store_sums,
    zeros,
)
from edgellm.kernels.memory import (
    broadcast_float,
    float_at,
    get,
    half_at,
    int32_at,
    int64_at,
    load_floats,
    load_halves,
    load_signed_bytes,
    prefetch_near,
    set_float,
    set_int64,
    store_floats,
)
from edgellm.kernels.records import ATTENTION as F
from edgellm.kernels.simd import (
    TARGET,
    add_exactly,
    any_greater,
    exponential,
    helper,
    lane_numbers,
    max_lanes,
    maximum,
    multiply_add,
    splat_float,
    splat_int,
    sum_lanes,
    tanh,
    to_floats,
    where_not_greater,
    with_rest,
)

# Columns that are added up before their sum is added to a score, so that rounding errors stay small; keys in half
# precision or int8 bring larger errors themselves.
_SPAN = 32
_MASKED = -3.4e38
_START = -3e38  # the first maximum: below any score and above what is masked


@helper
def _key_floats(keys, width, column):
    place = keys + 128 * column
    return load_floats(place), load_floats(place + 64)


@helper
def _value_floats(values, padded, token, column):
    return load_floats(values + 4 * (token * padded + column))


@helper
def _single_float(values, padded, token, column):
    return float_at(values + 4 * (token * padded + column))


@helper
def _single_half(values, padded, token, column):
    return half_at(values + 2 * (token * padded + column))


@helper
def _key_halves(keys, width, column):
    """One column of 32 keys."""
    place = keys + 64 * column
    return load_halves(place), load_halves(place + 32)


@helper
def _key_codes(keys, width, column):
    place, scales = keys + 32 * column, keys + 32 * width + 64 * (column // 32)
    low = to_floats(load_signed_bytes(place)) * load_halves(scales)
    return low, to_floats(load_signed_bytes(place + 16)) * load_halves(scales + 32)


@helper
def _value_halves(values, padded, token, column):
    """16 columns of one token's value."""
    return load_halves(values + 2 * (token * padded + column))


@helper
def _value_codes(values, padded, token, column):
    scale = half_at(values + 32 * padded + 2 * (token * (padded // 32) + column // 32))
    return to_floats(load_signed_bytes(values + token * padded + column)) * splat_float(scale)


@helper
def _mask(scores, lane, first, last):
    """Scores of tokens lane..lane + 15; those outside first..last become very small."""
    tokens = lane_numbers() + splat_int(lane)
    scores = where_not_greater(tokens, splat_int(last), scores, splat_float(_MASKED))
    return where_not_greater(splat_int(first), tokens, scores, splat_float(_MASKED))


@helper
def _sums_of(scratch, query, padded):
    """Where a query's sums of values are, and what was rounded off them."""
    sums = scratch + SUMS + query * 4 * padded
    return sums, sums + WIDE_TILE * 4 * padded


@helper
def _shrink(place, bytes_, factor):
    """Bring sums to a new maximum."""
    for offset in range(0, bytes_, 64):
        store_floats(place + offset, load_floats(place + offset) * factor)


@helper
def _softmax(record, scratch, query, padded, block_start):
    """Scores of one query against one block to weights, relative to the maximum so far."""
    constants = get(record, F.constants)
    weights = scratch + WEIGHTS + query * WEIGHTS_BYTES
    low, high = load_floats(weights), load_floats(weights + 64)
    state = scratch + query * STATE_BYTES
    totals, rests = scratch + TOTALS + query * 64, scratch + TOTAL_RESTS + query * 64
    low, high = low * broadcast_float(constants), high * broadcast_float(constants)
    cap = float_at(constants + 4)
    if cap != 0.0:
        low = splat_float(cap) * tanh(low / splat_float(cap))
        high = splat_float(cap) * tanh(high / splat_float(cap))
    position, window = int64_at(state + POSITION), get(record, F.window)
    first = position - window + 1 - block_start if window else 0
    last = position - block_start
    if first > 0 or last < BLOCK_TOKENS - 1:
        low, high = _mask(low, 0, first, last), _mask(high, 16, first, last)
    peak, total, rest = float_at(state + PEAK), load_floats(totals), load_floats(rests)
    largest = maximum(low, high)
    if any_greater(largest, splat_float(peak)):
        new_peak = max_lanes(largest)
        shrink = exponential(splat_float(peak - new_peak))
        total, rest = total * shrink, rest * shrink
        sums, sum_rests = _sums_of(scratch, query, padded)
        _shrink(sums, 4 * padded, shrink)
        _shrink(sum_rests, 4 * padded, shrink)
        set_float(state + PEAK, new_peak)
        peak = new_peak
    low, high = exponential(low - splat_float(peak)), exponential(high - splat_float(peak))
    store_floats(weights, low)
    store_floats(weights + 64, high)
    total, rest = add_exactly(total, rest, low + high)
    store_floats(totals, total)
    store_floats(rests, rest)


@helper
def _start_query(record, scratch, query, index, head, padded):
    """Note where a query is, what it sees and where its result goes; returns its position."""
    group, width, value_width = get(record, F.group), get(record, F.key_width), get(record, F.value_width)
    row, query_head = index // group, head * group + index % group
    position = int32_at(get(record, F.positions) + 4 * row)
    state = scratch + query * STATE_BYTES
    place = get(record, F.queries) + row * get(record, F.queries_stride)
    set_int64(state + QUERY, place + 4 * query_head * width)
    place = get(record, F.output) + row * get(record, F.output_stride)
    set_int64(state + OUTPUT, place + 4 * query_head * value_width)
    set_int64(state + POSITION, position)
    sinks = get(record, F.sinks)
    store_floats(scratch + TOTALS + query * 64, splat_float(0.0))
    store_floats(scratch + TOTAL_RESTS + query * 64, splat_float(0.0))
    set_float(state + PEAK, _START)
    if sinks:  # takes part in the sum, but has no value
        set_float(state + PEAK, float_at(sinks + 4 * query_head))
        set_float(scratch + TOTALS + query * 64, 1.0)
    sums, rests = _sums_of(scratch, query, padded)
    for offset in range(0, 4 * padded, 64):
        store_floats(sums + offset, splat_float(0.0))
        store_floats(rests + offset, splat_float(0.0))
    return position


@helper
def _finish_query(scratch, query, width, padded):
    """Divide a query's sums by its total and write them out."""
    output = int64_at(scratch + query * STATE_BYTES + OUTPUT)
    sums, rests = _sums_of(scratch, query, padded)
    for offset in range(0, 4 * padded, 64):
        store_floats(sums + offset, with_rest(load_floats(sums + offset), load_floats(rests + offset)))
    total, rest = load_floats(scratch + TOTALS + query * 64), load_floats(scratch + TOTAL_RESTS + query * 64)
    total = sum_lanes(with_rest(total, rest))
    # The largest score, or the sink's, has weight 1. If none has, no score was a number, and the result is none.
    inverse = 1.0 / total if total > 0.5 else np.nan
    for column in range(width):
        set_float(output + 4 * column, float_at(sums + 4 * column) * inverse)


_LOADS = {  # of keys as columns, and of values as rows, 16 columns or one; codes are always whole vectors
    "f32": (_key_floats, _value_floats, _single_float),
    "f16": (_key_halves, _value_halves, _single_half),
    "q8_0": (_key_codes, _value_codes, _single_half),
}
# Bytes of one column of a block's keys, and of 32 columns of one token's value. While one block is worked on, the next
# is asked for bit by bit: blocks lie apart, so that a processor does not find them by itself.
_AHEAD = {"f32": 128, "f16": 64, "q8_0": 32}
VARIANTS = tuple(f"{name}{latent}" for name in _LOADS for latent in ("", "_latent"))


def _score_columns(variant, tile):
    """``f(record, scratch, keys, ahead)``: scores of a tile against a block of 32 tokens; asks for the next keys."""
    key_pair, ahead_bytes = _LOADS[variant][0], _AHEAD[variant]
    nothing, add, store, put = zeros(tile, 2), add_products(tile, 2), store_sums(tile, 2), add_sums(tile, 2)
    queries, weights = load_addresses(tile, STATE_BYTES), spread(tile)

    @helper
    def score_columns(record, scratch, keys, ahead):
        width, places = get(record, F.key_width), queries(scratch + QUERY)
        scores = nothing()
        for column in range(width):
            prefetch_near(ahead + ahead_bytes * column)
            scores = add(scores, key_pair(keys, width, column), places, 4 * column)
        store(scores, weights(scratch + WEIGHTS, WEIGHTS_BYTES))

    # The loop is written twice: as a helper of both it cost half-precision caches a tenth of their speed.
    @helper
    def score_exactly(record, scratch, keys, ahead):
        width, places = get(record, F.key_width), queries(scratch + QUERY)
        results = weights(scratch + WEIGHTS, WEIGHTS_BYTES)
        store(nothing(), results)
        for first in range(0, width, _SPAN):
            scores = nothing()
            for column in range(first, min(first + _SPAN, width)):
                prefetch_near(ahead + ahead_bytes * column)
                scores = add(scores, key_pair(keys, width, column), places, 4 * column)
            put(scores, results)

    return score_exactly if variant == "f32" else score_columns


def _score_rows(variant):
    """``f(record, scratch, keys, first, end)``: scores of four queries against tokens first..end - 1 of a block whose
    keys are rows."""
    _, value_row, single_value = _LOADS[variant]

    @helper
    def score_rows(record, scratch, keys, first, end):
        width = get(record, F.key_width)
        stride = -(-width // 16) * 16
        q0, q1 = int64_at(scratch), int64_at(scratch + STATE_BYTES)
        q2, q3 = int64_at(scratch + 2 * STATE_BYTES), int64_at(scratch + 3 * STATE_BYTES)
        for token in range(first, end):
            a = b = c = d = splat_float(0.0)
            column = 0
            while column + 16 <= width:
                key, place = value_row(keys, stride, token, column), 4 * column
                a = multiply_add(load_floats(q0 + place), key, a)
                b = multiply_add(load_floats(q1 + place), key, b)
                c = multiply_add(load_floats(q2 + place), key, c)
                d = multiply_add(load_floats(q3 + place), key, d)
                column += 16
            e, f, g, h = sum_lanes(a), sum_lanes(b), sum_lanes(c), sum_lanes(d)
            while column < width:
                single, place = single_value(keys, stride, token, column), 4 * column
                e += float_at(q0 + place) * single
                f += float_at(q1 + place) * single
                g += float_at(q2 + place) * single
                h += float_at(q3 + place) * single
                column += 1
            weights = scratch + WEIGHTS + 4 * token
            set_float(weights, e)
            set_float(weights + WEIGHTS_BYTES, f)
            set_float(weights + 2 * WEIGHTS_BYTES, g)
            set_float(weights + 3 * WEIGHTS_BYTES, h)

    return score_rows


def _add_values(variant, tile):
    """``f(scratch, padded, values, row_width, first, end, ahead)``: add the weighted values of tokens first..end - 1 of
    a block to the sums of a tile, 32 columns at a time (sums of fewer would wait for each other); asks for the next.

    A block's sum begins at zero, and what is rounded off when it is added to those before is kept: rounding errors
    grow with the number of additions one after another, and a context has thousands of tokens.
    """
    value_row, ahead_bytes, addresses = _LOADS[variant][1], _AHEAD[variant], spread(tile)
    nothing, add, put = zeros(tile, 2), add_products(tile, 2), add_sums_exactly(tile, 2)
    nothing_last, add_last, put_last = zeros(tile, 1), add_products(tile, 1), add_sums_exactly(tile, 1)

    @helper
    def add_values(scratch, padded, values, row_width, first, end, ahead):
        weights, rests = addresses(scratch + WEIGHTS, WEIGHTS_BYTES), WIDE_TILE * 4 * padded
        column = 0
        while column + 32 <= padded:
            places = addresses(scratch + SUMS + 4 * column, 4 * padded)
            sums = nothing()
            for token in range(first, end):
                prefetch_near(ahead + ahead_bytes * (column + token))
                low = value_row(values, row_width, token, column)
                high = value_row(values, row_width, token, column + 16)
                sums = add(sums, (low, high), weights, 4 * token)
            put(sums, places, rests)
            column += 32
        if column < padded:
            places = addresses(scratch + SUMS + 4 * column, 4 * padded)
            sums = nothing_last()
            for token in range(first, end):
                sums = add_last(sums, (value_row(values, row_width, token, column),), weights, 4 * token)
            put_last(sums, places, rests)

    return add_values


def _attend(name, tile):
    """``f(record, scratch, head, first_index, count)``: ``count`` (1 to ``tile``) queries from ``first_index`` on, all
    of one sequence; the tile is filled with the last."""
    variant, latent = name.removesuffix("_latent"), name.endswith("_latent")
    score_rows, add_values = _score_rows(variant), _add_values(variant, tile)
    score_columns = _score_columns(variant, tile)

    @helper
    def attend(record, scratch, head, first_index, count):
        value_width = get(record, F.value_width)
        padded = -(-value_width // 16) * 16
        for query in range(tile):
            index = first_index + min(query, count - 1)
            position = _start_query(record, scratch, query, index, head, padded)
            if query == 0:
                first_position = position
        window = get(record, F.window)
        first_token = max(first_position - window + 1, 0) if window else 0
        sequence = int32_at(get(record, F.sequences) + 4 * (first_index // get(record, F.group)))
        table = get(record, F.tables) + sequence * int64_at(get(record, F.tables_stride))
        key_offset = head * get(record, F.head_key_bytes)
        value_offset = get(record, F.values_offset) + head * get(record, F.head_value_bytes)
        row_width = -(-get(record, F.key_width) // 16) * 16 if latent else padded
        last_number = position // BLOCK_TOKENS
        for number in range(first_token // BLOCK_TOKENS, last_number + 1):
            following = int32_at(table + 4 * min(number + 1, last_number)) * get(record, F.block_bytes)
            ahead = get(record, F.cache) + following
            block = get(record, F.cache) + int32_at(table + 4 * number) * get(record, F.block_bytes)
            start = number * BLOCK_TOKENS
            first, end = max(first_token - start, 0), min(position - start + 1, BLOCK_TOKENS)
            if latent:
                score_rows(record, scratch, block + key_offset, first, end)
            else:
                score_columns(record, scratch, block + key_offset, ahead + key_offset)
            for query in range(tile):
                _softmax(record, scratch, query, padded, start)
            add_values(scratch, padded, block + value_offset, row_width, first, end, ahead + value_offset)
        for query in range(count):
            _finish_query(scratch, query, value_width, padded)

    return attend


@helper
def _same_sequence(record, first_row, last_row):
    """Whether a tile's rows are of one sequence, so that their positions rise and they share blocks."""
    sequences = get(record, F.sequences)
    for row in range(first_row, last_row):
        if int32_at(sequences + 4 * row) != int32_at(sequences + 4 * last_row):
            return False
    return True


def kernel(variant):
    """The attention kernel for one type of cache."""
    wide = TARGET.has("avx512f") and not variant.endswith("_latent")
    attend_few = _attend(variant, TILE)
    attend_more = _attend(variant, WIDE_TILE) if wide else attend_few

    def attention(record, thread, threads):
        rows, heads, group = int64_at(get(record, F.rows)), get(record, F.heads), get(record, F.group)
        scratch = get(record, F.scratch) + thread * get(record, F.scratch_stride)
        # With one sequence tiles run on over rows; with several each row has tiles of its own.
        alone = _same_sequence(record, 0, rows - 1)
        span = rows * group if alone else group
        size = WIDE_TILE if wide and span > TILE else TILE
        tiles = -(-span // size)
        items = heads * tiles * (1 if alone else rows)
        # Later rows see more tokens, so threads take turns instead of ranges.
        for item in range(thread, items, threads):
            head, rest = item % heads, item // heads
            row, tile = rest // tiles, rest % tiles
            first, count = row * group + tile * size, min(size, span - tile * size)
            if wide and size > TILE:
                attend_more(record, scratch, head, first, count)
            else:
                attend_few(record, scratch, head, first, count)

    return attention
