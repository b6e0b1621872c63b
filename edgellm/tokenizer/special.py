"""Finding special tokens in text: the parts between them are encoded, they themselves are not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

from edgellm.tokenizer.vocabulary import TokenType, Vocabulary

# What white space is to a token that swallows it: C's isspace.
_WHITESPACE = " \t\n\v\f\r"


class SpecialFinder:
    """Cuts text at special tokens: the leftmost first, of those that begin at one place the longest.

    Where two special tokens overlap in a text, the one that begins first is taken. No known vocabulary has such a
    pair except runs of one character, for which taking the longest first comes to the same.
    """

    def __init__(self, vocabulary: Vocabulary, types: Iterable[TokenType]) -> None:
        """Look for the tokens of ``types`` only."""
        numbers = np.flatnonzero(np.isin(vocabulary.types, [int(kind) for kind in types])).tolist()
        self._ids: dict[str, int] = {}
        lengths: dict[str, set[int]] = {}
        for number in numbers:
            text = vocabulary.tokens[number].decode("utf-8", "replace")
            self._ids[text] = number
            lengths.setdefault(text[:2], set()).add(len(text))
        self._lengths = {start: sorted(found, reverse=True) for start, found in lengths.items()}
        self._left = vocabulary.left_stripping
        self._right = vocabulary.right_stripping
        firsts = "".join(re.escape(first) for first in sorted({text[0] for text in self._ids}))
        self._candidate = re.compile(f"[{firsts}]") if firsts else None

    def split(self, text: str) -> Iterator[str | int]:
        """The parts of ``text`` in order: pieces of text, none of them empty, and ids of special tokens."""
        start = 0
        for place, end, number in self._find(text):
            before = text[start:place]
            if number in self._left:
                before = before.rstrip(_WHITESPACE)
            if before:
                yield before
            yield number
            start = end
        if start < len(text):
            yield text[start:]

    def _find(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Start, end and id of each special token; the end includes white space that the token swallows."""
        if self._candidate is None:
            return
        found = self._candidate.search(text)
        while found:
            place = found.start()
            end = place + 1
            longest = self._longest(text, place)
            if longest is not None:
                number, end = longest
                if number in self._right:
                    while end < len(text) and text[end] in _WHITESPACE:
                        end += 1
                yield place, end, number
            found = self._candidate.search(text, end)

    def _longest(self, text: str, place: int) -> tuple[int, int] | None:
        """Id and end of the longest special token at ``place``."""
        pair = text[place : place + 2]
        starts = (pair, pair[0]) if len(pair) == 2 else (pair,)
        for start in starts:
            for length in self._lengths.get(start, ()):
                number = self._ids.get(text[place : place + length])
                if number is not None:
                    return number, place + length
        return None
