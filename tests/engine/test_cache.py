"""The cache's books: every block is free, owned or shared, and what is shared keeps its contents."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from edgellm.cache import BlockAllocator, PagedCache, blocks_for, plan_cache
from edgellm.errors import InvalidSettingError, OutOfMemoryError
from edgellm.platforms.batch import BLOCK_TOKENS

CAPACITY = 12


class Owner:
    """A running sequence: its tokens, how many are computed, its blocks."""

    def __init__(self, tokens: list[int], blocks: list[int], computed: int) -> None:
        self.tokens, self.blocks, self.computed = tokens, blocks, computed


# Runs of few different tokens: sequences share beginnings of all lengths, also in the middle of a block.
PROMPTS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, BLOCK_TOKENS + 3)), min_size=1, max_size=5).map(
    lambda runs: [token for token, count in runs for _ in range(count)]
)


class CacheMachine(RuleBasedStateMachine):
    """Sequences open, grow, are remembered and end in any order; a model of the memory tells what each slot holds."""

    owners = Bundle("owners")

    def __init__(self) -> None:
        super().__init__()
        self.slots: dict[tuple[int, int], tuple[int, ...]] = {}  # (block, slot): all tokens up to this one
        self.cache = PagedCache(CAPACITY, self.copy_block)
        self.alive: list[Owner] = []

    def copy_block(self, source: int, destination: int) -> None:
        assert self.cache.references(source) >= 1 and self.cache.references(destination) == 1
        for slot in range(BLOCK_TOKENS):
            self.slots.pop((destination, slot), None)
            if (source, slot) in self.slots:
                self.slots[destination, slot] = self.slots[source, slot]

    @rule(target=owners, prompt=PROMPTS)
    def open(self, prompt: list[int]) -> Owner:
        blocks, computed = self.cache.open(prompt, len(prompt) - 1)
        assert 0 <= computed < len(prompt)
        assert len(blocks) == blocks_for(computed)
        owner = Owner(prompt, blocks, computed)
        self.alive.append(owner)
        return owner

    @rule(owner=owners, rows=st.integers(1, 2 * BLOCK_TOKENS))
    def compute(self, owner: Owner, rows: int) -> None:
        rows = min(rows, len(owner.tokens) - owner.computed)
        before = list(owner.blocks)
        try:
            self.cache.extend(owner.blocks, owner.computed + rows)
        except OutOfMemoryError:
            assert owner.blocks == before
            used = {block for other in self.alive for block in other.blocks}
            assert len(used) + blocks_for(owner.computed + rows) - len(before) > CAPACITY, "there was room"
            return
        assert owner.blocks[: len(before)] == before
        for position in range(owner.computed, owner.computed + rows):
            block, slot = owner.blocks[position // BLOCK_TOKENS], position % BLOCK_TOKENS
            assert self.cache.references(block) == 1, "about to write to a shared block"
            self.slots[block, slot] = tuple(owner.tokens[: position + 1])
        owner.computed += rows

    @rule(owner=owners)
    def publish(self, owner: Owner) -> None:
        full = owner.computed // BLOCK_TOKENS
        self.cache.remember(owner.tokens[: full * BLOCK_TOKENS], owner.blocks[:full])

    @rule(owner=owners, more=PROMPTS)
    def append(self, owner: Owner, more: list[int]) -> None:
        owner.tokens = owner.tokens + more

    @rule(owner=consumes(owners), remember=st.booleans())
    def end(self, owner: Owner, remember: bool) -> None:
        self.alive.remove(owner)
        if remember:
            self.cache.remember(owner.tokens[: owner.computed], owner.blocks)
        self.cache.release(owner.blocks)
        if remember and owner.computed:
            # The same tokens again: all of them are there, in one piece.
            blocks, computed = self.cache.open([*owner.tokens[: owner.computed], 99], owner.computed)
            if computed % BLOCK_TOKENS == 0 and computed < owner.computed:  # no room left for the copy of the last
                assert owner.computed - computed < BLOCK_TOKENS
            else:
                assert computed == owner.computed
            self.cache.release(blocks)

    @rule()
    def forget(self) -> None:
        self.cache.forget()

    @invariant()
    def sequences_read_what_they_computed(self) -> None:
        for owner in self.alive:
            for position in range(owner.computed):
                held = self.slots[owner.blocks[position // BLOCK_TOKENS], position % BLOCK_TOKENS]
                assert held == tuple(owner.tokens[: position + 1])

    @invariant()
    def counts_are_right(self) -> None:
        owned = Counter(block for owner in self.alive for block in owner.blocks)
        for owner in self.alive:
            assert len(set(owner.blocks)) == len(owner.blocks)
        remembered = 0
        for block in range(CAPACITY):
            extra = self.cache.references(block) - owned[block]
            assert extra in (0, 1)  # one more if a prefix is remembered in it
            remembered += extra
        assert remembered == self.cache.remembered
        in_use = sum(self.cache.references(block) > 0 for block in range(CAPACITY))
        assert self.cache.used == in_use


CacheMachine.TestCase.settings = settings(deadline=None, max_examples=120, stateful_step_count=40)
TestCacheMachine = CacheMachine.TestCase


def make_cache(capacity: int) -> tuple[PagedCache, list[tuple[int, int]]]:
    copies: list[tuple[int, int]] = []
    return PagedCache(capacity, lambda source, destination: copies.append((source, destination))), copies


def run(cache: PagedCache, tokens: list[int]) -> int:
    """Compute and remember a sequence; returns how much of it was there."""
    blocks, computed = cache.open(tokens, len(tokens))
    cache.extend(blocks, len(tokens))
    cache.remember(tokens, blocks)
    cache.release(blocks)
    return computed


def test_least_recently_used_goes_first() -> None:
    cache, _ = make_cache(3)
    first, second, third, fourth = ([token] * BLOCK_TOKENS for token in range(4))
    for tokens in (first, second, third):
        assert run(cache, tokens) == 0
    assert run(cache, first) == BLOCK_TOKENS  # used again, so the second is now the oldest
    assert run(cache, fourth) == 0
    assert run(cache, first) == BLOCK_TOKENS
    assert run(cache, second) == 0


def test_last_partial_block_is_copied() -> None:
    cache, copies = make_cache(4)
    tokens = list(range(BLOCK_TOKENS + 5))
    run(cache, tokens)
    blocks, computed = cache.open([*tokens[:-2], 1000, 1001], len(tokens))
    assert computed == BLOCK_TOKENS + 3
    assert [destination for _, destination in copies] == [blocks[1]]
    assert cache.references(blocks[0]) == 2 and cache.references(blocks[1]) == 1


def test_a_longer_remembered_sequence_replaces_its_beginning() -> None:
    cache, _ = make_cache(4)
    tokens = list(range(BLOCK_TOKENS - 1))
    for length in (5, 9, 7, BLOCK_TOKENS - 1):
        run(cache, tokens[:length])
        assert cache.remembered == cache.used == 1


def test_duplicates_computed_side_by_side_can_be_evicted() -> None:
    cache, _ = make_cache(6)
    tokens = [7] * (2 * BLOCK_TOKENS)
    one, two = cache.open(tokens, len(tokens))[0], cache.open(tokens, len(tokens))[0]
    cache.extend(one, BLOCK_TOKENS)
    cache.extend(two, len(tokens))
    cache.remember(tokens[:BLOCK_TOKENS], one)
    cache.remember(tokens, two)  # its second block now hangs below a first block that it does not own
    cache.release(one)
    other: list[int] = []
    with pytest.raises(OutOfMemoryError):
        cache.extend(other, 5 * BLOCK_TOKENS)
    cache.release(two)
    cache.extend(other, 6 * BLOCK_TOKENS)
    assert sorted(other) == list(range(6))


def test_full_cache_says_so() -> None:
    cache, _ = make_cache(2)
    blocks: list[int] = []
    cache.extend(blocks, 2 * BLOCK_TOKENS)
    with pytest.raises(OutOfMemoryError, match=r"2 of 2 blocks .* 1 more"):
        cache.extend(blocks, 2 * BLOCK_TOKENS + 1)


def test_allocator_refuses_nonsense() -> None:
    allocator = BlockAllocator(1)
    with pytest.raises(ValueError, match="free"):
        allocator.release(0)
    with pytest.raises(ValueError, match="free"):
        allocator.retain(0)
    assert allocator.allocate() == 0
    assert allocator.allocate() is None


def test_memory_never_used_stays_untouched() -> None:
    allocator = BlockAllocator(100)
    for _ in range(3):
        taken = [allocator.allocate() for _ in range(4)]
        assert sorted(block for block in taken if block is not None) == [0, 1, 2, 3]
        for block in taken:
            assert block is not None
            allocator.release(block)


GIB = 1 << 30


def test_context_is_the_models_own() -> None:
    plan = plan_cache(None, trained=8192, block_bytes=1 << 20, free=16 * GIB)
    assert (plan.context_length, plan.limited_by) == (8192, "model")
    assert 256 < plan.blocks <= 512


def test_context_is_capped_by_free_memory() -> None:
    plan = plan_cache(None, trained=131072, block_bytes=4 << 20, free=2 * GIB)
    assert plan.limited_by == "memory"
    assert plan.context_length == plan.blocks * BLOCK_TOKENS
    assert 0.8 * 2 * GIB < plan.blocks * (4 << 20) <= 0.9 * 2 * GIB


def test_a_requested_context_is_never_cut() -> None:
    assert plan_cache(1000, 8192, 1 << 20, 16 * GIB).context_length == 1000
    with pytest.raises(OutOfMemoryError, match=r"131072 tokens needs 16.0 GiB .* 2.0 GiB .* at most 14720"):
        plan_cache(131072, 131072, 4 << 20, 2 * GIB)
    with pytest.raises(OutOfMemoryError, match="context of 256 tokens"):
        plan_cache(None, 131072, 4 << 20, 1 << 20)
    for wrong in (0, -1, 8193):
        with pytest.raises(InvalidSettingError, match=rf"{wrong} tokens .* 1 to 8192"):
            plan_cache(wrong, 8192, 1 << 20, 16 * GIB)


def test_unknown_free_memory_is_no_obstacle() -> None:
    assert plan_cache(None, 8192, 1 << 20, None).context_length == 8192
