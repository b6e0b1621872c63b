"""Attention of all rows to all rows in float64, for encoders. Variants: ``keys``, ``attend``.

``keys`` arranges keys and values of a layer, so that both products read one stretch of memory: for each head groups of
16 keys, (width, 16) each, whose last is filled up with zeros; and groups of 16 of the head's columns, (rows, 16) each,
of the values. ``attend`` takes a tile of queries at a time: scores of all keys, their softmax, sums of values. Heads
are multiples of 16 wide.
"""

from __future__ import annotations

from edgellm.kernels.double_products import TILE
from edgellm.kernels.double_vectors import (
    SIZE,
    add_products,
    double_at,
    exponential_doubles,
    load_doubles,
    max_double_lanes,
    maximum_doubles,
    set_double,
    store_doubles,
    store_rows,
    tile_of,
)
from edgellm.kernels.memory import get, int64_at
from edgellm.kernels.simd import helper, share, splat_double, sum_double_lanes
from edgellm.kernels.sound_records import DOUBLE_ATTENTION as F

VARIANTS = ("keys", "attend")
_VECTOR = 16 * SIZE


@helper
def _arrange_keys(source, stride, width, count, output):
    """A group of up to 16 keys."""
    for column in range(width):
        for key in range(count):
            set_double(output + _VECTOR * column + SIZE * key, double_at(source + key * stride + SIZE * column))
        for key in range(count, 16):
            set_double(output + _VECTOR * column + SIZE * key, 0.0)


@helper
def _arrange_values(source, stride, width, count, output, column_bytes):
    """The same rows of the values; the same columns of all rows are ``column_bytes`` long."""
    for group in range(width // 16):
        for key in range(count):
            place = output + group * column_bytes + _VECTOR * key
            store_doubles(place, load_doubles(source + key * stride + _VECTOR * group))


def _keys(record, thread, threads):
    """Heads' groups of 16 rows are shared among the threads."""
    rows, width = int64_at(get(record, F.rows)), get(record, F.width)
    groups = -(-rows // 16)
    first, end = share(get(record, F.heads) * groups, thread, threads)
    for item in range(first, end):
        head, row = item // groups, 16 * (item % groups)
        count, start = min(16, rows - row), head * width * SIZE
        k = get(record, F.keys) + row * get(record, F.keys_stride) + start
        v = get(record, F.values) + row * get(record, F.values_stride) + start
        arranged = get(record, F.arranged_keys) + head * get(record, F.head_bytes) + width * SIZE * row
        _arrange_keys(k, get(record, F.keys_stride), width, count, arranged)
        arranged = get(record, F.arranged_values) + head * get(record, F.head_bytes) + _VECTOR * row
        _arrange_values(v, get(record, F.values_stride), width, count, arranged, _VECTOR * rows)


@helper
def _softmax(scores, keys, scale):
    """Scores become weights with the sum 1; those behind the last key, up to a whole vector, count for nothing."""
    padded = -(-keys // 16) * 16
    for key in range(keys, padded):
        set_double(scores + SIZE * key, -float("inf"))
    peaks = splat_double(-float("inf"))
    for key in range(0, padded, 16):
        peaks = maximum_doubles(load_doubles(scores + SIZE * key), peaks)
    peak, sums = splat_double(max_double_lanes(peaks)), splat_double(0.0)
    for key in range(0, padded, 16):
        weight = exponential_doubles((load_doubles(scores + SIZE * key) - peak) * splat_double(scale))
        sums = sums + weight
        store_doubles(scores + SIZE * key, weight)
    share_of_all = splat_double(1.0 / sum_double_lanes(sums))
    for key in range(0, padded, 16):
        store_doubles(scores + SIZE * key, load_doubles(scores + SIZE * key) * share_of_all)


def _attention(queries):
    """``f(record, head, row, scratch)``: so many queries of a head."""
    nothing, add, store = tile_of(queries), add_products(queries), store_rows(queries)

    @helper
    def products(vectors, count, x, stride, output, output_stride):
        tile = nothing(splat_double(0.0))
        for number in range(count):
            tile = add(tile, load_doubles(vectors + _VECTOR * number), x + SIZE * number, stride)
        store(tile, output, output_stride)

    @helper
    def attend(record, head, row, scratch):
        keys, width = int64_at(get(record, F.rows)), get(record, F.width)
        stride, output_stride = get(record, F.queries_stride), get(record, F.output_stride)
        start, scores_bytes = head * width * SIZE, get(record, F.scores_bytes)
        q = get(record, F.queries) + row * stride + start
        k = get(record, F.arranged_keys) + head * get(record, F.head_bytes)
        v = get(record, F.arranged_values) + head * get(record, F.head_bytes)
        output = get(record, F.output) + row * output_stride + start
        for key in range(0, keys, 16):
            products(k + width * SIZE * key, width, q, stride, scratch + SIZE * key, scores_bytes)
        for query in range(queries):
            _softmax(scratch + query * scores_bytes, keys, double_at(get(record, F.scale)))
        for group in range(width // 16):
            place = v + group * _VECTOR * keys
            products(place, keys, scratch, scores_bytes, output + _VECTOR * group, output_stride)

    return attend


def kernel(variant):
    """The kernel of one step."""
    if variant == "keys":
        return _keys
    tile, single = _attention(TILE), _attention(1)

    def attend(record, thread, threads):
        rows = int64_at(get(record, F.rows))
        tiles = -(-rows // TILE)
        scratch = get(record, F.scratch) + thread * get(record, F.scratch_stride)
        first, end = share(get(record, F.heads) * tiles, thread, threads)
        for item in range(first, end):
            head, row = item // tiles, item % tiles * TILE
            if row + TILE <= rows:
                tile(record, head, row, scratch)
            else:
                for number in range(row, rows):
                    single(record, head, number, scratch)

    return attend
