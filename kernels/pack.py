"""Interleave the rows of a weight matrix in groups of 16: the compiled half of `edgellm.kernels.packing`.

Variants: ``words`` moves elements of four bytes, ``halves`` of two.
"""

from __future__ import annotations

from edgellm.kernels.records import PACK as F
from edgellm.kernels.simd import copy_int16, get, helper, set_int32, share, unaligned_int32_at


def kernel(variant):
    """The kernel that interleaves one section of every block."""
    size = 4 if variant == "words" else 2

    if size == 4:

        @helper
        def move(target, source, flip):
            set_int32(target, unaligned_int32_at(source) ^ flip)
    else:

        @helper
        def move(target, source, flip):
            copy_int16(target, source)

    def pack(record, thread, threads):
        source, source_stride, rows = (
            get(record, F.source),
            get(record, F.source_stride),
            get(record, F.rows),
        )
        blocks, block_bytes = get(record, F.blocks), get(record, F.block_bytes)
        offset, count, flip = (
            get(record, F.source_offset),
            get(record, F.count),
            get(record, F.flip),
        )
        first, end = share(get(record, F.groups), thread, threads)
        for group in range(first, end):
            for block in range(blocks):
                target = (
                    get(record, F.target)
                    + group * get(record, F.group_bytes)
                    + block * get(record, F.target_block_bytes)
                )
                for lane in range(16):
                    row = group * 16 + lane
                    place = target + lane * size
                    if row < rows:
                        start = source + row * source_stride + block * block_bytes + offset
                        for element in range(count):
                            move(place + element * 16 * size, start + element * size, flip)
                    else:
                        for element in range(count):
                            move(place + element * 16 * size, get(record, F.zero), 0)

    return pack
