"""The sound that live transcription looks at: the utterance that goes on, and those before it.

It is laid out as a file's windows are, so that live text has the context that the text of a file has.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from edgellm.speech.packing import LONGEST_PAUSE, Piece, Window, lay_out

Samples = npt.NDArray[np.float32]


class LiveWindow:
    """Utterances and the pauses between them. All numbers are samples of the sound.

    Args:
        longest: samples of a window; where an utterance does not fit, those before it are let go.

    Attributes:
        start: what is kept that is in no utterance yet begins here.
        speaking_since: where the utterance begins that goes on; None while nobody speaks.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._over: list[Piece] = []
        self._samples: Samples = np.empty(0, np.float32)
        self._told = 0
        """Where the pause before the utterance that goes on began."""
        self.start = 0
        self.speaking_since: int | None = None

    @property
    def end(self) -> int:
        """Of all that came."""
        return self.start + len(self._samples)

    @property
    def kept(self) -> int:
        """Samples in memory."""
        return len(self._samples) + sum(len(piece.samples) for piece in self._over)

    @property
    def spoken(self) -> int:
        """Samples since the utterance began that goes on."""
        return 0 if self.speaking_since is None else self.end - self.speaking_since

    @property
    def begins(self) -> int:
        """Where the window begins."""
        return self._over[0].start if self._over else self.start

    def push(self, samples: Samples, settled: int) -> None:
        """Take what came; of a pause, only what may still count is kept.

        Args:
            samples: any number.
            settled: no utterance begins before this sample any more.
        """
        self._samples = np.concatenate((self._samples, samples))
        if self.speaking_since is None:
            self._drop(settled - LONGEST_PAUSE)

    def begin(self, start: int) -> None:
        """Somebody speaks since ``start``."""
        self.speaking_since = max(start, self.start)

    def cancel(self) -> None:
        """It was no utterance."""
        self.speaking_since = None

    def close(self, end: int) -> None:
        """The utterance that goes on ended."""
        self._over += self._going_on(end)
        self.speaking_since = None
        self._drop(end)
        self._told = self.start

    def let_go(self, sample: int) -> None:
        """The window begins here from now on, within the utterance that goes on."""
        self._over = []
        self._drop(sample)
        self._told = self.speaking_since = self.start

    def has_room(self, end: int) -> bool:
        """Whether the utterance that goes on, heard up to ``end``, fits behind those that are over."""
        return not self._over or len(self._windows(end)) == 1

    def make_room(self, end: int) -> bool:
        """Let go of what is over if it leaves no room for the utterance up to ``end``; returns whether it left none."""
        if self.has_room(end):
            return False
        self._over = []
        if self._pause:  # half of it stays, as in a file's windows
            self._drop(self._told + self._pause // 2)
            self._told = self.start
        return True

    def packed(self, end: int) -> Window:
        """All up to ``end``, which lies in the utterance that goes on."""
        return self._windows(end)[-1]

    def _windows(self, end: int) -> list[Window]:
        return list(lay_out([*self._over, *self._going_on(end)], self._longest))

    def _going_on(self, end: int) -> Iterator[Piece]:
        """The utterance that goes on, and the pause before it unless that was long."""
        since = self.speaking_since
        assert since is not None
        if self._pause:
            yield Piece(self.start, self._samples[: since - self.start], speech=False)
        yield Piece(since, self._samples[since - self.start : end - self.start])

    @property
    def _pause(self) -> int:
        """Samples of the pause before the utterance that goes on, 0 if it is left out."""
        length = 0 if self.speaking_since is None else self.speaking_since - self._told
        return length if length <= LONGEST_PAUSE else 0

    def _drop(self, sample: int) -> None:
        count = min(max(0, sample - self.start), len(self._samples))
        self._samples, self.start = self._samples[count:].copy(), self.start + count
