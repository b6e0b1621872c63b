"""Products with the matrices of a stack: experts that rows were routed to, or one matrix for each head.

A product is a pair: row and part of the output. The pairs of one matrix are worked on together, so that its weights
are read once in a step, and of matrices without a pair nothing is read. Threads share all groups of 16 weight rows,
counted once for each pair: in decode each thread has a stretch of all chosen experts, in prefill experts of its own.

Four pairs or more of a matrix are copied next to each other into the thread's memory, where they are multiplied like
the rows of `edgellm.kernels.matmul`, whose functions do the work. That memory holds the results of a tile (TILE * 64
bytes), then ROW_BLOCK rows of input, then their scales.

Variants: the packed formats.
"""

from __future__ import annotations

from edgellm.kernels import floats, matmul
from edgellm.kernels.memory import (
    copy_int32,
    float_at,
    get,
    int32_at,
    int64_at,
    load_floats,
    load_ints,
    set_float,
    store_floats,
    store_ints,
)
from edgellm.kernels.packing import FLOAT_FORMATS, FORMATS
from edgellm.kernels.records import EXPERTS as F
from edgellm.kernels.simd import helper

TILE = 4
ROW_BLOCK = 32  # pairs that are multiplied with a group of weights while it is in the first-level cache
RESULT_BYTES = TILE * 64
_NOTHING = (0, 0)  # follows that is known

VARIANTS = tuple(FORMATS)


@helper
def _copy(target, source, size):
    """Bytes, a multiple of four."""
    place = 0
    while place + 64 <= size:
        store_ints(target + place, load_ints(source + place))
        place += 64
    while place < size:
        copy_int32(target + place, source + place)
        place += 4


@helper
def _pair(record, matrix, number):
    """Row and part of a matrix's pair."""
    parts, starts = get(record, F.parts), get(record, F.starts)
    if starts == 0:
        return number, matrix
    pair = int32_at(get(record, F.pairs) + 4 * (int32_at(starts + 4 * matrix) + number))
    return pair // parts, pair % parts


@helper
def _source(record, row, part):
    """Where the input of a pair is, and its scales."""
    codes = get(record, F.input) + row * get(record, F.source_stride) + part * get(record, F.source_part)
    scales = row * get(record, F.source_scales_stride) + part * get(record, F.source_scales_part)
    return codes, get(record, F.scales) + scales


@helper
def _write(record, row, part, group, source):
    """Results of one pair and group to where they belong."""
    width = get(record, F.width)
    place = get(record, F.result) + row * get(record, F.result_stride) + 4 * part * width + 64 * group
    count = width - 16 * group
    if count >= 16:
        store_floats(place, load_floats(source))
    else:  # what follows is another part's
        for lane in range(count):
            set_float(place + 4 * lane, float_at(source + 4 * lane))


@helper
def _groups_of_thread(record, before, count, groups, total, thread, threads):
    """The first group of a matrix that a thread takes, and the one after its last.

    ``before``: pairs of the matrices before, ``count``: of this one, ``total``: of all. A group is as much work as
    there are pairs; it belongs to the thread in whose share of all work it begins.
    """
    work = total * groups
    first = work * thread // threads - before * groups
    end = work * (thread + 1) // threads - before * groups
    first, end = -(-max(first, 0) // count), -(-max(end, 0) // count)
    return min(first, groups), min(end, groups)


def kernel(name):
    """The kernel for stacks of one packed format."""
    factory = floats if name in FLOAT_FORMATS else matmul
    by_tile, by_row, _ = factory.group_products(name)

    @helper
    def gather(record, matrix, first, count, inputs, scales):
        """Copy the inputs of some pairs next to each other."""
        for number in range(count):
            row, part = _pair(record, matrix, first + number)
            source, source_scales = _source(record, row, part)
            _copy(inputs + number * get(record, F.input_stride), source, get(record, F.row_bytes))
            _copy(scales + number * get(record, F.scales_stride), source_scales, get(record, F.scale_bytes))

    @helper
    def multiply_pairs(record, matrix, pair, count, first_group, end_group, scratch):
        """Pairs ``pair``.. of a matrix, at most ROW_BLOCK, times some of its groups."""
        blocks = get(record, F.blocks)
        inputs = scratch + RESULT_BYTES
        scales = inputs + ROW_BLOCK * get(record, F.input_stride)
        tiles = count // TILE
        if tiles:
            gather(record, matrix, pair, tiles * TILE, inputs, scales)
        for group in range(first_group, end_group):
            weights = get(record, F.weights) + matrix * get(record, F.matrix_bytes) + group * get(record, F.group_bytes)
            bias = get(record, F.bias)
            if bias:
                bias += matrix * get(record, F.bias_bytes) + 64 * group
            for tile in range(tiles):
                first = tile * TILE
                x, s = inputs + first * get(record, F.input_stride), scales + first * get(record, F.scales_stride)
                by_tile(record, weights, blocks, x, s, scratch, bias, _NOTHING)
                for number in range(TILE):
                    row, part = _pair(record, matrix, pair + first + number)
                    _write(record, row, part, group, scratch + 64 * number)
            for number in range(tiles * TILE, count):
                row, part = _pair(record, matrix, pair + number)
                x, s = _source(record, row, part)
                by_row(record, weights, blocks, x, s, scratch, bias, _NOTHING)
                _write(record, row, part, group, scratch)

    def experts(record, thread, threads):
        rows, groups, starts = int64_at(get(record, F.rows)), get(record, F.groups), get(record, F.starts)
        scratch = get(record, F.scratch) + thread * get(record, F.scratch_stride)
        total = rows * get(record, F.parts)
        for matrix in range(get(record, F.matrices)):
            before, count = matrix * rows, rows
            if starts:
                before = int32_at(starts + 4 * matrix)
                count = int32_at(starts + 4 * matrix + 4) - before
            if count:
                first, end = _groups_of_thread(record, before, count, groups, total, thread, threads)
                if first < end:
                    for pair in range(0, count, ROW_BLOCK):
                        multiply_pairs(record, matrix, pair, min(count - pair, ROW_BLOCK), first, end, scratch)

    return experts
