"""Merging neighbouring symbols by rank, the heart of byte-pair encoding and of SentencePiece's BPE.

The pair with the lowest rank anywhere in the word is merged first, the leftmost one on a tie, until no pair has a
rank (Sennrich et al. 2016, "Neural machine translation of rare words with subword units").
"""

from __future__ import annotations

import heapq
from itertools import pairwise
from typing import Protocol

# Above this many symbols the heap is quicker than scanning a list of ranks.
_SHORT = 160

# Greater than any rank: ranks count lines of a file.
_NEVER = 1 << 62


class Ranks(Protocol):
    """Ranks of texts: a dictionary, or what looks them up elsewhere."""

    def get(self, text: bytes, default: int, /) -> int:
        """The rank of a text, or ``default`` where it has none."""
        ...


def merge_symbols(symbols: list[bytes], ranks: Ranks, separator: bytes) -> list[bytes]:
    """Merge symbols until no neighbouring pair is in ``ranks``.

    Args:
        symbols: the word's smallest parts in order; consumed.
        ranks: rank (>= 0) of a pair, keyed by ``left + separator + right``.
        separator: what keeps left and right apart in the keys: a space for merge lists, nothing where only the
            merged text counts.

    Returns:
        The remaining symbols. Takes O(n log n) for n symbols.
    """
    if len(symbols) < 2:
        return symbols
    if len(symbols) <= _SHORT:
        return _merge_short(symbols, ranks, separator)
    return _merge_long(symbols, ranks, separator)


def _merge_short(symbols: list[bytes], ranks: Ranks, separator: bytes) -> list[bytes]:
    get = ranks.get
    pair_ranks = [get(left + separator + right, _NEVER) for left, right in pairwise(symbols)]
    while pair_ranks:
        best = min(pair_ranks)
        if best == _NEVER:
            break
        place = pair_ranks.index(best)
        merged = symbols[place] + symbols.pop(place + 1)
        symbols[place] = merged
        del pair_ranks[place]
        if place:
            pair_ranks[place - 1] = get(symbols[place - 1] + separator + merged, _NEVER)
        if place < len(pair_ranks):
            pair_ranks[place] = get(merged + separator + symbols[place + 1], _NEVER)
    return symbols


def _merge_long(symbols: list[bytes], ranks: Ranks, separator: bytes) -> list[bytes]:
    """The same with a linked list and a heap, whose entries hold rank and place in one integer."""
    count = len(symbols)
    get = ranks.get
    following = list(range(1, count + 1))
    preceding = list(range(-1, count - 1))
    # Rank of the pair that begins at a place now; an entry of the heap that says otherwise is out of date.
    current = [get(left + separator + right, _NEVER) for left, right in pairwise(symbols)]
    current.append(_NEVER)
    heap = [rank * count + place for place, rank in enumerate(current) if rank != _NEVER]
    heapq.heapify(heap)
    while heap:
        rank, place = divmod(heapq.heappop(heap), count)
        if current[place] != rank:
            continue
        gone = following[place]
        merged = symbols[place] + symbols[gone]
        symbols[place] = merged
        symbols[gone] = b""
        current[gone] = _NEVER
        after = following[gone]
        following[place] = after
        new_rank = _NEVER
        if after < count:
            preceding[after] = place
            new_rank = get(merged + separator + symbols[after], _NEVER)
        current[place] = new_rank
        if new_rank != _NEVER:
            heapq.heappush(heap, new_rank * count + place)
        before = preceding[place]
        if before >= 0:
            new_rank = get(symbols[before] + separator + merged, _NEVER)
            current[before] = new_rank
            if new_rank != _NEVER:
                heapq.heappush(heap, new_rank * count + before)
    return [symbol for symbol in symbols if symbol]
