"""Items of an iterator made by a thread, ahead of the one that takes them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_PATIENCE = 0.1
"""Seconds after which a thread that waits for room looks whether anybody still wants more."""


class _End:
    """Behind the last item: the error that ended it, if any."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def ahead(items: Iterable[T], most: int) -> Generator[T, None, None]:
    """The same items, of which up to ``most`` wait already when they are asked for.

    What making them raises is raised here. When this is closed, its thread has ended.
    """
    waiting: queue.Queue[T | _End] = queue.Queue(most)
    closed = threading.Event()
    thread = threading.Thread(target=_make, args=(iter(items), waiting, closed), daemon=True, name="edgellm-ahead")
    thread.start()
    try:
        while not isinstance(item := waiting.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        closed.set()
        thread.join()


def _make(items: Iterator[T], waiting: queue.Queue[T | _End], closed: threading.Event) -> None:
    end = _End()
    try:
        for item in items:
            if not _put(item, waiting, closed):
                break
    except BaseException as error:  # for the one who takes them
        end = _End(error)
    _put(end, waiting, closed)


def _put(item: T | _End, waiting: queue.Queue[T | _End], closed: threading.Event) -> bool:
    """Hand over; false if nobody wants it any more."""
    while not closed.is_set():
        try:
            waiting.put(item, timeout=_PATIENCE)
        except queue.Full:
            continue
        return True
    return False
