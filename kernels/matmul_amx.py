"""Products of packed weights and many activation rows on Intel's AMX: one kernel per packed format.

Weights of 32 rows are unpacked to bfloat16 some hundred columns at a time, to a panel that the first-level cache
holds, and multiplied with all activation rows, which `edgellm.kernels.amx_input` has put into the order of tiles as
bfloat16. A block of 32 x 32 results takes four tiles; two tiles of activations and two of weights feed them.

Activations that the second-level cache cannot hold are taken in slabs of columns, each multiplied with all weights
before the next: the results of a slab are added to those before.

Variants: a packed format (``q4``), or one with ``_emulated`` behind it, which runs on any CPU.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types

from edgellm.kernels.amx import tiles
from edgellm.kernels.amx_layout import BFLOAT_FORMATS, CHUNK, LARGEST_CHUNK, ROW_BLOCK, STATE_BYTES, STEP, TILE_BYTES
from edgellm.kernels.amx_unpack import PANEL_STEP_BYTES, row_scales, unpacker
from edgellm.kernels.matmul import store_result
from edgellm.kernels.memory import get, int64_at, load_floats
from edgellm.kernels.packing import FORMATS
from edgellm.kernels.records import MATMUL_AMX as F
from edgellm.kernels.simd import TARGET, call_named, helper, instruction, share

VARIANTS = tuple(sorted(BFLOAT_FORMATS)) if TARGET.has("amx-bf16") else ()  # to be shipped
SLAB_BYTES = 1 << 20
"""Of activations that stay in the second-level cache: half of that of the CPUs that have AMX."""
_RESULT_BYTES = 4 * TILE_BYTES  # of a block of 32 x 32


@instruction(types.none, types.int64)
def prefetch_far(builder, address):
    """Ask for the cache line at an address, but not to the first-level cache, which holds the panel."""
    place = builder.inttoptr(address, ir.PointerType())
    numbers = [ir.Constant(ir.IntType(32), number) for number in (0, 2, 1)]
    call_named(builder, "llvm.prefetch.p0", ir.VoidType(), [place, *numbers])


@helper
def _prefetch_part(start, size, part, parts):
    for line in range(size * part // parts // 64, size * (part + 1) // parts // 64 + 1):
        prefetch_far(start + 64 * line)


def _products(mode):
    """Functions that add the products of a panel to a block of 32 x 32 results, or to its first 16 rows.

    (state, inputs, panel, steps, results, fresh): ``fresh`` says that the results begin at zero.
    """
    operations = tiles(mode)
    zero, load, store, dot = operations.zero, operations.load, operations.store, operations.dot_bfloats

    @helper
    def all_rows(state, inputs, panel, steps, results, fresh):
        if fresh:
            zero(state, 0)
            zero(state, 1)
            zero(state, 2)
            zero(state, 3)
        else:
            load(state, 0, results)
            load(state, 1, results + 1024)
            load(state, 2, results + 2048)
            load(state, 3, results + 3072)
        for step in range(steps):
            a, b = inputs + 2048 * step, panel + PANEL_STEP_BYTES * step
            load(state, 4, a)
            load(state, 6, b)
            dot(state, 0, 4, 6)
            load(state, 7, b + 1024)
            dot(state, 1, 4, 7)
            load(state, 5, a + 1024)
            dot(state, 2, 5, 6)
            dot(state, 3, 5, 7)
        store(state, 0, results)
        store(state, 1, results + 1024)
        store(state, 2, results + 2048)
        store(state, 3, results + 3072)

    @helper
    def upper_rows(state, inputs, panel, steps, results, fresh):
        if fresh:
            zero(state, 0)
            zero(state, 1)
        else:
            load(state, 0, results)
            load(state, 1, results + 1024)
        for step in range(steps):
            a, b = inputs + 2048 * step, panel + PANEL_STEP_BYTES * step
            load(state, 4, a)
            load(state, 6, b)
            dot(state, 0, 4, 6)
            load(state, 7, b + 1024)
            dot(state, 1, 4, 7)
        store(state, 0, results)
        store(state, 1, results + 1024)

    return all_rows, upper_rows


def kernel(variant):
    """The kernel ``output[row, :] = weights @ input[row]`` for one packed format."""
    name, _, mode = variant.partition("_")
    layout = FORMATS[name]
    values, block_bytes = layout.values, layout.code_bytes + layout.scale_bytes
    configure, release = tiles(mode).configure, tiles(mode).release
    all_rows, upper_rows = _products(mode)
    unpack, scales_of_rows = unpacker(name), row_scales(name)

    @helper
    def chunk_size(begin, stop):
        rest = stop - begin
        return rest if rest <= LARGEST_CHUNK else CHUNK

    @helper
    def prefetch_chunk(weights, begin, size, part, parts):
        """One part of the weights of a chunk of one group."""
        first, count = begin // values, size // values
        _prefetch_part(weights + first * block_bytes, count * block_bytes, part, parts)

    @helper
    def write_group(record, weights, results, group, first_row, end_row, later):
        """The results of one group of 16 weight rows, from tiles that lie 2048 bytes apart."""
        factor = scales_of_rows(weights, get(record, F.columns) // values)
        bias = get(record, F.bias)
        if bias:
            bias = 0 if later else bias + 64 * group
        accumulate = get(record, F.accumulate) | later
        output = get(record, F.output) + 64 * group
        for row in range(first_row, end_row):
            inside = row - first_row
            value = load_floats(results + 2048 * (inside >> 4) + 64 * (inside & 15)) * factor
            store_result(value, output + row * get(record, F.output_stride), bias, accumulate)

    @helper
    def multiply_panel(record, state, pair, last_pair, rows, start, stop):
        """Two groups of weight rows, if there are two, with the columns of a slab of all activation rows."""
        columns, group_bytes = get(record, F.columns), get(record, F.group_bytes)
        blocks, parts = columns // values, (rows + ROW_BLOCK - 1) // ROW_BLOCK
        results = state + STATE_BYTES
        panel = results + _RESULT_BYTES * parts
        groups = min(2, get(record, F.groups) - 2 * pair)
        weights = get(record, F.weights) + 2 * pair * group_bytes
        begin = start
        several = chunk_size(start, stop) < stop - start  # chunks, between which all results are kept
        while begin < stop:
            size = chunk_size(begin, stop)
            for side in range(groups):
                unpack(weights + side * group_bytes, blocks, begin // STEP, size // STEP, panel + side * TILE_BYTES)
            ahead, next_begin = weights, begin + size  # what is unpacked next
            if next_begin >= stop:
                ahead, next_begin = weights + 2 * group_bytes * (pair < last_pair), start
            next_size = chunk_size(next_begin, stop)
            for part in range(parts):
                for side in range(groups):
                    prefetch_chunk(ahead + side * group_bytes, next_begin, next_size, part, parts)
                row = ROW_BLOCK * part
                inputs = get(record, F.input) + (row * columns + ROW_BLOCK * begin) * 2
                place = results + (_RESULT_BYTES * part if several else 0)
                if rows - row > 16:
                    all_rows(state, inputs, panel, size // STEP, place, begin == start)
                else:
                    upper_rows(state, inputs, panel, size // STEP, place, begin == start)
                if begin + size == stop:
                    for side in range(groups):
                        source, end = place + side * TILE_BYTES, min(rows, row + ROW_BLOCK)
                        write_group(record, weights + side * group_bytes, source, 2 * pair + side, row, end, start > 0)
            begin += size

    def matmul(record, thread, threads):
        rows, columns = int64_at(get(record, F.rows)), get(record, F.columns)
        first, end = share((get(record, F.groups) + 1) // 2, thread, threads)
        if first == end or rows <= 0:
            return
        state = get(record, F.scratch) + thread * get(record, F.scratch_stride)
        slab = max(1, SLAB_BYTES // (2 * CHUNK * rows)) * CHUNK
        configure(state)
        for start in range(0, columns, slab):
            for pair in range(first, end):
                multiply_panel(record, state, pair, end - 1, rows, start, min(columns, start + slab))
        release(state)

    return matmul
