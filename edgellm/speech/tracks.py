"""Stretches of sound that are transcribed from their beginning to their end, each by itself: windows packed with
speech, or a whole stream."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgellm.audio import SAMPLE_RATE
from edgellm.speech.packing import Window

Samples = npt.NDArray[np.float32]

_FULL_SECONDS = 25.0
"""Whisper, trained on 30 s out of the midst of speech, takes the last words of a longer window to be cut off."""


class Track(Protocol):
    """Sound by the seconds within it, and what these are in the original sound.

    Attributes:
        full: it is one window that speech fills to its end, of which nothing is to be left for another one.
        speech_end: second from which on nobody speaks, if that is known; else infinite.
        cut_off: somebody is speaking where it ends, and will go on.
    """

    full: bool
    speech_end: float
    cut_off: bool

    def read(self, start: float, samples: int) -> Samples:
        """Up to so many samples from a second on, which never goes back; none where the track has ended."""

    def start_time(self, seconds: float) -> float:
        """When something began, in the original sound."""

    def end_time(self, seconds: float) -> float:
        """When something ended."""

    def word_times(self, start: float, end: float) -> tuple[float, float]:
        """Beginning and end of a word."""


class PackedTrack:
    """A window packed with speech.

    Args:
        window: the window.
        cut_off: somebody is speaking where it ends.
    """

    def __init__(self, window: Window, cut_off: bool = False) -> None:
        self._samples, times = window.samples, window.time_map
        self.speech_end, self.cut_off = times.speech_end, cut_off
        self.full = cut_off or self.speech_end > _FULL_SECONDS
        self.start_time, self.end_time, self.word_times = times.start_time, times.end_time, times.word_times

    def read(self, start: float, samples: int) -> Samples:
        """Up to so many samples from a second on."""
        first = round(start * SAMPLE_RATE)
        return self._samples[first : first + samples]


class StreamTrack:
    """A stream of blocks, of which only what may still be read is kept.

    Args:
        blocks: the sound.
        offset: second of the original sound at which it begins.
    """

    full = cut_off = False
    speech_end = math.inf

    def __init__(self, blocks: Iterator[Samples], offset: float = 0.0) -> None:
        self._blocks, self._offset = blocks, offset
        self._kept: Samples = np.empty(0, np.float32)
        self._begins = 0
        self._ended = False

    def read(self, start: float, samples: int) -> Samples:
        """Up to so many samples from a second on."""
        first = round(start * SAMPLE_RATE)
        waiting = [self._kept]
        there = self._begins + len(self._kept)
        while not self._ended and there < first + samples:
            block = next(self._blocks, None)
            if block is None:
                self._ended = True
            else:
                waiting.append(block)
                there += len(block)
                if there <= first:  # skipped as a whole
                    waiting, self._begins = [], there
        self._kept = np.concatenate(waiting) if waiting else np.empty(0, np.float32)
        if first > self._begins:
            self._kept = self._kept[first - self._begins :]
            self._begins = first
        return self._kept[:samples]

    def start_time(self, seconds: float) -> float:
        """When something began, in the original sound."""
        return self._offset + max(0.0, min(seconds, self._length()))

    end_time = start_time

    def word_times(self, start: float, end: float) -> tuple[float, float]:
        """Beginning and end of a word."""
        begun = self.start_time(start)
        return begun, max(begun, self.end_time(end))

    def _length(self) -> float:
        """Seconds that are known to be there."""
        return (self._begins + len(self._kept)) / SAMPLE_RATE
