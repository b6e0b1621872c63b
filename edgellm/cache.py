"""Which tokens lie in which block of the executor's cache: allocation, sharing between sequences, reuse of prefixes.

Blocks of ``BLOCK_TOKENS`` tokens are reference-counted as in PagedAttention (Kwon et al. 2023). What finished sequences
computed stays in a tree keyed by tokens, one node per block, as in RadixAttention (Zheng et al. 2023) but at the grain
of blocks: a new prompt takes over the full blocks it has in common with the tree and a copy of the last partial one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgellm.errors import InvalidSettingError, OutOfMemoryError
from edgellm.memory import format_bytes
from edgellm.platforms.batch import BLOCK_TOKENS

MIN_CONTEXT = 256
"""With room for fewer tokens than this no conversation is possible, so loading fails instead."""

SHARED_CACHE_BYTES = 512 << 20
"""Cache beyond one full context, for requests side by side and remembered prefixes; at most one context more."""


def blocks_for(tokens: int) -> int:
    """Number of blocks that hold so many tokens."""
    return -(-tokens // BLOCK_TOKENS)


class BlockAllocator:
    """Reference counts of ``capacity`` blocks, numbered from 0. A block is free when nobody refers to it."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._references = [0] * capacity
        # A stack: a block given back is handed out first, so that memory never used stays untouched.
        self._free = list(range(capacity - 1, -1, -1))

    @property
    def free(self) -> int:
        """Number of free blocks."""
        return len(self._free)

    def allocate(self) -> int | None:
        """A free block with one reference, or None if there is none."""
        if not self._free:
            return None
        block = self._free.pop()
        self._references[block] = 1
        return block

    def retain(self, block: int) -> None:
        """Add a reference to a block in use."""
        if self._references[block] < 1:
            raise ValueError(f"block {block} is free and cannot be shared")
        self._references[block] += 1

    def release(self, block: int) -> None:
        """Take a reference away; the last one frees the block."""
        if self._references[block] < 1:
            raise ValueError(f"block {block} is free already")
        self._references[block] -= 1
        if not self._references[block]:
            self._free.append(block)

    def references(self, block: int) -> int:
        """Number of references to a block; 0 if it is free."""
        return self._references[block]


@dataclass(eq=False)
class _Node:
    """One block of computed tokens; only full blocks have children."""

    tokens: tuple[int, ...]
    block: int
    parent: _Node | None
    children: dict[tuple[int, ...], _Node] = field(default_factory=dict)


class PrefixTree:
    """Blocks of computed tokens by the tokens before them; every node holds one reference to its block.

    ``setting`` is what else the numbers in a block depend on: what was computed with one is never found with another.
    """

    def __init__(self, allocator: BlockAllocator) -> None:
        self._allocator = allocator
        self._roots: dict[Hashable, _Node] = {}
        # Least recently used first. A parent always stands after its children, so one pass can evict both.
        self._order: OrderedDict[_Node, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._order)

    def match(self, tokens: Sequence[int], limit: int, setting: Hashable = None) -> tuple[list[int], int | None, int]:
        """Find the longest known beginning of ``tokens[:limit]``.

        Returns:
            The full blocks; a block whose first tokens go on from there, or None; and how many of its tokens do.
            No reference is taken.
        """
        node, path = self._roots.get(setting, _Node((), -1, None)), list[_Node]()
        while (len(path) + 1) * BLOCK_TOKENS <= limit:
            begin = len(path) * BLOCK_TOKENS
            child = node.children.get(tuple(tokens[begin : begin + BLOCK_TOKENS]))
            if child is None:
                break
            path.append(child)
            node = child
        begin = len(path) * BLOCK_TOKENS
        rest = tuple(tokens[begin : min(limit, begin + BLOCK_TOKENS)])
        blocks = [found.block for found in path]
        nearest, common = _nearest(node, rest)
        if nearest is not None:
            path.append(nearest)
        self._touch(path)
        return blocks, nearest.block if nearest else None, common

    def insert(self, tokens: Sequence[int], blocks: Sequence[int], setting: Hashable = None) -> None:
        """Remember that ``blocks`` hold ``tokens``. What is known already keeps the block it has."""
        if not len(tokens):
            return
        node, path = self._roots.setdefault(setting, _Node((), -1, None)), list[_Node]()
        for index in range(blocks_for(len(tokens))):
            part = tuple(tokens[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS])
            child = node.children.get(part)
            if child is None:
                nearest, common = _nearest(node, part)
                if nearest is not None and common == len(part):  # a longer one is known: this part is its beginning
                    path.append(nearest)
                    break
                if nearest is not None and common == len(nearest.tokens):  # what is known is the beginning of this part
                    self._drop(nearest)
                child = _Node(part, blocks[index], node)
                node.children[part] = child
                self._allocator.retain(child.block)
            path.append(child)
            node = child
        self._touch(path)

    def evict(self, count: int) -> int:
        """Drop up to so many blocks that nobody uses, least recently used first; returns how many became free."""
        dropped = 0
        for node in list(self._order):
            if dropped == count:
                break
            if not node.children and self._allocator.references(node.block) == 1:
                self._drop(node)
                dropped += 1
        self._roots = {setting: root for setting, root in self._roots.items() if root.children}
        return dropped

    def clear(self) -> None:
        """Forget everything."""
        for node in self._order:
            self._allocator.release(node.block)
        self._order.clear()
        self._roots.clear()

    def _touch(self, path: Sequence[_Node]) -> None:
        for node in reversed(path):
            self._order[node] = None
            self._order.move_to_end(node)

    def _drop(self, node: _Node) -> None:
        assert node.parent is not None and not node.children
        del node.parent.children[node.tokens]
        del self._order[node]
        self._allocator.release(node.block)


def _nearest(node: _Node, tokens: tuple[int, ...]) -> tuple[_Node | None, int]:
    """The child that shares most tokens with the beginning of ``tokens``, and how many; (None, 0) if none does."""
    best, longest = None, 0
    for child in node.children.values():
        common = 0
        for ours, theirs in zip(tokens, child.tokens, strict=False):
            if ours != theirs:
                break
            common += 1
        if common > longest:
            best, longest = child, common
    return best, longest


class PagedCache:
    """The blocks of an executor's cache and what is in them. Not thread-safe: the engine's lock guards it."""

    def __init__(self, capacity: int, copy_block: Callable[[int, int], None]) -> None:
        self._allocator = BlockAllocator(capacity)
        self._tree = PrefixTree(self._allocator)
        self._copy_block = copy_block

    @property
    def capacity(self) -> int:
        """Number of blocks."""
        return self._allocator.capacity

    @property
    def used(self) -> int:
        """Blocks that sequences or remembered prefixes hold."""
        return self._allocator.capacity - self._allocator.free

    @property
    def remembered(self) -> int:
        """Blocks that hold remembered prefixes, those that running sequences share included."""
        return len(self._tree)

    def references(self, block: int) -> int:
        """Number of owners of a block: sequences, and one more if it is remembered."""
        return self._allocator.references(block)

    def open(self, tokens: Sequence[int], limit: int, setting: Hashable = None) -> tuple[list[int], int]:
        """Blocks for a new sequence that begins with ``tokens``, as far as they are computed already.

        Args:
            tokens: the prompt.
            limit: how many of them may be taken over at most.
            setting: what else their keys and values depend on.

        Returns:
            The blocks, now the sequence's own or shared with it, and the number of tokens in them.
        """
        blocks, partial, common = self._tree.match(tokens, limit, setting)
        for block in blocks:
            self._allocator.retain(block)
        shared = len(blocks) * BLOCK_TOKENS
        if partial is None:
            return blocks, shared
        # The sequence will write behind the common tokens, so it needs this block to itself. The reference keeps the
        # source from being evicted to make room for its own copy.
        self._allocator.retain(partial)
        owned = list(blocks)
        try:
            self.extend(owned, shared + common)
            self._copy_block(partial, owned[-1])
        except OutOfMemoryError:
            return blocks, shared  # no room for source and copy at once: these few tokens are computed again
        except BaseException:
            self.release(owned)
            raise
        finally:
            self._allocator.release(partial)
        return owned, shared + common

    def extend(self, blocks: list[int], tokens: int) -> None:
        """Append new blocks to ``blocks`` until they hold so many tokens.

        Raises:
            OutOfMemoryError: all blocks are in use by running sequences; ``blocks`` is left as it was.
        """
        missing = blocks_for(tokens) - len(blocks)
        if missing <= 0:
            return
        if missing > self._allocator.free:
            self._tree.evict(missing - self._allocator.free)
        if missing > self._allocator.free:
            raise OutOfMemoryError(
                f"the cache is full: {self.used} of {self.capacity} blocks of {BLOCK_TOKENS} tokens are in use by "
                f"running requests, {missing} more are needed",
                "wait for a request to end, run fewer at a time, or load the model with a larger --context",
            )
        for _ in range(missing):
            block = self._allocator.allocate()
            assert block is not None
            blocks.append(block)

    def remember(self, tokens: Sequence[int], blocks: Sequence[int], setting: Hashable = None) -> None:
        """Let later prompts take over ``tokens``, which ``blocks`` hold and which nobody may overwrite from now on."""
        self._tree.insert(tokens, blocks, setting)

    def release(self, blocks: Sequence[int]) -> None:
        """Give up a sequence's references."""
        for block in blocks:
            self._allocator.release(block)

    def forget(self) -> None:
        """Drop all remembered prefixes."""
        self._tree.clear()


@dataclass(frozen=True)
class CachePlan:
    """How large the cache is made: ``blocks``, for requests of up to ``context_length`` tokens; what limits that."""

    context_length: int
    blocks: int
    limited_by: Literal["model", "request", "memory"]


def plan_cache(requested: int | None, trained: int, block_bytes: int, free: int | None) -> CachePlan:
    """Choose the context length: the one asked for, or the model's own as far as memory allows.

    Args:
        requested: tokens the user asked for.
        trained: tokens the model was made for.
        block_bytes: cache bytes of one block.
        free: bytes of memory that are free; None if unknown. A tenth of it is left to everything else.

    Raises:
        InvalidSettingError: more was asked for than the model was made for, or less than one token.
        OutOfMemoryError: what was asked for, or any useful context at all, does not fit.
    """
    if requested is not None and not 1 <= requested <= trained:
        raise InvalidSettingError(
            f"a context of {requested} tokens was asked for", f"this model takes any number from 1 to {trained}"
        )
    wanted = trained if requested is None else requested
    needed = blocks_for(wanted)
    budget = needed * 2 if free is None else (free - free // 10) // max(1, block_bytes)
    if needed <= budget:
        extra = min(needed, max(1, SHARED_CACHE_BYTES // max(1, block_bytes)), budget - needed)
        return CachePlan(wanted, needed + extra, "model" if requested is None else "request")
    fitting = budget * BLOCK_TOKENS
    if requested is not None or fitting < min(MIN_CONTEXT, trained):
        smallest = wanted if requested is not None else min(MIN_CONTEXT, trained)
        raise OutOfMemoryError(
            f"a context of {smallest} tokens needs {format_bytes(blocks_for(smallest) * block_bytes)} of cache, "
            f"{format_bytes(free or 0)} of memory are free",
            f"ask for at most {fitting} tokens with --context, or close other programs",
        )
    return CachePlan(fitting, budget, "memory")
