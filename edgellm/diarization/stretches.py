"""Stretches in which one and the same person speaks, and the windows of them that get an embedding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.diarization.segmentation import FRAMES_PER_SECOND, LocalActivity


@dataclass(frozen=True)
class StretchSettings:
    """How stretches are found, in seconds.

    Attributes:
        change_reach: how far before and after a place the speakers are compared.
        change_threshold: how different they must be, from 0 to 1.
        shortest: stretches below get no embedding.
        longest: longer ones are cut, so that they can be dealt with before they end.
        window: of one embedding, at most.
        hop: from one window of a stretch to the next, at most; they may leave gaps.
    """

    change_reach: float = 0.1
    change_threshold: float = 0.3
    shortest: float = 0.3
    longest: float = 10.0
    window: float = 2.0
    hop: float = 2.5


@dataclass(frozen=True)
class Stretch:
    """Frames first..end of the sound."""

    first: int
    end: int


@dataclass(frozen=True)
class Window:
    """Frames first..end, which get an embedding, and the first frame of the stretch they are of."""

    first: int
    end: int
    stretch: int


def frames(seconds: float) -> int:
    """So many seconds in frames of the segmentation, at least one."""
    return max(1, round(seconds * FRAMES_PER_SECOND))


def speaker_change(windows: Sequence[LocalActivity], first: int, end: int, reach: int) -> NDArray[np.float32]:
    """How different the speakers before and after each frame are, from 0 to 1, averaged over the windows; (frames,).

    Half the sum of absolute differences between the local speakers' probabilities ``reach`` frames apart on each side.
    """
    total, number = np.zeros(end - first, np.float32), np.zeros(end - first, np.float32)
    for window in windows:
        low, high = max(first, window.first + reach), min(end, window.end - reach)
        if low >= high:
            continue
        before = window.speakers[low - reach - window.first : high - reach - window.first].astype(np.float32)
        after = window.speakers[low + reach - window.first : high + reach - window.first].astype(np.float32)
        total[low - first : high - first] += np.abs(after - before).sum(axis=1) / 2
        number[low - first : high - first] += 1
    return np.asarray(total / np.maximum(number, 1), np.float32)


class StretchFinder:
    """Cuts the runs of frames in which one speaks where the speaker changes, and where they are too long.

    Frames come in pieces; how they are cut into pieces does not change what is found.
    """

    def __init__(self, settings: StretchSettings) -> None:
        self._reach = frames(settings.change_reach)
        self._threshold = settings.change_threshold
        self._longest, self._rest = frames(settings.longest), frames(settings.window)
        self._first = 0  # number of the first frame that is kept
        self._searched: int | None = None  # up to where the open run's changes are known; None: no run is open
        self._single = np.zeros(0, bool)
        self._change = np.zeros(0, np.float32)

    @property
    def first_open(self) -> int:
        """The first frame that may still become part of a stretch."""
        return self._first

    def push(self, single: NDArray[np.bool_], change: NDArray[np.float32], last: bool = False) -> list[Stretch]:
        """Take more frames; return the stretches that are whole.

        Args:
            single: whether one person speaks in each frame.
            change: of `speaker_change`, for the same frames.
            last: there are no more.
        """
        self._single = np.concatenate([self._single, single])
        self._change = np.concatenate([self._change, change])
        count, keep = len(self._single), len(self._single)
        found: list[Stretch] = []
        for start, end in runs(self._single):
            searched = self._searched if start == 0 and self._searched is not None else start + self._reach
            open_end = end == count and not last
            places, known = self._changes(start, end, searched, open_end)
            for low, high in itertools.pairwise(places):
                found += self._pieces(low, high)
            if open_end:
                keep = places[-1]
                pieces = self._pieces(keep, known, whole=False)
                found += pieces
                keep += len(pieces) * self._longest
                self._searched = known - keep
        if keep == count:
            self._searched = None
        result = [Stretch(self._first + stretch.first, self._first + stretch.end) for stretch in found]
        self._first += keep
        self._single, self._change = self._single[keep:], self._change[keep:]
        return result

    def _changes(self, start: int, end: int, searched: int, open_end: bool) -> tuple[list[int], int]:
        """Where a run is to be cut, its start and, if it has ended, its end included; and how far that is certain.

        A change is the highest frame of each rise over the threshold, not within reach of the run's ends.
        """
        places, high = [start], max(end - self._reach, searched)
        known = high
        for rise, fall in runs(self._change[searched:high] > self._threshold):
            if open_end and searched + fall == high:
                known = searched + rise
                break
            places.append(searched + rise + int(self._change[searched + rise : searched + fall].argmax()))
        return (places if open_end else [*places, end]), known

    def _pieces(self, low: int, high: int, whole: bool = True) -> list[Stretch]:
        """A stretch cut into pieces of the longest length; the last one, which may be longer by a window, if whole."""
        pieces = []
        while high - low >= self._longest + self._rest:
            pieces.append(Stretch(low, low + self._longest))
            low += self._longest
        return [*pieces, Stretch(low, high)] if whole else pieces


def runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Start and end of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def embedding_windows(stretch: Stretch, settings: StretchSettings) -> list[Window]:
    """The parts of a stretch that get an embedding: evenly placed; none if it is too short."""
    length, window = stretch.end - stretch.first, frames(settings.window)
    if length < frames(settings.shortest):
        return []
    if length <= window:
        return [Window(stretch.first, stretch.end, stretch.first)]
    steps = -(-(length - window) // frames(settings.hop))
    starts = [stretch.first + round(step * (length - window) / steps) for step in range(steps + 1)]
    return [Window(start, start + window, stretch.first) for start in starts]
