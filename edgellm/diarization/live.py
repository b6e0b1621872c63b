"""Who speaks, while the sound is still coming: names that stay the same as time goes on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgellm.diarization.assignment import best_pairs
from edgellm.diarization.pipeline import Diarizer, speaker_name, turns_of
from edgellm.diarization.results import Diarization
from edgellm.diarization.segmentation_network import SAMPLE_RATE
from edgellm.diarization.speakers import SpeakerCount
from edgellm.diarization.voices import Voice, recognize


class LiveDiarizer:
    """Takes a sound in blocks, and tells at any time what is known so far.

    The first ten seconds must pass before anything is known; from then on it is known to two and a half seconds before
    now. What was said about the past may still change, as more is heard of each voice, but a voice keeps its name.

    Args:
        diarizer: does the work; it may be used for other sounds as well.
        known: what is known of the number of speakers.
        voices: those that are called by their names.
    """

    def __init__(self, diarizer: Diarizer, known: SpeakerCount | None = None, voices: Sequence[Voice] = ()) -> None:
        self._diarizer, self._known, self._voices = diarizer, known or SpeakerCount(), voices
        self._analysis = diarizer.start(live=True)
        self._names: list[str] = []  # by number of speaker, for ever
        self._labels = np.zeros(0, np.int64)  # the number of the speaker of each embedding, as last found

    def push(self, block: NDArray[np.float32]) -> Diarization:
        """Take more of the sound, mono at 16 kHz; return what is known now."""
        self._analysis.push(block)
        return self._diarization()

    def finish(self) -> Diarization:
        """The sound has ended."""
        self._analysis.finish()
        return self._diarization()

    def _diarization(self) -> Diarization:
        analysis = self._analysis
        centres = self._diarizer.centres(analysis, self._known)
        numbers = self._continued(centres)
        turns, exclusive = turns_of(analysis, centres, self._diarizer.settings)
        named = [self._names[number] for number in numbers] or [speaker_name(0)]
        duration = analysis.heard / SAMPLE_RATE
        return Diarization.build(turns, exclusive, named, duration, centres)

    def _continued(self, centres: NDArray[np.float32]) -> list[int]:
        """Which number each speaker found now has: that of the earlier speaker with whom it shares most embeddings."""
        if not len(centres):
            return []
        now = (self._analysis.unit_embeddings() @ centres.T).argmax(axis=1)
        shared = np.zeros((len(centres), len(self._names)))
        np.add.at(shared, (now[: len(self._labels)], self._labels), 1.0)
        numbers = {row: column for row, column in best_pairs(shared) if shared[row, column] > 0}
        for row in range(len(centres)):
            if row not in numbers:
                numbers[row] = len(self._names)
                self._names.append(speaker_name(len(self._names)))
        for row, name in recognize(centres, self._voices).items():
            self._names[numbers[row]] = name
        self._labels = np.array([numbers[int(row)] for row in now], np.int64)
        return [numbers[row] for row in range(len(centres))]
