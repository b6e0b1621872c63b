"""Word wrap while streaming."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.cli.wrap import WordWrapper, columns


def wrapped(width: int, *pieces: str) -> str:
    wrapper = WordWrapper(lambda: width)
    return "".join(map(wrapper.push, pieces)) + wrapper.flush()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the quick brown fox", "the quick\nbrown fox"),
        ("the quick\nbrown fox", "the quick\nbrown fox"),
        ("unbreakableword x", "unbreakableword\nx"),
        ("  indented line", "  indented\nline"),
        ("exactly 10", "exactly 10"),
        ("trailing  ", "trailing  "),
        ("苹果苹果苹果苹果", "苹果苹果苹\n果苹果"),
        ("ä̈ö̈ü̈ ä̈ö̈ü̈ ä̈ö̈ü̈", "ä̈ö̈ü̈ ä̈ö̈ü̈\nä̈ö̈ü̈"),
        ("```py\nprint(1, 2, 3, 4)\n```\na b c d e f", "```py\nprint(1, 2, 3, 4)\n```\na b c d e\nf"),
        ("", ""),
    ],
)
def test_wrapped(text: str, expected: str) -> None:
    assert wrapped(10, text) == expected
    assert wrapped(10, *text) == expected


texts = st.text(alphabet=st.sampled_from("ab  \n`果\té"), max_size=60)


@given(texts, st.integers(2, 20), st.lists(st.integers(0, 60), max_size=5))
def test_pieces_do_not_matter(text: str, width: int, cuts: list[int]) -> None:
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[begin:end] for begin, end in pairwise(bounds)]
    assert wrapped(width, *pieces) == wrapped(width, text)


@given(texts, st.integers(2, 20))
def test_only_white_space_changes_and_lines_fit(text: str, width: int) -> None:
    result = wrapped(width, text)
    assert re.sub(r"\s", "", result) == re.sub(r"\s", "", text)
    if "```" not in text:
        for line in result.split("\n"):
            words = line.split()
            assert columns(line.rstrip()) <= width or len(words) < 2


def test_the_last_word_is_held_back_only_until_it_ends() -> None:
    wrapper = WordWrapper(lambda: 80)
    assert wrapper.push("Hello") == ""
    assert wrapper.push(" wor") == "Hello"
    assert wrapper.push("ld.\n") == " world.\n"
    assert wrapper.flush() == ""


def test_the_terminal_may_change_its_width() -> None:
    widths = iter([80, 80, 2, 2])
    wrapper = WordWrapper(lambda: next(widths))
    assert wrapper.push("a b c d e ") + wrapper.flush() == "a b c\nd\ne "
