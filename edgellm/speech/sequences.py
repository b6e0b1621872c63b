"""Where the decoder's hypotheses keep their keys and values: blocks of the cache, shared by those that begin alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgellm.errors import EdgeLLMError
from edgellm.platforms.batch import BLOCK_TOKENS, Int32Array


class BlockPool:
    """Blocks of the cache, counted by how many hypotheses read them.

    Args:
        count: blocks there are.
        copy: copies one block to another.
    """

    def __init__(self, count: int, copy: Callable[[int, int], None]) -> None:
        self._free = list(range(count - 1, -1, -1))
        self._readers = [0] * count
        self._copy = copy

    def take(self) -> int:
        """A block of one's own."""
        if not self._free:
            raise EdgeLLMError("the decoder's cache is full")
        block = self._free.pop()
        self._readers[block] = 1
        return block

    def share(self, blocks: list[int]) -> list[int]:
        """The same blocks for one more reader."""
        for block in blocks:
            self._readers[block] += 1
        return list(blocks)

    def give(self, blocks: list[int]) -> None:
        """One reader less."""
        for block in blocks:
            self._readers[block] -= 1
            if not self._readers[block]:
                self._free.append(block)
        blocks.clear()

    def writable(self, blocks: list[int], position: int) -> None:
        """See to it that ``position`` lies in a block that nobody else reads."""
        index = position // BLOCK_TOKENS
        while len(blocks) <= index:
            blocks.append(self.take())
        block = blocks[index]
        if self._readers[block] > 1:
            own = self.take()
            if position % BLOCK_TOKENS:
                self._copy(block, own)
            self._readers[block] -= 1
            blocks[index] = own


def tables(lists: list[list[int]]) -> Int32Array:
    """Block tables (sequences, blocks) of a step."""
    width = max(map(len, lists))
    table = np.zeros((len(lists), width), np.int32)
    for row, blocks in enumerate(lists):
        table[row, : len(blocks)] = blocks
        table[row, len(blocks) :] = blocks[0]
    return table
