"""Activations for the AMX kernels: float32 rows to bfloat16, in the order in which tiles read them.

The rows are cut in blocks of 32. A block holds, for each 32 columns, two tiles: the first 16 rows and the last 16,
each row 32 bfloat16. So tiles lie one behind the other, where rows of a power of two of bytes would all fall into the
same few sets of the cache. Rows beyond the last are left as they were.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types

from edgellm.kernels.amx_layout import STEP
from edgellm.kernels.memory import get, int64_at, load_floats
from edgellm.kernels.records import AMX_INPUT as F
from edgellm.kernels.simd import FLOATS, INTS_IR, TARGET, instruction, ints_constant, share

VARIANTS = ("bfloat16",) if TARGET.has("amx-bf16") else ()  # to be shipped; the emulation needs it too


def to_bfloats_ir(builder, value):
    """float32 to bfloat16, to nearest even, as the upper half of each int32 lane; the lower half is undefined.

    What is not a number becomes the same NaN: rounding could carry others into the sign.
    """
    bits = builder.bitcast(value, INTS_IR)
    odd = builder.and_(builder.lshr(bits, ints_constant(16)), ints_constant(1))
    rounded = builder.add(builder.add(bits, ints_constant(0x7FFF)), odd)
    size = builder.and_(bits, ints_constant(0x7FFFFFFF))
    no_number = builder.icmp_unsigned(">", size, ints_constant(0x7F800000))
    return builder.select(no_number, ints_constant(0x7FC00000), rounded)


@instruction(types.none, types.int64, FLOATS)
def store_bfloats(builder, address, value):
    """16 float32 as bfloat16."""
    half = builder.trunc(
        builder.lshr(to_bfloats_ir(builder, value), ints_constant(16)), ir.VectorType(ir.IntType(16), 16)
    )
    builder.store(half, builder.inttoptr(address, ir.PointerType()), align=2)


def kernel(variant):
    """The kernel that writes all rows; tiles are shared among the threads."""

    def pack(record, thread, threads):
        rows, steps = int64_at(get(record, F.rows)), get(record, F.columns) // STEP
        first, end = share((rows + 15) // 16 * steps, thread, threads)
        for item in range(first, end):
            tile, step = item // steps, item % steps
            source = get(record, F.input) + 16 * tile * get(record, F.input_stride) + 4 * STEP * step
            target = get(record, F.output) + (((tile >> 1) * steps + step) * 2 + (tile & 1)) * 1024
            for row in range(min(16, rows - 16 * tile)):
                place = source + row * get(record, F.input_stride)
                store_bfloats(target + 64 * row, load_floats(place))
                store_bfloats(target + 64 * row + 32, load_floats(place + 64))

    return pack
