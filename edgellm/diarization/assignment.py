"""Pairing rows with columns so that the sum is largest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def best_pairs(gains: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pairs (row, column), each row and column at most once, with the largest sum of gains; (rows, columns) in.

    The Hungarian method with shortest augmenting paths (R. Jonker and A. Volgenant, "A shortest augmenting path
    algorithm for dense and sparse linear assignment problems", Computing 38, 1987), in O(rows² * columns).
    """
    if gains.size == 0:
        return []
    if gains.shape[0] > gains.shape[1]:
        return sorted((row, column) for column, row in best_pairs(gains.T))
    rows, columns = gains.shape
    costs = gains.max() - gains
    # Index 0 of every array stands for "none": the row to be placed starts there.
    row_price, column_price = np.zeros(rows + 1), np.zeros(columns + 1)
    owner = np.zeros(columns + 1, np.int64)
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        shortest = np.full(columns + 1, np.inf)
        came_from = np.zeros(columns + 1, np.int64)
        done = np.zeros(columns + 1, bool)
        while owner[column]:
            done[column] = True
            current = owner[column]
            reduced = costs[current - 1] - row_price[current] - column_price[1:]
            better = ~done[1:] & (reduced < shortest[1:])
            shortest[1:][better], came_from[1:][better] = reduced[better], column
            following = int(np.where(done, np.inf, shortest)[1:].argmin()) + 1
            step = shortest[following]
            row_price[owner[done]] += step
            column_price[done] -= step
            shortest[~done] -= step
            column = following
        while column:
            previous = int(came_from[column])
            owner[column] = owner[previous]
            column = previous
    return sorted((int(owner[column]) - 1, column - 1) for column in range(1, columns + 1) if owner[column])
