"""Items made by a thread: the same, in order, with their errors, and the thread ends in any case."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.speech.ahead import ahead


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "edgellm-ahead"]


@given(st.lists(st.integers(), max_size=20), st.integers(1, 5))
def test_the_same_items_in_order(items: list[int], most: int) -> None:
    assert list(ahead(items, most)) == items
    assert threads() == []


def test_they_are_made_before_they_are_asked_for_but_not_too_many() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in itertools.count():
            made.append(number)
            yield number

    taken = ahead(items(), 3)
    assert next(taken) == 0
    deadline = time.monotonic() + 5
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3, 4]  # one taken, three waiting, one in hand
    taken.close()
    assert threads() == []


def test_an_error_comes_behind_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    taken = ahead(items(), 2)
    assert next(taken) == 1
    with pytest.raises(ValueError, match="broken"):
        next(taken)
    assert threads() == []


def test_whoever_has_enough_may_go() -> None:
    for _ in ahead(itertools.count(), 2):
        break
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == []
