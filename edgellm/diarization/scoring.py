"""The diarization error rate (NIST Rich Transcription evaluations, 2003 and later).

Missed speech, false alarms and speech given to the wrong speaker, as a share of all speech in the reference, after the
speakers of both sides were paired as favourably as possible. Overlapping speech counts once for each speaker.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.diarization.assignment import best_pairs
from edgellm.diarization.results import Turn
from edgellm.errors import InvalidSettingError


@dataclass(frozen=True)
class ErrorRate:
    """Seconds of speech and of each kind of error; adding two sums them.

    Attributes:
        total: speech in the reference.
        missed: speech where the hypothesis has fewer speakers.
        false_alarm: speakers in the hypothesis beyond those of the reference.
        confusion: speech given to the wrong speaker.
    """

    total: float = 0.0
    missed: float = 0.0
    false_alarm: float = 0.0
    confusion: float = 0.0

    def __add__(self, other: ErrorRate) -> ErrorRate:
        return ErrorRate(
            self.total + other.total,
            self.missed + other.missed,
            self.false_alarm + other.false_alarm,
            self.confusion + other.confusion,
        )

    @property
    def rate(self) -> float:
        """The diarization error rate; without speech in the reference 0, or 1 if there are false alarms."""
        errors = self.missed + self.false_alarm + self.confusion
        return errors / self.total if self.total else float(errors > 0)


def diarization_error_rate(
    reference: Sequence[Turn],
    hypothesis: Sequence[Turn],
    collar: float = 0.25,
    skip_overlap: bool = False,
    scored: Sequence[tuple[float, float]] | None = None,
) -> ErrorRate:
    """Compare two lists of turns.

    Args:
        reference: the truth.
        hypothesis: what is judged; its speakers' names do not matter.
        collar: seconds on each side of a boundary of the reference that are not scored.
        skip_overlap: leave out where the reference has several speakers.
        scored: the parts to be scored (UEM), in seconds; None: everything.

    Raises:
        InvalidSettingError: the collar is negative or not a number.
    """
    if not 0 <= collar < float("inf"):
        raise InvalidSettingError(f"a collar of {collar} seconds", "give 0 or more")
    times = _atoms(reference, hypothesis, collar, scored)
    lengths = np.diff(times)
    truth, guess = _activity(reference, times), _activity(hypothesis, times)
    lengths = np.where(_outside(times, reference, collar, scored), 0.0, lengths)
    if skip_overlap:
        lengths = np.where(truth.sum(axis=0) > 1, 0.0, lengths)
    together = (truth * lengths) @ guess.T
    pairs = best_pairs(together)
    correct = sum(together[row, column] for row, column in pairs)
    spoken, claimed = truth.sum(axis=0), guess.sum(axis=0)
    common = float((np.minimum(spoken, claimed) * lengths).sum())
    return ErrorRate(
        total=float((spoken * lengths).sum()),
        missed=float((np.maximum(spoken - claimed, 0) * lengths).sum()),
        false_alarm=float((np.maximum(claimed - spoken, 0) * lengths).sum()),
        confusion=max(common - float(correct), 0.0),
    )


def _atoms(
    reference: Iterable[Turn],
    hypothesis: Iterable[Turn],
    collar: float,
    scored: Sequence[tuple[float, float]] | None,
) -> NDArray[np.float64]:
    """All times at which anything changes."""
    times = [time for turn in (*reference, *hypothesis) for time in (turn.start, turn.end)]
    times += [time + side for turn in reference for time in (turn.start, turn.end) for side in (-collar, collar)]
    times += [time for part in scored or () for time in part]
    return np.unique(np.array(times, np.float64)) if times else np.zeros(1)


def _activity(turns: Sequence[Turn], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """(speakers, atoms): 1 where a speaker speaks; twice at once counts once."""
    speakers = list(dict.fromkeys(turn.speaker for turn in turns))
    active = np.zeros((len(speakers), len(times) - 1))
    for turn in turns:
        first, last = np.searchsorted(times, (turn.start, turn.end))
        active[speakers.index(turn.speaker), first:last] = 1
    return active


def _outside(
    times: NDArray[np.float64],
    reference: Sequence[Turn],
    collar: float,
    scored: Sequence[tuple[float, float]] | None,
) -> NDArray[np.bool_]:
    """Which atoms are not scored."""
    skipped = np.zeros(len(times) - 1, bool)
    if scored is not None:
        skipped[:] = True
        for start, end in scored:
            first, last = np.searchsorted(times, (start, end))
            skipped[first:last] = False
    if collar:
        for turn in reference:
            for time in (turn.start, turn.end):
                first, last = np.searchsorted(times, (time - collar, time + collar))
                skipped[first:last] = True
    return skipped
