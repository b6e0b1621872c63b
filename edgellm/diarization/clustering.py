"""Average-linkage clustering of embeddings by cosine distance, and where to cut the tree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tree:
    """Merges in the order of their height.

    Attributes:
        leaves: how many things were clustered.
        pairs: int (leaves - 1, 2): two leaves, one of each of the clusters that are merged.
        heights: float (leaves - 1): mean distance between their members, ascending.
    """

    leaves: int
    pairs: NDArray[np.int64]
    heights: NDArray[np.float64]

    def cut(self, clusters: int) -> NDArray[np.int64]:
        """Which of so many clusters each leaf belongs to; numbered by first appearance."""
        parents = np.arange(self.leaves)

        def root(leaf: int) -> int:
            while parents[leaf] != leaf:
                parents[leaf] = parents[parents[leaf]]
                leaf = int(parents[leaf])
            return leaf

        for a, b in self.pairs[: self.leaves - max(1, clusters)]:
            parents[root(int(a))] = root(int(b))
        numbers: dict[int, int] = {}
        return np.array([numbers.setdefault(root(leaf), len(numbers)) for leaf in range(self.leaves)], np.int64)


def cosine_distances(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 - cosine between all pairs of unit vectors, (n, n)."""
    return np.asarray(1.0 - embeddings @ embeddings.T, np.float32)


def average_linkage(distances: NDArray[np.float32], sizes: NDArray[np.float64] | None = None) -> Tree:
    """The tree of average linkage (UPGMA) over a symmetric matrix, which is overwritten.

    By chains of nearest neighbours (F. Murtagh, "A survey of recent advances in hierarchical clustering algorithms",
    The Computer Journal 26, 1983): O(n²) in time.

    Args:
        distances: (n, n).
        sizes: how many members each thing stands for; None: one each.
    """
    count = len(distances)
    weights = np.ones(count) if sizes is None else sizes.astype(np.float64).copy()
    np.fill_diagonal(distances, np.inf)
    alive = np.ones(count, bool)
    merges: list[tuple[float, int, int]] = []
    chain: list[int] = []
    for _ in range(count - 1):
        if not chain:
            chain = [int(alive.argmax())]
        while True:
            top = chain[-1]
            row = distances[top]
            nearest = int(row.argmin())
            # On ties the one before wins, or the chain would run in circles.
            if len(chain) > 1 and row[chain[-2]] <= row[nearest]:
                nearest = chain[-2]
                break
            chain.append(nearest)
        a, b = chain.pop(), chain.pop()
        merges.append((float(distances[a, b]), a, b))
        merged = (weights[a] * distances[a] + weights[b] * distances[b]) / (weights[a] + weights[b])
        merged[b] = np.inf
        distances[b], distances[:, b] = merged, merged
        distances[a], distances[:, a] = np.inf, np.inf
        weights[b] += weights[a]
        alive[a] = False
    # Stable: equal heights keep the order in which they were found, in which children come before their parents.
    merges.sort(key=lambda merge: merge[0])
    return Tree(
        count,
        np.array([merge[1:] for merge in merges], np.int64).reshape(-1, 2),
        np.array([merge[0] for merge in merges]),
    )


def clusters_at_widest_gap(heights: NDArray[np.float64], low: float, high: float) -> int:
    """The number of clusters when the tree is cut in the widest gap of heights between ``low`` and ``high``."""
    inner = heights[(heights > low) & (heights < high)]
    edges = np.concatenate([[low], inner, [high]])
    place = int(np.diff(edges).argmax())
    cut = (edges[place] + edges[place + 1]) / 2
    return 1 + int((heights > cut).sum())
