"""Windows packed with speech, and the map from their times back to the times of the sound.

Silence is cut out, what is left is laid side by side in windows of at most 30 s, Whisper's length. Pauses that are not
long stay, whole or in part, and a short sound is heard as it is. A ``TimeMap`` knows where each piece came from.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgellm.audio import SAMPLE_RATE
from edgellm.errors import InvalidSettingError
from edgellm.speech.stretches import Stretch
from edgellm.speech.voice_activity import VoiceActivityDetector

Samples = npt.NDArray[np.float32]

WINDOW_SAMPLES = 30 * SAMPLE_RATE
LONGEST_PAUSE = 2 * SAMPLE_RATE
"""Longer silence is cut out in any case; it is what faster-whisper's voice activity begins to cut out."""
_SHORT_PAUSE = SAMPLE_RATE // 5
"""Of a pause in the second half of a window, besides the padding of speech."""


@dataclass(frozen=True)
class Piece:
    """Samples that were cut out of a sound as a whole.

    Attributes:
        start: the sample of the sound they began at.
        samples: 16 kHz mono.
        speech: whether somebody speaks there, or there is a pause that may be left out.
    """

    start: int
    samples: Samples
    speech: bool = True

    @property
    def end(self) -> int:
        return self.start + len(self.samples)

    def part(self, first: int, last: int) -> Piece:
        """Its samples from one to before another."""
        return Piece(self.start + first, self.samples[first:last], self.speech)


class TimeMap:
    """Times within joined pieces, in seconds, as times of the sound they were cut from. Monotone.

    Args:
        stretches: of the sound, in order, not overlapping and none of them empty, as they were joined.
        speech: of each stretch whether words may lie in it; by default in all.
    """

    def __init__(self, stretches: Iterable[Stretch], speech: Iterable[bool] | None = None) -> None:
        self.stretches = tuple(stretches)
        spoken = (True,) * len(self.stretches) if speech is None else tuple(speech)
        self._spoken = [number for number, is_speech in enumerate(spoken) if is_speech]
        self._cut: list[int] = [0]
        for before, stretch in zip((None, *self.stretches), self.stretches, strict=False):
            if stretch.end <= stretch.start or (before is not None and stretch.start < before.end):
                raise ValueError("stretches must be in order and hold something")
            self._cut.append(self._cut[-1] + len(stretch))
        if not self._spoken:
            raise ValueError("a time map needs a stretch with speech")

    @property
    def duration(self) -> float:
        """Seconds of the joined pieces."""
        return self._cut[-1] / SAMPLE_RATE

    @property
    def speech(self) -> tuple[Stretch, ...]:
        """The stretches of the sound in which words may lie."""
        return tuple(self.stretches[number] for number in self._spoken)

    @property
    def speech_end(self) -> float:
        """Seconds of the joined pieces up to the end of speech."""
        return self._cut[self._spoken[-1] + 1] / SAMPLE_RATE

    def start_time(self, seconds: float) -> float:
        """When something began: where two pieces meet, in the later one."""
        sample = self._clamped(seconds)
        return self._original(min(bisect.bisect_right(self._cut, sample) - 1, len(self.stretches) - 1), sample)

    def end_time(self, seconds: float) -> float:
        """When something ended: where two pieces meet, in the earlier one."""
        sample = self._clamped(seconds)
        return self._original(max(bisect.bisect_left(self._cut, sample) - 1, 0), sample)

    def word_times(self, start: float, end: float) -> tuple[float, float]:
        """Beginning and end of a word.

        It lies in one stretch of speech, the one that holds most of it or is nearest, so in no silence.
        """
        first, last = self._clamped(start), self._clamped(max(start, end))
        best = max(self._spoken, key=lambda i: (min(last, self._cut[i + 1]) - max(first, self._cut[i]), i))
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


def cut_speech(
    blocks: Iterable[Samples], detector: VoiceActivityDetector, offset: int = 0, longest_pause: int = LONGEST_PAUSE
) -> Iterator[Piece]:
    """The stretches of speech in a stream, each as soon as it is over, with the pauses before, between and after them.

    Holds what is not decided yet, no more.

    Args:
        blocks: 16 kHz mono samples.
        detector: not used before; its ``max_speech_duration_s`` bounds the memory this takes.
        offset: sample of the sound at which the stream begins; pieces tell the place in the sound.
        longest_pause: samples of a pause at most; longer silence is left out as a whole.
    """
    kept = np.empty(0, np.float32)
    begins = told = 0

    def cut(start: int, end: int, speech: bool) -> Piece:
        return Piece(offset + start, kept[start - begins : end - begins].copy(), speech)

    for block, stretches in _with_stretches(blocks, detector):
        kept = np.concatenate((kept, block))
        for stretch in stretches:
            if 0 < stretch.start - told <= longest_pause:
                yield cut(told, stretch.start, speech=False)
            yield cut(stretch.start, stretch.end, speech=True)
            told = stretch.end
        drop = min(max(told, detector.settled - longest_pause) - begins, len(kept))
        if drop > 0:
            kept, begins = kept[drop:], begins + drop
    if 0 < told < detector.samples <= told + longest_pause:
        yield cut(told, detector.samples, speech=False)


def _with_stretches(
    blocks: Iterable[Samples], detector: VoiceActivityDetector
) -> Iterator[tuple[Samples, list[Stretch]]]:
    for block in blocks:
        yield block, detector.push(block)
    yield np.empty(0, np.float32), detector.flush()


def pack(pieces: Iterable[Piece], max_samples: int = WINDOW_SAMPLES) -> Iterator[Window]:
    """Windows of at most ``max_samples``, each as full as whole pieces of speech make it; longer ones are cut.

    A sound that fits into one window with all of its pauses is heard as it is. For others see `lay_out`.

    Raises:
        InvalidSettingError: a window of less than a second was asked for.
    """
    if max_samples < SAMPLE_RATE:
        raise InvalidSettingError("a window holds at least a second")
    first: list[Piece] = []
    count = 0
    pieces = iter(pieces)
    for piece in pieces:
        first.append(piece)
        count += len(piece.samples)
        if count > max_samples:
            yield from lay_out(itertools.chain(first, pieces), max_samples)
            return
    if any(piece.speech for piece in first):
        yield _joined(first)


def lay_out(pieces: Iterable[Piece], max_samples: int = WINDOW_SAMPLES) -> Iterator[Window]:
    """Windows in which what comes later changes nothing of what stands before, so that live text has them, too.

    Pauses are heard whole in the first half of a window, later ones in part. That between two windows is halved.
    """
    layout = _Layout(max_samples)
    for piece in _no_longer_than(pieces, max_samples):
        if not piece.speech:
            layout.pause(piece)
            continue
        if not layout.has_room(piece):
            yield layout.close()
        layout.speech(piece)
    if layout.spoken:
        yield layout.close()


class _Layout:
    """The window that is being filled."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._laid: list[Piece] = []
        self._count = 0
        self._pause: Piece | None = None
        """Comes next, if speech does."""
        self.spoken = False

    def has_room(self, speech: Piece) -> bool:
        return not self.spoken or self._count + len(speech.samples) <= self._most

    def pause(self, piece: Piece) -> None:
        """Take a pause; there is speech between two of them."""
        self._pause = piece

    def speech(self, piece: Piece) -> None:
        """Lay speech behind the pause before it."""
        pause = self._pause
        if pause is not None:
            length, kept = len(pause.samples), self._kept(pause, self._most - self._count - len(piece.samples))
            before = kept // 2 if self.spoken else 0
            if kept == length:
                self._lay(pause)
            else:
                self._lay(pause.part(0, before))
                self._lay(pause.part(length - (kept - before), length))
        self._lay(piece)
        self._pause, self.spoken = None, True

    def close(self) -> Window:
        """The window as it is; the next one begins with half of the pause that comes."""
        if self._pause is not None:
            length = len(self._pause.samples)
            self._pause = self._pause.part(length // 2, length)
        window = _joined(self._laid)
        self._laid, self._count, self.spoken = [], 0, False
        return window

    def _kept(self, pause: Piece, room: int) -> int:
        """How much of a pause is heard, where there is so much room."""
        longest = self._most if self._count < self._most // 2 else _SHORT_PAUSE
        return min(len(pause.samples), longest, room)

    def _lay(self, piece: Piece) -> None:
        if len(piece.samples):
            self._laid.append(piece)
            self._count += len(piece.samples)


def _no_longer_than(pieces: Iterable[Piece], most: int) -> Iterator[Piece]:
    for piece in pieces:
        for first in range(0, len(piece.samples), most):
            yield piece.part(first, first + most)


def _joined(pieces: Sequence[Piece]) -> Window:
    samples = pieces[0].samples if len(pieces) == 1 else np.concatenate([piece.samples for piece in pieces])
    stretches = [Stretch(piece.start, piece.end) for piece in pieces]
    return Window(samples, TimeMap(stretches, [piece.speech for piece in pieces]))
