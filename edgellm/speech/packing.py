"""Windows packed with speech, and the map from their times back to the times of the sound.

Silence is cut out, what is left is laid side by side in windows of at most 30 s, Whisper's length. A ``TimeMap`` knows
where each piece came from.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgellm.audio import SAMPLE_RATE
from edgellm.errors import InvalidSettingError
from edgellm.speech.stretches import Stretch
from edgellm.speech.voice_activity import VoiceActivityDetector

Samples = npt.NDArray[np.float32]

WINDOW_SAMPLES = 30 * SAMPLE_RATE


@dataclass(frozen=True)
class Piece:
    """Samples that were cut out of a sound as a whole; ``start`` is the sample of the sound they began at."""

    start: int
    samples: Samples

    @property
    def end(self) -> int:
        return self.start + len(self.samples)


class TimeMap:
    """Times within joined pieces, in seconds, as times of the sound they were cut from. Monotone.

    Args:
        stretches: of the sound, in order, not overlapping and none of them empty, as they were joined.
    """

    def __init__(self, stretches: Iterable[Stretch]) -> None:
        self.stretches = tuple(stretches)
        self._cut: list[int] = [0]
        for before, stretch in zip((None, *self.stretches), self.stretches, strict=False):
            if stretch.end <= stretch.start or (before is not None and stretch.start < before.end):
                raise ValueError("stretches must be in order and hold something")
            self._cut.append(self._cut[-1] + len(stretch))
        if not self.stretches:
            raise ValueError("a time map needs a stretch")

    @property
    def duration(self) -> float:
        """Seconds of the joined pieces."""
        return self._cut[-1] / SAMPLE_RATE

    def start_time(self, seconds: float) -> float:
        """When something began: where two pieces meet, in the later one."""
        sample = self._clamped(seconds)
        return self._original(min(bisect.bisect_right(self._cut, sample) - 1, len(self.stretches) - 1), sample)

    def end_time(self, seconds: float) -> float:
        """When something ended: where two pieces meet, in the earlier one."""
        sample = self._clamped(seconds)
        return self._original(max(bisect.bisect_left(self._cut, sample) - 1, 0), sample)

    def word_times(self, start: float, end: float) -> tuple[float, float]:
        """Beginning and end of a word. It lies in one piece, the one that holds most of it, so in no cut silence."""
        first, last = self._clamped(start), self._clamped(max(start, end))
        low = min(bisect.bisect_right(self._cut, first) - 1, len(self.stretches) - 1)
        high = max(bisect.bisect_left(self._cut, last) - 1, low)
        best = max(range(low, high + 1), key=lambda i: min(last, self._cut[i + 1]) - max(first, self._cut[i]))
        inside = (min(max(sample, self._cut[best]), self._cut[best + 1]) for sample in (first, last))
        begun, ended = (self._original(best, sample) for sample in inside)
        return begun, ended

    def _clamped(self, seconds: float) -> float:
        # Rounded, so that the time of a sample where two pieces meet is that sample's.
        return min(max(round(seconds * SAMPLE_RATE, 3), 0.0), float(self._cut[-1]))

    def _original(self, index: int, sample: float) -> float:
        stretch = self.stretches[index]
        return min(stretch.start + sample - self._cut[index], float(stretch.end)) / SAMPLE_RATE


@dataclass(frozen=True)
class Window:
    """Pieces of a sound laid side by side: samples (at most 30 s), and where they came from."""

    samples: Samples
    time_map: TimeMap

    @property
    def start(self) -> float:
        """Where its first piece began in the sound, in seconds."""
        return self.time_map.stretches[0].start_seconds

    @property
    def end(self) -> float:
        """Where its last piece ended in the sound, in seconds."""
        return self.time_map.stretches[-1].end_seconds


def cut_speech(blocks: Iterable[Samples], detector: VoiceActivityDetector, offset: int = 0) -> Iterator[Piece]:
    """The stretches of speech in a stream, each as soon as it is over. Holds what is not decided yet, no more.

    Args:
        blocks: 16 kHz mono samples.
        detector: not used before; its ``max_speech_duration_s`` bounds the memory this takes.
        offset: sample of the sound at which the stream begins; pieces tell the place in the sound.
    """
    kept = np.empty(0, np.float32)
    begins = 0
    for block, stretches in _with_stretches(blocks, detector):
        kept = np.concatenate((kept, block))
        for stretch in stretches:
            yield Piece(offset + stretch.start, kept[stretch.start - begins : stretch.end - begins].copy())
        drop = min(detector.settled - begins, len(kept))
        if drop > 0:
            kept, begins = kept[drop:], begins + drop


def _with_stretches(
    blocks: Iterable[Samples], detector: VoiceActivityDetector
) -> Iterator[tuple[Samples, list[Stretch]]]:
    for block in blocks:
        yield block, detector.push(block)
    yield np.empty(0, np.float32), detector.flush()


def pack(pieces: Iterable[Piece], max_samples: int = WINDOW_SAMPLES) -> Iterator[Window]:
    """Windows of at most ``max_samples``, each as full as whole pieces make it; longer pieces are cut.

    Raises:
        InvalidSettingError: a window of less than a second was asked for.
    """
    if max_samples < SAMPLE_RATE:
        raise InvalidSettingError("a window holds at least a second")
    waiting: list[Piece] = []
    count = 0
    for piece in _no_longer_than(pieces, max_samples):
        if count + len(piece.samples) > max_samples:
            yield _window(waiting)
            waiting, count = [], 0
        waiting.append(piece)
        count += len(piece.samples)
    if waiting:
        yield _window(waiting)


def _no_longer_than(pieces: Iterable[Piece], most: int) -> Iterator[Piece]:
    for piece in pieces:
        for first in range(0, len(piece.samples), most):
            yield Piece(piece.start + first, piece.samples[first : first + most])


def _window(pieces: list[Piece]) -> Window:
    samples = pieces[0].samples if len(pieces) == 1 else np.concatenate([piece.samples for piece in pieces])
    return Window(samples, TimeMap(Stretch(piece.start, piece.end) for piece in pieces))
