"""The memory that each thread has for attention; no Numba here, so that planners can use it cheaply.

Of each query of a tile: where it is, where its result goes and its running maximum (64 bytes); 16 lanes of its running
total; its weights for one block of tokens; and its sums of values. Behind the totals, and behind the sums, is what was
rounded off them.
"""

from __future__ import annotations

BLOCK_TOKENS = 32
TILE, WIDE_TILE = 4, 8  # queries that pass over the cache together
QUERY, OUTPUT, SINK, POSITION, PEAK = 0, 8, 16, 24, 32  # in a query's first 64 bytes
STATE_BYTES = 64
WEIGHTS_BYTES = 4 * BLOCK_TOKENS
TOTALS = WIDE_TILE * STATE_BYTES
TOTAL_RESTS = TOTALS + WIDE_TILE * 64
WEIGHTS = TOTAL_RESTS + WIDE_TILE * 64
SUMS = WEIGHTS + WIDE_TILE * WEIGHTS_BYTES


def scratch_bytes(value_width: int) -> int:
    """Of each thread; ``value_width``: numbers in a value."""
    return SUMS + 2 * WIDE_TILE * 4 * (-(-value_width // 16) * 16)
