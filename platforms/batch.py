"""What an executor is asked for in one step, and what every executor offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from edgellm.graph import Graph

if TYPE_CHECKING:
    from edgellm.platforms.scores import RowDivergence, RowScores

BLOCK_TOKENS = 32
"""Tokens per block of the paged cache; a multiple of 16, the number of lanes of a kernel."""

Int32Array = NDArray[np.int32]
Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """The rows of one step: one row per token, of one or several sequences.

    Rows of one sequence stand in rising order of position. Position p of sequence s has its keys and values in
    cache block ``block_tables[s, p // BLOCK_TOKENS]`` at slot ``p % BLOCK_TOKENS``.
    """

    tokens: Int32Array  # (rows,)
    positions: Int32Array  # (rows,)
    sequences: Int32Array  # (rows,): index into block_tables
    block_tables: Int32Array  # (sequences, blocks)
    outputs: Int32Array  # (outputs,): rows whose logits are wanted
    scales: tuple[float, ...] = ()  # of each adapter of the graph, for all rows; empty: 1 for each

    def scale_of(self, adapter: int | None) -> float:
        """The scale of an adapter by its number; 1 for None."""
        return 1.0 if adapter is None or not len(self.scales) else float(self.scales[adapter])


class Executor(Protocol):
    """Runs a graph on one kind of machine, together with the cache that the graph needs."""

    graph: Graph
    max_rows: int
    max_outputs: int
    block_bytes: int

    def reserve(self, blocks: int) -> None:
        """Allocate a cache of that many blocks; memory is touched only as it is used."""

    def step(self, batch: Batch) -> Float32Array:
        """Run all operations; returns logits (outputs, vocabulary), valid until the next step."""

    def begin(self, batch: Batch) -> None:
        """Run all operations but those on the rows of ``batch.outputs``, which the following three do for some of them
        at a time, at most ``max_outputs``. Until the next step they may be called again and again."""

    def logits_of(self, rows: Int32Array) -> Float32Array:
        """Logits (rows, vocabulary) of some output rows, by their numbers in the batch; valid until the next call."""

    def score(self, rows: Int32Array, targets: Int32Array) -> RowScores:
        """How probable a target is after each of the rows."""

    def compare(self, rows: Int32Array, targets: Int32Array, base: Float32Array) -> RowDivergence:
        """The same, and the divergence from what another model computed for these rows."""

    def copy_block(self, source: int, destination: int) -> None:
        """Copy one cache block, all layers."""

    def memory(self) -> dict[str, int]:
        """Bytes held: weights, cache (reserved), buffers."""

    def close(self) -> None:
        """Give all memory and threads back."""
