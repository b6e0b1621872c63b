"""Interleave the rows of a weight matrix in groups of 16: the compiled half of `edgellm.kernels.packing`.

Variants: ``words`` moves elements of four bytes, ``halves`` of two.
"""

from __future__ import annotations

from edgellm.kernels.simd import copy_int16, helper, int64_at, set_int32, share, unaligned_int32_at

FIELDS = (
    "source",  # address of the first row's bytes in the file
    "source_stride",  # bytes from row to row
    "rows",
    "groups",
    "blocks",
    "block_bytes",  # of the file
    "source_offset",  # in the file's block
    "count",  # elements to move per row and block
    "target",  # address of the first block's place in the first group
    "group_bytes",
    "target_block_bytes",
    "flip",  # exclusive-ored to each element (words only)
    "zero",  # address of four zero bytes, read for rows that do not exist
)


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
        source, source_stride, rows = int64_at(record), int64_at(record + 8), int64_at(record + 16)
        blocks, block_bytes = int64_at(record + 32), int64_at(record + 40)
        offset, count, flip = int64_at(record + 48), int64_at(record + 56), int64_at(record + 88)
        first, end = share(int64_at(record + 24), thread, threads)
        for group in range(first, end):
            for block in range(blocks):
                target = int64_at(record + 64) + group * int64_at(record + 72) + block * int64_at(record + 80)
                for lane in range(16):
                    row = group * 16 + lane
                    place = target + lane * size
                    if row < rows:
                        start = source + row * source_stride + block * block_bytes + offset
                        for element in range(count):
                            move(place + element * 16 * size, start + element * size, flip)
                    else:
                        for element in range(count):
                            move(place + element * 16 * size, int64_at(record + 96), 0)

    return pack
