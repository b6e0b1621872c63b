"""Sizes for the kernels that compute in float64. This module does not import Numba."""

from __future__ import annotations

MOST_ROWS = 12
"""Of activations or queries that are multiplied together, on any CPU."""


def scores_bytes(keys: int) -> int:
    """Of one query's scores: keys are a multiple of 16, and 64 more keep queries out of each other's cache sets."""
    return 8 * keys + 64


def scratch_bytes(keys: int) -> int:
    """Of one thread: the scores of a tile."""
    return MOST_ROWS * scores_bytes(keys)
