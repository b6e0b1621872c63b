"""Copy chosen rows: ``output[i] = input[index[i]]``. Variant: ``select``."""

from __future__ import annotations

from edgellm.kernels.memory import get, int32_at, int64_at, load_floats, store_floats
from edgellm.kernels.records import ROWS as F
from edgellm.kernels.simd import share

VARIANTS = ("select",)


def kernel(variant):
    """The copying kernel."""

    def select(record, thread, threads):
        first, end = share(int64_at(get(record, F.rows)), thread, threads)
        for row in range(first, end):
            source = get(record, F.input) + int32_at(get(record, F.index) + 4 * row) * get(record, F.input_stride)
            output = get(record, F.output) + row * get(record, F.output_stride)
            for column in range(0, get(record, F.width), 16):
                store_floats(output + 4 * column, load_floats(source + 4 * column))

    return select
