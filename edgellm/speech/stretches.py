"""From a probability of speech for every 32 ms to stretches of speech, one frame after the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from edgellm.audio import SAMPLE_RATE

FRAME = 512
"""Samples a probability stands for: 32 ms."""

_PAUSE_TO_CUT_IN = 98 * SAMPLE_RATE // 1000
"""A pause this long is preferred where an overlong stretch is cut: Silero's ``min_silence_at_max_speech``."""


@dataclass(frozen=True)
class Stretch:
    """Speech from sample ``start`` up to ``end``, at 16 kHz."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def start_seconds(self) -> float:
        return self.start / SAMPLE_RATE

    @property
    def end_seconds(self) -> float:
        return self.end / SAMPLE_RATE


@dataclass
class _Open:
    """The stretch that is going on."""

    start: int
    pause: int | None = None
    """Where the pause began in which it is now."""
    probabilities: list[float] = field(default_factory=list)
    """Of its frames, kept where it may have to be cut."""


class StretchFinder:
    """Makes stretches of probabilities; all lengths are in samples. Neighbouring stretches never overlap."""

    def __init__(
        self,
        *,
        threshold: float,
        neg_threshold: float,
        min_speech: int,
        max_speech: int | None,
        min_silence: int,
        pad: int,
    ) -> None:
        self._threshold, self._neg_threshold = threshold, neg_threshold
        self._min_speech, self._min_silence, self._pad = min_speech, min_silence, pad
        self._max_speech = None if max_speech is None else max(FRAME, max_speech - 2 * pad - FRAME)
        self._position = 0
        self._open: _Open | None = None
        self._waiting: Stretch | None = None
        """Over, but how much padding fits behind it is not known yet."""
        self._floor = 0
        """End of the last stretch told, padding included."""
        self._done: list[Stretch] = []
        self.silent_since = 0
        """The sample after the last frame that was speech; 0 while there was none."""

    @property
    def speaking_since(self) -> int | None:
        return None if self._open is None else max(self._floor, self._open.start - self._pad)

    @property
    def settled(self) -> int:
        first = min((s.start for s in (self._waiting, self._open) if s is not None), default=self._position)
        return max(self._floor, first - self._pad, 0)

    def push(self, probabilities: Iterable[float]) -> list[Stretch]:
        """Take the next frames; returns the stretches that are certain now, with their padding."""
        for probability in probabilities:
            self._frame(float(probability))
            self._position += FRAME
            self._try_to_tell()
        return self._take()

    def flush(self, length: int) -> list[Stretch]:
        """The stretches left when the sound has ended after ``length`` samples."""
        if self._open is not None:
            self._close(self._open.start, length)
            self._open = None
        if self._waiting is not None:
            self._tell_waiting(None, length)
        return self._take()

    def _take(self) -> list[Stretch]:
        done, self._done = self._done, []
        return done

    def _frame(self, probability: float) -> None:
        here, current = self._position, self._open
        if current is None:
            if probability < self._threshold:
                return
            current = self._open = _Open(here)
        if probability >= self._neg_threshold:
            self.silent_since = here + FRAME
        if probability >= self._threshold:
            current.pause = None
        elif probability < self._neg_threshold and current.pause is None:
            current.pause = here
        if self._max_speech is not None:
            current.probabilities.append(probability)
            if here - current.start > self._max_speech:
                self._cut(current)
                return
        if current.pause is not None and here - current.pause >= self._min_silence:
            self._close(current.start, current.pause)
            self._open = None

    def _cut(self, current: _Open) -> None:
        """End an overlong stretch in the longest pause of its second half; without one, where it was quietest."""
        first = len(current.probabilities) // 2
        later = current.probabilities[first:]
        begin, end = _longest_run([probability < self._neg_threshold for probability in later])
        if (end - begin) * FRAME < _PAUSE_TO_CUT_IN:
            begin = end = later.index(min(later))
        self._close(current.start, current.start + (first + begin) * FRAME)
        rest = later[end:]
        self._open = None
        if any(probability >= self._threshold for probability in rest):
            start = current.start + (first + end) * FRAME
            self._open = _Open(start, current.pause, rest)

    def _close(self, start: int, end: int) -> None:
        if end - start <= self._min_speech:
            return
        stretch = Stretch(start, end)
        if self._waiting is not None:
            self._tell_waiting(stretch.start)
        self._waiting = stretch

    def _try_to_tell(self) -> None:
        """Give out the waiting stretch once it is known how much of the pause behind it is its own."""
        if self._waiting is None:
            return
        current = self._open
        nearest = self._position if current is None else current.start
        if nearest - self._waiting.end >= 2 * self._pad:
            self._tell_waiting(None)
        elif current is not None and current.pause is None and self._lasts(current):
            self._tell_waiting(current.start)

    def _lasts(self, current: _Open) -> bool:
        """Whether a stretch is long enough already to be kept, even if the sound ends within this frame."""
        return self._position - FRAME - current.start >= self._min_speech

    def _tell_waiting(self, following: int | None, length: int | None = None) -> None:
        """Give out the waiting stretch with padding: half of the pause if the next one, at ``following``, is near."""
        stretch = self._waiting
        assert stretch is not None
        end = stretch.end + self._pad
        if following is not None and following - stretch.end < 2 * self._pad:
            end = stretch.end + (following - stretch.end) // 2
        if length is not None:
            end = min(end, length)
        start = max(self._floor, stretch.start - self._pad, 0)
        self._done.append(Stretch(start, end))
        self._floor, self._waiting = end, None


def _longest_run(flags: list[bool]) -> tuple[int, int]:
    """Begin and end of the longest run of true; the later one of two as long."""
    best, begin = (0, 0), 0
    for place, flag in enumerate([*flags, False]):
        if not flag:
            if place > begin and place - begin >= best[1] - best[0]:
                best = (begin, place)
            begin = place + 1
    return best
