"""Batches for executors, cut from sequences of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgellm.platforms.batch import BLOCK_TOKENS, Batch, Executor


@dataclass
class Sequences:
    """Token sequences with block tables in any order; ``take`` cuts the next rows of some of them as one batch."""

    tokens: list[NDArray[np.int32]]
    tables: NDArray[np.int32]
    done: list[int] = field(default_factory=list)

    @staticmethod
    def of(tokens: Sequence[Sequence[int]], shuffle: np.random.Generator | None = None) -> Sequences:
        """Blocks in rising order, or dealt out in the order of ``shuffle``; also more blocks than are needed."""
        width = max(-(-len(ids) // BLOCK_TOKENS) for ids in tokens)
        blocks = np.arange(width * len(tokens) + 2, dtype=np.int32)
        if shuffle is not None:
            shuffle.shuffle(blocks)
        tables = blocks[: width * len(tokens)].reshape(len(tokens), width)
        return Sequences([np.array(ids, np.int32) for ids in tokens], tables, [0] * len(tokens))

    @property
    def blocks(self) -> int:
        """Blocks that the cache needs."""
        return self.tables.size + 2

    def take(self, *counts: int) -> Batch:
        """The next ``counts[s]`` tokens of each sequence s, all logits wanted."""
        ends = [min(len(ids), at + count) for ids, at, count in zip(self.tokens, self.done, counts, strict=True)]
        spans = [(ids, at, end) for ids, at, end in zip(self.tokens, self.done, ends, strict=True)]
        positions = [np.arange(at, end, dtype=np.int32) for _, at, end in spans]
        sequences = [np.full(end - at, number, np.int32) for number, (_, at, end) in enumerate(spans)]
        self.done = ends
        rows = np.arange(sum(len(part) for part in positions), dtype=np.int32)
        tokens = np.concatenate([ids[at:end] for ids, at, end in spans])
        return Batch(tokens, np.concatenate(positions), np.concatenate(sequences), self.tables, rows)


def whole_logits(executor: Executor, ids: Sequence[int], chunk: int = 512) -> NDArray[np.float32]:
    """Logits of all tokens of one sequence, (len(ids), vocabulary), computed ``chunk`` rows at a time."""
    sequences = Sequences.of([ids])
    executor.reserve(sequences.blocks)
    parts = []
    while sequences.done[0] < len(ids):
        parts.append(executor.step(sequences.take(chunk)).copy())
    return np.concatenate(parts)
