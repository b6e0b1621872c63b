"""Stretches in which one and the same person speaks, and the windows of them that get an embedding."""

from __future__ import annotations

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
        hop: from one window of a stretch to the next, at most.
    """

    change_reach: float = 0.1
    change_threshold: float = 0.5
    shortest: float = 0.3
    longest: float = 10.0
    window: float = 2.0
    hop: float = 1.0


@dataclass(frozen=True)
class Stretch:
    """Frames first..end of the sound."""

    first: int
    end: int


def frames(seconds: float) -> int:
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
    return total / np.maximum(number, 1)


def find_stretches(
    single: NDArray[np.bool_], change: NDArray[np.float32], settings: StretchSettings, first: int = 0
) -> list[Stretch]:
    """Cut the runs of frames in which one speaks where the speaker changes, and where they are too long.

    Args:
        single: whether one person speaks in each frame.
        change: of `speaker_change`, for the same frames.
        first: the number of the first of these frames.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[0], single.astype(np.int8), [0]])))
    found = []
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        places = [int(start), *_peaks(change, int(start), int(end), settings), int(end)]
        for low, high in zip(places[:-1], places[1:], strict=True):
            pieces = -(-(high - low) // frames(settings.longest))
            bounds = [low + (high - low) * piece // pieces for piece in range(pieces + 1)]
            found += [Stretch(first + a, first + b) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    return found


def _peaks(change: NDArray[np.float32], start: int, end: int, settings: StretchSettings) -> list[int]:
    """Highest frames of each rise over the threshold, not within reach of the run's ends."""
    reach = frames(settings.change_reach)
    low, high = start + reach, end - reach
    if low >= high:
        return []
    over = change[low:high] > settings.change_threshold
    edges = np.flatnonzero(np.diff(np.concatenate([[0], over.astype(np.int8), [0]])))
    return [
        low + int(a) + int(change[low + a : low + b].argmax()) for a, b in zip(edges[::2], edges[1::2], strict=True)
    ]


def embedding_windows(stretch: Stretch, settings: StretchSettings) -> list[Stretch]:
    """The parts of a stretch that get an embedding: evenly placed, overlapping; none if it is too short."""
    length, window = stretch.end - stretch.first, frames(settings.window)
    if length < frames(settings.shortest):
        return []
    if length <= window:
        return [stretch]
    steps = -(-(length - window) // frames(settings.hop))
    starts = [stretch.first + round(step * (length - window) / steps) for step in range(steps + 1)]
    return [Stretch(start, start + window) for start in starts]
