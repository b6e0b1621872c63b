"""Words of transcripts compared: which are equal, and how many edits lie between two texts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from edgellm.speech.agreement import plain


def split(text: str) -> list[str]:
    """Words as they sound."""
    return [word for word in map(plain, text.split()) if word]


def aligned(first: Sequence[str], second: Sequence[str]) -> list[tuple[int, int]]:
    """Places of the words that are equal in an alignment with the fewest edits (Levenshtein)."""
    costs = np.zeros((len(first) + 1, len(second) + 1), np.int32)
    costs[:, 0], costs[0] = np.arange(len(first) + 1), np.arange(len(second) + 1)
    same = np.array(first, object)[:, None] == np.array(second, object)[None] if first and second else None
    for i in range(1, len(first) + 1):
        for j in range(1, len(second) + 1):
            assert same is not None
            swap = costs[i - 1, j - 1] + (not same[i - 1, j - 1])
            costs[i, j] = min(swap, costs[i - 1, j] + 1, costs[i, j - 1] + 1)
    pairs, i, j = [], len(first), len(second)
    while i and j:
        if costs[i, j] == costs[i - 1, j - 1] + (first[i - 1] != second[j - 1]):
            if first[i - 1] == second[j - 1]:
                pairs.append((i - 1, j - 1))
            i, j = i - 1, j - 1
        elif costs[i, j] == costs[i - 1, j] + 1:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


def word_errors(reference: Sequence[str], words: Sequence[str]) -> int:
    """The least number of words to change, add or leave out."""
    row = np.arange(len(words) + 1)
    for number, word in enumerate(reference, 1):
        best = np.minimum(row[:-1] + (np.array(words, object) != word), row[1:] + 1) if words else row[:0]
        added = np.concatenate(([number], best)) - np.arange(len(words) + 1)
        row = np.minimum.accumulate(added) + np.arange(len(words) + 1)
    return int(row[-1])


def agreement(reference: Sequence[str], words: Sequence[str]) -> float:
    """Share of the reference's words that no edit touches, counting added words as edits."""
    return max(0.0, 1 - word_errors(reference, words) / max(1, len(reference)))


def edits(first: Sequence[str], second: Sequence[str]) -> Iterator[tuple[int, int, int, int]]:
    """Places that differ: the words from one to before another of the first, and those of the second in their stead."""
    pairs = [(-1, -1), *aligned(first, second), (len(first), len(second))]
    for (here, there), (next_here, next_there) in itertools.pairwise(pairs):
        if next_here - here > 1 or next_there - there > 1:
            yield here + 1, next_here, there + 1, next_there
