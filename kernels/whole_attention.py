"""Attention of rows over all keys of a source, with int8 keys: what encoders do, and decoders to what they have read.

Of each source and head are kept:

- keys as int8 codes + 128 with a scale for each key, in groups of 16 keys: a vector of 64 bytes has four neighbouring
  numbers of 16 keys, as packed weights have;
- values as rows: float32, or int8 codes with a scale for each key.

Queries are quantized to int8 with a scale each, so that scores are integer products. All scores of a tile of queries
are computed before their softmax, so that there is one maximum. A tile is eight queries of one source or one.

Variants: ``store_NAME`` and ``attend_NAME``, where NAME is the type of the values, ``f32`` or ``q8``.
"""

from __future__ import annotations

from edgellm.kernels.memory import (
    broadcast_float,
    broadcast_int,
    copy_int32,
    float_at,
    get,
    int32_at,
    int64_at,
    load_floats,
    load_ints,
    load_signed_bytes,
    set_float,
    set_int32,
    set_int64,
    store_bytes,
    store_floats,
)
from edgellm.kernels.products import dot4
from edgellm.kernels.simd import (
    absolute,
    exponential,
    helper,
    lane_numbers,
    max_lanes,
    maximum,
    multiply_add,
    round_to_ints,
    share,
    splat_float,
    splat_int,
    sum_int_lanes,
    sum_lanes,
    to_floats,
    where_not_greater,
)
from edgellm.kernels.sound_records import WHOLE as F

VARIANTS = ("store_f32", "store_q8", "attend_f32", "attend_q8")
TILE = 8
GROUP = 32  # keys whose scores are computed together
_MASKED = -3e38

# Scratch of a thread: codes of the tile's queries, their scales and sums, then scores.
MOST_WIDTH = 256
_CODES = TILE * MOST_WIDTH
_SCALES = _CODES
_SUMS = _SCALES + 4 * TILE
_ADDRESSES = _SUMS + 4 * TILE
_SCORES = _ADDRESSES + 64


@helper
def _peak(source, width):
    """Largest magnitude of a head; NaN if a number is not finite, so that it is seen in the result."""
    largest, rest = splat_float(0.0), splat_float(0.0)
    for column in range(0, width, 16):
        value = load_floats(source + 4 * column)
        largest = maximum(absolute(value), largest)
        rest = rest + (value - value)
    return max_lanes(largest) + sum_lanes(rest)


@helper
def _quantize_value(source, target, scale_place, width):
    peak = _peak(source, width)
    set_float(scale_place, peak / 127.0)
    inverse = splat_float(127.0 / peak if peak > 1e-30 else 0.0)
    for column in range(0, width, 16):
        store_bytes(target + column, round_to_ints(load_floats(source + 4 * column) * inverse))


def _store(values):
    floats = values == "f32"

    def store(record, thread, threads):
        rows, heads, width = int64_at(get(record, F.rows)), get(record, F.heads), get(record, F.width)
        base = get(record, F.store) + int32_at(get(record, F.sources)) * get(record, F.source_bytes)
        spare = get(record, F.scratch) + thread * get(record, F.scratch_stride)
        first, end = share(rows, thread, threads)
        for row in range(first, end):
            for head in range(heads):
                place = base + head * get(record, F.head_bytes)
                key = get(record, F.queries) + row * get(record, F.queries_stride) + 4 * head * width
                target = place + row // 16 * 16 * width + 4 * (row % 16)
                peak = _peak(key, width)
                set_float(place + get(record, F.scales) + 4 * row, peak / 127.0)
                inverse = splat_float(127.0 / peak if peak > 1e-30 else 0.0)
                for column in range(0, width, 16):
                    codes = round_to_ints(load_floats(key + 4 * column) * inverse) + splat_int(128)
                    store_bytes(spare, codes)
                    for part in range(4):
                        copy_int32(target + 16 * column + 64 * part, spare + 4 * part)
                value = get(record, F.output) + row * get(record, F.output_stride) + 4 * head * width
                target = place + get(record, F.values)
                if floats:
                    for column in range(0, width, 16):
                        store_floats(target + 4 * (row * width + column), load_floats(value + 4 * column))
                else:
                    scale = place + get(record, F.value_scales) + 4 * row
                    _quantize_value(value, target + row * width, scale, width)

    return store


@helper
def _start_query(record, scratch, query, row, head):
    """Quantize one query of a tile."""
    width = get(record, F.width)
    source = get(record, F.queries) + row * get(record, F.queries_stride) + 4 * head * width
    codes = scratch + query * MOST_WIDTH
    peak = _peak(source, width)
    inverse = splat_float(127.0 / peak if peak > 1e-30 else 0.0)
    total = 0
    for column in range(0, width, 16):
        ints = round_to_ints(load_floats(source + 4 * column) * inverse)
        store_bytes(codes + column, ints)
        total += sum_int_lanes(ints)
    set_float(scratch + _SCALES + 4 * query, peak / 127.0 * float_at(get(record, F.constants)))
    set_int32(scratch + _SUMS + 4 * query, 128 * total)


@helper
def _put_scores(scratch, query, stride, key, dots, scales, keys):
    """16 dot products to scores; those beyond the last key become very small. Returns them."""
    factor = splat_float(float_at(scratch + _SCALES + 4 * query)) * load_floats(scales + 4 * key)
    scores = to_floats(dots - splat_int(int32_at(scratch + _SUMS + 4 * query))) * factor
    if key + 16 > keys:
        scores = where_not_greater(lane_numbers() + splat_int(key), splat_int(keys - 1), scores, splat_float(_MASKED))
    store_floats(scratch + _SCORES + query * stride + 4 * key, scores)


@helper
def _score_eight(record, scratch, place, stride):
    """Scores of eight queries with all keys, 32 at a time."""
    width, keys = get(record, F.width), get(record, F.keys)
    scales = place + get(record, F.scales)
    for key in range(0, keys, GROUP):
        low = place + key * width
        high = low + 16 * width
        a = b = c = d = e = f = g = h = splat_int(0)
        i = j = k = m = n = o = p = q = splat_int(0)
        for column in range(0, width, 4):
            one, two = load_ints(low + 16 * column), load_ints(high + 16 * column)
            code = scratch + column
            x = broadcast_int(code)
            a, i = dot4(a, one, x), dot4(i, two, x)
            x = broadcast_int(code + MOST_WIDTH)
            b, j = dot4(b, one, x), dot4(j, two, x)
            x = broadcast_int(code + 2 * MOST_WIDTH)
            c, k = dot4(c, one, x), dot4(k, two, x)
            x = broadcast_int(code + 3 * MOST_WIDTH)
            d, m = dot4(d, one, x), dot4(m, two, x)
            x = broadcast_int(code + 4 * MOST_WIDTH)
            e, n = dot4(e, one, x), dot4(n, two, x)
            x = broadcast_int(code + 5 * MOST_WIDTH)
            f, o = dot4(f, one, x), dot4(o, two, x)
            x = broadcast_int(code + 6 * MOST_WIDTH)
            g, p = dot4(g, one, x), dot4(p, two, x)
            x = broadcast_int(code + 7 * MOST_WIDTH)
            h, q = dot4(h, one, x), dot4(q, two, x)
        _put_scores(scratch, 0, stride, key, a, scales, keys)
        _put_scores(scratch, 1, stride, key, b, scales, keys)
        _put_scores(scratch, 2, stride, key, c, scales, keys)
        _put_scores(scratch, 3, stride, key, d, scales, keys)
        _put_scores(scratch, 4, stride, key, e, scales, keys)
        _put_scores(scratch, 5, stride, key, f, scales, keys)
        _put_scores(scratch, 6, stride, key, g, scales, keys)
        _put_scores(scratch, 7, stride, key, h, scales, keys)
        _put_scores(scratch, 0, stride, key + 16, i, scales, keys)
        _put_scores(scratch, 1, stride, key + 16, j, scales, keys)
        _put_scores(scratch, 2, stride, key + 16, k, scales, keys)
        _put_scores(scratch, 3, stride, key + 16, m, scales, keys)
        _put_scores(scratch, 4, stride, key + 16, n, scales, keys)
        _put_scores(scratch, 5, stride, key + 16, o, scales, keys)
        _put_scores(scratch, 6, stride, key + 16, p, scales, keys)
        _put_scores(scratch, 7, stride, key + 16, q, scales, keys)


@helper
def _score_one(record, scratch, place, stride):
    """The same for one query."""
    width, keys = get(record, F.width), get(record, F.keys)
    scales = place + get(record, F.scales)
    for key in range(0, keys, GROUP):
        low = place + key * width
        high = low + 16 * width
        a = b = c = d = splat_int(0)
        for column in range(0, width, 8):
            x, y = broadcast_int(scratch + column), broadcast_int(scratch + column + 4)
            a, b = dot4(a, load_ints(low + 16 * column), x), dot4(b, load_ints(high + 16 * column), x)
            c, d = dot4(c, load_ints(low + 16 * column + 64), y), dot4(d, load_ints(high + 16 * column + 64), y)
        _put_scores(scratch, 0, stride, key, a + c, scales, keys)
        _put_scores(scratch, 0, stride, key + 16, b + d, scales, keys)


@helper
def _softmax(scores, count):
    """Scores, a multiple of GROUP of them, to weights relative to the largest; returns 1 / their sum."""
    low = high = splat_float(_MASKED)  # two, as each comparison waits for the one before
    for key in range(0, count, GROUP):
        low = maximum(load_floats(scores + 4 * key), low)
        high = maximum(load_floats(scores + 4 * key + 64), high)
    peak = splat_float(max_lanes(maximum(low, high)))
    total = splat_float(0.0)
    for key in range(0, count, 16):
        weights = exponential(load_floats(scores + 4 * key) - peak)
        store_floats(scores + 4 * key, weights)
        total = total + weights
    return 1.0 / sum_lanes(total)


@helper
def _apply_scales(scores, scales, count):
    """Weights times the scales of int8 values."""
    for key in range(0, count, 16):
        store_floats(scores + 4 * key, load_floats(scores + 4 * key) * load_floats(scales + 4 * key))


@helper
def _row_floats(values, place):
    return load_floats(values + 4 * place)


@helper
def _row_codes(values, place):
    return to_floats(load_signed_bytes(values + place))


@helper
def _put(record, scratch, query, head, column, low, high):
    """32 columns of a query's result."""
    factor = splat_float(float_at(scratch + _SCALES + 4 * query))
    output = int64_at(scratch + _ADDRESSES + 8 * query) + 4 * (head * get(record, F.width) + column)
    store_floats(output, low * factor)
    store_floats(output + 64, high * factor)


def _attend(values):
    row_of = _row_floats if values == "f32" else _row_codes
    scaled = values != "f32"

    @helper
    def mix_eight(record, scratch, place, stride, head):
        """Weighted values of eight queries, 32 columns at a time."""
        width, keys = get(record, F.width), get(record, F.keys)
        rows, weights = place + get(record, F.values), scratch + _SCORES
        for column in range(0, width, 32):
            a = b = c = d = e = f = g = h = splat_float(0.0)
            i = j = k = m = n = o = p = q = splat_float(0.0)
            for key in range(keys):
                low = row_of(rows, key * width + column)
                high = row_of(rows, key * width + column + 16)
                weight = weights + 4 * key
                x = broadcast_float(weight)
                a, i = multiply_add(x, low, a), multiply_add(x, high, i)
                x = broadcast_float(weight + stride)
                b, j = multiply_add(x, low, b), multiply_add(x, high, j)
                x = broadcast_float(weight + 2 * stride)
                c, k = multiply_add(x, low, c), multiply_add(x, high, k)
                x = broadcast_float(weight + 3 * stride)
                d, m = multiply_add(x, low, d), multiply_add(x, high, m)
                x = broadcast_float(weight + 4 * stride)
                e, n = multiply_add(x, low, e), multiply_add(x, high, n)
                x = broadcast_float(weight + 5 * stride)
                f, o = multiply_add(x, low, f), multiply_add(x, high, o)
                x = broadcast_float(weight + 6 * stride)
                g, p = multiply_add(x, low, g), multiply_add(x, high, p)
                x = broadcast_float(weight + 7 * stride)
                h, q = multiply_add(x, low, h), multiply_add(x, high, q)
            _put(record, scratch, 7, head, column, h, q)
            _put(record, scratch, 6, head, column, g, p)
            _put(record, scratch, 5, head, column, f, o)
            _put(record, scratch, 4, head, column, e, n)
            _put(record, scratch, 3, head, column, d, m)
            _put(record, scratch, 2, head, column, c, k)
            _put(record, scratch, 1, head, column, b, j)
            _put(record, scratch, 0, head, column, a, i)

    @helper
    def mix_one(record, scratch, place, stride, head):
        """The same for one query; four sums hide the latency of the additions."""
        width, keys = get(record, F.width), get(record, F.keys)
        rows, weights = place + get(record, F.values), scratch + _SCORES
        for column in range(0, width, 32):
            a = b = c = d = e = f = g = h = splat_float(0.0)
            key = 0
            while key + 4 <= keys:
                start = key * width + column
                x = broadcast_float(weights + 4 * key)
                a, b = multiply_add(x, row_of(rows, start), a), multiply_add(x, row_of(rows, start + 16), b)
                x, start = broadcast_float(weights + 4 * key + 4), start + width
                c, d = multiply_add(x, row_of(rows, start), c), multiply_add(x, row_of(rows, start + 16), d)
                x, start = broadcast_float(weights + 4 * key + 8), start + width
                e, f = multiply_add(x, row_of(rows, start), e), multiply_add(x, row_of(rows, start + 16), f)
                x, start = broadcast_float(weights + 4 * key + 12), start + width
                g, h = multiply_add(x, row_of(rows, start), g), multiply_add(x, row_of(rows, start + 16), h)
                key += 4
            while key < keys:
                start = key * width + column
                x = broadcast_float(weights + 4 * key)
                a, b = multiply_add(x, row_of(rows, start), a), multiply_add(x, row_of(rows, start + 16), b)
                key += 1
            _put(record, scratch, 0, head, column, (a + c) + (e + g), (b + d) + (f + h))

    @helper
    def attend_tile(record, scratch, head, first_row, count):
        """``count`` rows from ``first_row`` on, all of one source; a tile of eight is filled with the last."""
        keys = get(record, F.keys)
        whole = -(-keys // GROUP) * GROUP
        stride = 4 * whole + 64
        source = int32_at(get(record, F.sources) + 4 * first_row)
        place = get(record, F.store) + source * get(record, F.source_bytes) + head * get(record, F.head_bytes)
        queries = 1 if count == 1 else TILE
        for query in range(queries):
            row = first_row + min(query, count - 1)
            _start_query(record, scratch, query, row, head)
            set_int64(scratch + _ADDRESSES + 8 * query, get(record, F.output) + row * get(record, F.output_stride))
        if count == 1:
            _score_one(record, scratch, place, stride)
        else:
            _score_eight(record, scratch, place, stride)
        for query in range(queries):
            scores = scratch + _SCORES + query * stride
            set_float(scratch + _SCALES + 4 * query, _softmax(scores, whole))
            if scaled:
                _apply_scales(scores, place + get(record, F.value_scales), whole)
        if count == 1:
            mix_one(record, scratch, place, stride, head)
        else:
            mix_eight(record, scratch, place, stride, head)

    def attend(record, thread, threads):
        rows, heads = int64_at(get(record, F.rows)), get(record, F.heads)
        scratch = get(record, F.scratch) + thread * get(record, F.scratch_stride)
        sources = get(record, F.sources)
        # Tiles are counted head by head, so that a thread stays with a head's keys and values. Every thread walks all
        # rows and takes its share.
        tiles = 0
        row = 0
        while row < rows:
            row += run_length(sources, row, rows)
            tiles += 1
        first, end = share(tiles * heads, thread, threads)
        for head in range(first // max(tiles, 1), heads):
            if head * tiles >= end:
                break
            item = head * tiles
            row = 0
            while row < rows:
                count = run_length(sources, row, rows)
                if first <= item < end:
                    attend_tile(record, scratch, head, row, count)
                row += count
                item += 1

    return attend


@helper
def run_length(sources, row, rows):
    """How many rows from ``row`` on, at most a tile, have the same source."""
    count = 1
    source = int32_at(sources + 4 * row)
    while count < TILE and row + count < rows and int32_at(sources + 4 * (row + count)) == source:
        count += 1
    return count


def kernel(variant):
    """The kernel of one step."""
    step, _, values = variant.partition("_")
    return _store(values) if step == "store" else _attend(values)
