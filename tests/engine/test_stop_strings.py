"""Stop strings are found wherever the text is cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import InvalidSettingError
from edgellm.stop_strings import StopStrings

TEXTS = st.text(alphabet="ab\n<", max_size=30)
STOPS = st.lists(st.text(alphabet="ab\n<", min_size=1, max_size=5), min_size=1, max_size=3)


def cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """What should come out, found by looking at every beginning of the text in turn."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(deadline=None, max_examples=500)
@given(TEXTS, STOPS, st.data())
def test_any_split_gives_the_same_text(text: str, stops: list[str], data: st.DataObject) -> None:
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *borders], [*borders, len(text)], strict=True)]
    finder = StopStrings(stops)
    shown = ""
    expected, stop = cut(text, stops)
    for piece in pieces:
        shown += finder.push(piece)
        assert expected.startswith(shown), "text that belongs to a stop string was shown"
    shown += finder.flush()
    assert (shown, finder.matched) == (expected, stop)


@settings(deadline=None)
@given(TEXTS, STOPS)
def test_no_more_is_held_back_than_needed(text: str, stops: list[str]) -> None:
    finder = StopStrings(stops)
    shown = "".join(finder.push(character) for character in text)
    if finder.matched is None:
        held = text[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_nothing_follows_a_match() -> None:
    finder = StopStrings(["stop"])
    assert finder.push("one stop two") == "one "
    assert finder.matched == "stop"
    assert finder.push("three") == finder.flush() == ""


def test_without_stop_strings_text_passes_at_once() -> None:
    finder = StopStrings([])
    assert finder.push("abc") == "abc"
    assert finder.flush() == ""


@pytest.mark.parametrize("bad", ["", None, 3])
def test_bad_stop_strings_are_refused(bad: object) -> None:
    with pytest.raises(InvalidSettingError, match="stop string"):
        StopStrings([bad])  # type: ignore[list-item]
