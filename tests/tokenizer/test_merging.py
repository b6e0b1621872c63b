"""Merging against the definition, carried out step by step."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.tokenizer import merging


def by_definition(symbols: list[bytes], ranks: dict[bytes, int], separator: bytes) -> list[bytes]:
    """Merge the leftmost pair of the lowest rank until there is none."""
    symbols = list(symbols)
    while True:
        pairs = [
            (ranks[key], place)
            for place in range(len(symbols) - 1)
            if (key := symbols[place] + separator + symbols[place + 1]) in ranks
        ]
        if not pairs:
            return symbols
        place = min(pairs)[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]


letters = st.sampled_from([b"a", b"b", b"c"])
parts = st.text("abc", min_size=1, max_size=4).map(str.encode)


@settings(deadline=None, max_examples=300)
@given(
    symbols=st.lists(letters, max_size=40),
    merges=st.lists(st.tuples(parts, parts), max_size=30, unique=True),
    data=st.data(),
)
def test_both_ways_do_what_the_definition_says(
    symbols: list[bytes], merges: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    """With merges in any order (a later one may make what an earlier one needs) and with equal ranks."""
    separator = data.draw(st.sampled_from([b" ", b""]))
    highest = data.draw(st.sampled_from([2, 1000]))
    ranks = {
        left + separator + right: data.draw(st.integers(0, highest)) if separator == b"" else line
        for line, (left, right) in enumerate(merges)
    }
    expected = by_definition(symbols, ranks, separator)
    assert merging._merge_short(list(symbols), ranks, separator) == expected
    if len(symbols) > 1:
        assert merging._merge_long(list(symbols), ranks, separator) == expected


@pytest.mark.parametrize("count", [0, 1, merging._SHORT - 1, merging._SHORT, merging._SHORT + 1, 1000])
def test_words_of_every_length(count: int) -> None:
    ranks = {b"a a": 0, b"aa aa": 1, b"aaaa aaaa": 2}
    merged = merging.merge_symbols([b"a"] * count, ranks, b" ")
    rest = [size for size in (4, 2, 1) if count % 8 & size]
    assert [len(symbol) for symbol in merged] == [8] * (count // 8) + rest


def test_a_long_word_without_any_break() -> None:
    """Quadratic time would take minutes here."""
    ranks = {b"a" * 2**n + b" " + b"a" * 2**n: n for n in range(5)}
    merged = merging.merge_symbols([b"a"] * 200_000, ranks, b" ")
    assert merged == [b"a" * 32] * (200_000 // 32)
