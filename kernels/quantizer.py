"""Quantize weights: rows of float32, float16, bfloat16 or Q8_0 into the blocks of a quantized type.

There is a variant for every type, and one with ``_weighted`` behind it that takes an importance matrix: errors of a
column count as much as it says. `quantizer_search.py` has the search for scales, `quantizer_blocks.py` the layouts.

Work goes in chunks of 16 groups of values, where a group has one scale: 16 blocks of the simple types, one or two
blocks of 256 values of the others. All arithmetic is on 16 groups at once, one in each lane.
"""

from __future__ import annotations

from edgellm.kernels.memory import (
    get,
    half_at,
    half_bits,
    int64_at,
    load_bfloats,
    load_floats,
    load_halves,
    load_signed_bytes,
    set_int64,
    store_floats,
    store_ints,
)
from edgellm.kernels.pack import move_four_words
from edgellm.kernels.quantizer_blocks import WRITERS
from edgellm.kernels.quantizer_memory import BLOCKS, CODES, IMPORTANCE, ROWS, SCRATCH_BYTES, SMALL, VALUES
from edgellm.kernels.quantizer_schemes import SCHEMES
from edgellm.kernels.quantizer_search import (
    range_search,
    scale_search,
    two_level_ranges,
    two_level_scales,
)
from edgellm.kernels.quantizer_vectors import byte_at as _byte_at
from edgellm.kernels.quantizer_vectors import (
    inverse_or_zero,
    nearest_between,
    nearest_step,
    put_byte,
    round_half,
    scatter_halves,
    scatter_words,
    step_number,
)
from edgellm.kernels.records import QUANTIZER as F
from edgellm.kernels.simd import (
    absolute,
    helper,
    max_lanes,
    maximum,
    round_to_ints,
    share,
    splat_float,
    splat_int,
    sum_lanes,
    to_floats,
)

VARIANTS = tuple(f"{name}{weighted}" for name in SCHEMES for weighted in ("", "_weighted"))


# -- reading -----------------------------------------------------------------------------------------------------


@helper
def _load_sixteen(source, kind, number):
    """Values from ``number``, a multiple of 16, on."""
    if kind == 0:
        return load_floats(source + 4 * number)
    if kind == 1:
        return load_halves(source + 2 * number)
    if kind == 2:
        return load_bfloats(source + 2 * number)
    block = source + 34 * (number // 32)
    return to_floats(load_signed_bytes(block + 2 + number % 32)) * splat_float(half_at(block))


def _reader(largest):
    """``f(record, first, count, rows)``: float32 values, and what is wrong with them into the record."""

    @helper
    def read(record, first, count, rows):
        source, kind = get(record, F.source), get(record, F.kind)
        peak, nothing = splat_float(0.0), splat_float(0.0)
        for number in range(0, count, 16):
            value = _load_sixteen(source, kind, first + number)
            peak = maximum(absolute(value), peak)
            nothing = nothing + (value - value)
            store_floats(rows + 4 * number, value)
        finite = sum_lanes(nothing) == 0.0
        problem = (0 if finite else 1) | (2 if max_lanes(peak) > largest else 0)
        if problem:
            set_int64(get(record, F.problem), int64_at(get(record, F.problem)) | problem)

    return read


@helper
def _clear(rows, first, end):
    for number in range(first, end, 16):
        store_floats(rows + 4 * number, splat_float(0.0))


@helper
def _to_lanes(rows, target, count):
    """16 groups of values one after the other, into one lane each."""
    for element in range(0, count, 4):
        move_four_words(target + 64 * element, rows + 4 * element, 4 * count, 0)


def _importance_reader(group):
    """``f(record, first, rows)``: what the columns of 16 groups count, group after group."""

    @helper
    def read(record, first, rows):
        importance, row_groups = get(record, F.importance), get(record, F.row_values) // group
        for lane in range(16):
            source = importance + 4 * group * ((first + lane) % row_groups)
            for column in range(0, group, 16):
                store_floats(rows + 4 * (group * lane + column), load_floats(source + 4 * column))

    return read


# -- f(values, weights, codes, small, target): the blocks of a chunk, but for their codes -------------------------


@helper
def _put_codes(target, element, stride, first, second, third, fourth):
    """Four codes of each of 16 groups, as bytes."""
    low = (first & splat_int(255)) | ((second & splat_int(255)) << splat_int(8))
    high = ((third & splat_int(255)) << splat_int(16)) | (fourth << splat_int(24))
    scatter_words(target + element, stride, low | high)


def _code_writer(scheme):
    """``f(values, codes, minimum, inverse)``: the codes nearest to (x - minimum) * inverse, as bytes."""
    nearest = nearest_between(float(scheme.low), float(scheme.high))
    # Signed multiples of a scale are kept with the lowest at zero, but for Q8_0, whose bytes are signed.
    base = 0 if scheme.low == -127 or scheme.has_minima else -scheme.low
    group = scheme.group
    if scheme.by_table:

        @helper
        def code(values, element, minimum, inverse):
            return step_number(load_floats(values + 64 * element) * inverse)
    else:

        @helper
        def code(values, element, minimum, inverse):
            value = (load_floats(values + 64 * element) - minimum) * inverse
            return round_to_ints(nearest(value)) + splat_int(base)

    @helper
    def write(values, codes, minimum, inverse):
        for element in range(0, group, 4):
            _put_codes(
                codes,
                element,
                group,
                code(values, element, minimum, inverse),
                code(values, element + 1, minimum, inverse),
                code(values, element + 2, minimum, inverse),
                code(values, element + 3, minimum, inverse),
            )

    return write


def _search(scheme, weighted):
    if scheme.has_minima:
        return range_search(
            scheme.group,
            scheme.high,
            weighted,
            scheme.trials,
            scheme.first,
            scheme.step,
            1,
            scheme.multiples is not None,
        )
    nearest = nearest_step if scheme.by_table else nearest_between(float(scheme.low), float(scheme.high))
    signed = scheme.low != -scheme.high
    return scale_search(
        scheme.group, nearest, weighted, signed, scheme.trials, scheme.first, scheme.step, scheme.refinements
    )


def _put_halves(scheme):
    """``f(target, place, lanes)``: a number of each block, of which the first of its lanes counts."""
    stride, blocks = scheme.block_bytes, scheme.chunk_blocks

    if scheme.groups == 1:

        @helper
        def put(target, which, lanes, small):
            scatter_halves(target + which, stride, half_bits(lanes))
    else:

        @helper
        def put(target, which, lanes, small):
            store_ints(small, half_bits(lanes))
            for block in range(blocks):
                source = small + block * (64 // blocks)
                put_byte(target + block * stride + which, _byte_at(source))
                put_byte(target + block * stride + which + 1, _byte_at(source + 1))

    return put


def _one_scale(scheme, weighted):
    search, write, put = _search(scheme, weighted), _code_writer(scheme), _put_halves(scheme)
    place = scheme.places[0]

    @helper
    def quantize(values, weights, codes, small, target):
        scale = round_half(search(values, weights))
        put(target, place, scale, small)
        write(values, codes, splat_float(0.0), inverse_or_zero(scale))

    return quantize


def _scale_and_minimum(scheme, weighted):
    search, write, put = _search(scheme, weighted), _code_writer(scheme), _put_halves(scheme)
    place, minimum_place = scheme.places

    @helper
    def quantize(values, weights, codes, small, target):
        scale, low = search(values, weights)
        scale, low = round_half(scale), round_half(low)
        put(target, place, scale, small)
        put(target, minimum_place, low, small)
        write(values, codes, low, inverse_or_zero(scale))

    return quantize


def _scale_of_scales(scheme, weighted):
    search, write, put = _search(scheme, weighted), _code_writer(scheme), _put_halves(scheme)
    nearest = nearest_step if scheme.by_table else nearest_between(float(scheme.low), float(scheme.high))
    find = two_level_scales(
        scheme.group, nearest, weighted, scheme.groups, *scheme.multiples, search, scheme.refinements
    )
    place = scheme.places[0]

    @helper
    def quantize(values, weights, codes, small, target):
        scale, multiples = find(values, weights)
        put(target, place, scale, small)
        store_ints(small, round_to_ints(multiples))
        write(values, codes, splat_float(0.0), inverse_or_zero(scale * multiples))

    return quantize


def _scales_of_both(scheme, weighted):
    search, write, put = _search(scheme, weighted), _code_writer(scheme), _put_halves(scheme)
    find = two_level_ranges(
        scheme.group, scheme.high, weighted, scheme.groups, scheme.multiples[1], search, scheme.refinements
    )
    place, minimum_place = scheme.places

    @helper
    def quantize(values, weights, codes, small, target):
        scale, up, offset, down = find(values, weights)
        put(target, place, scale, small)
        put(target, minimum_place, offset, small)
        store_ints(small, round_to_ints(up))
        store_ints(small + 64, round_to_ints(down))
        write(values, codes, splat_float(0.0) - offset * down, inverse_or_zero(scale * up))

    return quantize


def _chunk_quantizer(scheme, weighted):
    if scheme.multiples is None:
        return (_scale_and_minimum if scheme.has_minima else _one_scale)(scheme, weighted)
    return (_scales_of_both if scheme.has_minima else _scale_of_scales)(scheme, weighted)


def kernel(variant):
    """The kernel that quantizes rows to one type; chunks are shared among the threads."""
    name, weighted = variant.removesuffix("_weighted"), variant.endswith("_weighted")
    scheme, write_block = SCHEMES[name], WRITERS[name]
    group, groups, block_bytes, chunk_blocks = scheme.group, scheme.groups, scheme.block_bytes, scheme.chunk_blocks
    block_values, chunk_values = group * groups, 16 * group
    quantize_chunk = _chunk_quantizer(scheme, weighted)
    read, read_importance = _reader(scheme.largest), _importance_reader(group)

    def quantize(record, thread, threads):
        blocks = get(record, F.blocks)
        scratch = get(record, F.scratch) + thread * SCRATCH_BYTES
        first_chunk, end_chunk = share(-(-blocks // chunk_blocks), thread, threads)
        for chunk in range(first_chunk, end_chunk):
            first = chunk * chunk_blocks
            count = min(chunk_blocks, blocks - first)
            read(record, first * block_values, count * block_values, scratch + ROWS)
            _clear(scratch + ROWS, count * block_values, chunk_values)
            _to_lanes(scratch + ROWS, scratch + VALUES, group)
            if weighted:
                read_importance(record, first * groups, scratch + ROWS)
                _to_lanes(scratch + ROWS, scratch + IMPORTANCE, group)
            target = get(record, F.target) + first * block_bytes
            place = target if count == chunk_blocks else scratch + BLOCKS
            quantize_chunk(scratch + VALUES, scratch + IMPORTANCE, scratch + CODES, scratch + SMALL, place)
            for block in range(chunk_blocks):
                codes, small = scratch + CODES + block * block_values, scratch + SMALL + 4 * block * groups
                write_block(codes, small, place + block * block_bytes)
            if count < chunk_blocks:
                for number in range(count * block_bytes):
                    put_byte(target + number, _byte_at(place + number))

    return quantize
