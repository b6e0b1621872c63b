"""Who speaks, while the sound is still coming: names that stay the same as time goes on."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgellm.diarization.analysis import Findings
from edgellm.diarization.assignment import best_pairs
from edgellm.diarization.joining import speakers_of_words
from edgellm.diarization.pipeline import Diarizer, speaker_name, turns_of
from edgellm.diarization.results import Diarization
from edgellm.diarization.segmentation_network import SAMPLE_RATE
from edgellm.diarization.speakers import SpeakerCount
from edgellm.diarization.voices import Voice, recognize
from edgellm.speech.live import LiveUpdate

_NOBODY = -1
_REFRESH = 1.0
_MARGIN = 2.0
"""Seconds before the end of what was heard in which it is not sure yet who speaks: a new voice needs that long."""
_MOST_OF_THE_TIME = 0.2
"""That looking again may take: it takes longer the longer the sound is."""


class LiveDiarizer:
    """Takes a sound in blocks, and tells at any time what is known so far.

    What was said about the past may still change, as more is heard of each voice, but a voice keeps its name.

    Args:
        diarizer: does the work; it may be used for other sounds as well.
        known: what is known of the number of speakers.
        voices: those that are called by their names.
    """

    def __init__(self, diarizer: Diarizer, known: SpeakerCount | None = None, voices: Sequence[Voice] = ()) -> None:
        self._diarizer, self._known, self._voices = diarizer, known or SpeakerCount(), voices
        self._analysis = diarizer.start(live=True)
        self._names: list[str] = []  # by number of speaker, for ever
        self._sounds: list[NDArray[np.float32]] = []  # how each of them sounded last
        self._speaking = np.zeros(0, np.int64)  # the number of the speaker of each embedded frame, as last found

    @property
    def seconds(self) -> float:
        """Of sound that came in so far."""
        return self._analysis.heard / SAMPLE_RATE

    def push(self, block: NDArray[np.float32]) -> Diarization:
        """Take more of the sound, mono at 16 kHz; return what is known now."""
        self.hear(block)
        return self.present()

    def hear(self, block: NDArray[np.float32]) -> None:
        """Take more of the sound, and leave it to others to ask for what is known."""
        self._analysis.push(block)

    def present(self) -> Diarization:
        """What is known now. Takes longer the longer the sound is: some 0.1 s after an hour."""
        return self._diarization(self._analysis.present())

    def finish(self) -> Diarization:
        """The sound has ended."""
        self._analysis.finish()
        return self._diarization(self._analysis.findings())

    def _diarization(self, findings: Findings) -> Diarization:
        centres = self._diarizer.centres(findings, self._known)
        numbers = self._continued(findings, centres)
        turns, exclusive = turns_of(findings, centres, self._diarizer.settings)
        named = [self._names[number] for number in numbers] or [speaker_name(0)]
        return Diarization.build(turns, exclusive, named, self.seconds, centres)

    def _continued(self, findings: Findings, centres: NDArray[np.float32]) -> list[int]:
        """Which number each speaker found now has.

        That of the earlier speaker with whom it shares most frames; else of one who was lost, and sounds the same.
        """
        if not len(centres):
            return []
        now = np.full(len(findings.counts), _NOBODY, np.int64)
        for window, row in zip(findings.windows, (findings.embeddings @ centres.T).argmax(axis=1), strict=True):
            now[window.first : window.end] = row
        before = self._speaking[: len(now)]
        both = (now[: len(before)] != _NOBODY) & (before != _NOBODY)
        shared = np.zeros((len(centres), len(self._names)))
        np.add.at(shared, (now[: len(before)][both], before[both]), 1.0)
        numbers = {row: column for row, column in best_pairs(shared) if shared[row, column] > 0}
        new = [row for row in range(len(centres)) if row not in numbers]
        lost = [number for number in range(len(self._names)) if number not in numbers.values()]
        back = recognize(centres[new], [Voice(str(number), self._sounds[number]) for number in lost])
        numbers.update({new[place]: int(number) for place, number in back.items()})
        for row in new:
            if row not in numbers:
                numbers[row] = len(self._names)
                self._names.append(speaker_name(len(self._names)))
                self._sounds.append(centres[row])
        for row, number in numbers.items():
            self._sounds[number] = centres[row]
        for row, name in recognize(centres, self._voices).items():
            self._names[numbers[row]] = name
        table = np.array([*(numbers[row] for row in range(len(centres))), _NOBODY], np.int64)  # [-1] is nobody
        self._speaking = table[now]
        return [numbers[row] for row in range(len(centres))]


class LiveSpeakers:
    """Puts speakers to the words of live transcription.

    Firm words wait until it is known who said them, some two seconds, and are partial meanwhile. Each firm update is of
    one speaker. What was given out is never taken back.

    Args:
        live: tells speakers apart.
        clock: seconds, for delays.
    """

    def __init__(self, live: LiveDiarizer, clock: Callable[[], float] = time.monotonic) -> None:
        self._live, self._clock = live, clock
        self._found: Diarization | None = None
        self._known_until = 0.0
        self._next = _REFRESH
        self._waiting: deque[tuple[LiveUpdate, float]] = deque()  # firm updates and ends, with when they came

    def push(self, samples: NDArray[np.float32], updates: Iterable[LiveUpdate]) -> Iterator[LiveUpdate]:
        """What is to be shown.

        Args:
            samples: more of the sound.
            updates: what transcription made of it.
        """
        self._live.hear(samples)
        for update in updates:
            if update.kind == "partial":
                held = [word for waiting, _ in self._waiting for word in waiting.words]
                yield replace(update, words=(*held, *update.words))
            else:
                self._waiting.append((update, self._clock()))
                yield from self._released()
        if self._live.seconds >= self._next:
            began = self._clock()
            self._look(self._live.present(), self._live.seconds - _MARGIN)
            spent = self._clock() - began
            self._next = self._live.seconds + max(_REFRESH, spent / _MOST_OF_THE_TIME)
        yield from self._released()

    def finish(self, updates: Iterable[LiveUpdate]) -> Iterator[LiveUpdate]:
        """The sound has ended: all that is left."""
        self._waiting.extend((update, self._clock()) for update in updates if update.kind != "partial")
        self._look(self._live.finish(), float("inf"))
        yield from self._released()

    def _look(self, found: Diarization, known_until: float) -> None:
        self._found, self._known_until = found, known_until

    def _released(self) -> Iterator[LiveUpdate]:
        """Updates whose speakers are known."""
        while self._waiting:
            update, came = self._waiting[0]
            if update.words and update.words[-1].end > self._known_until:
                return
            self._waiting.popleft()
            yield from self._named(update, self._clock() - came)

    def _named(self, update: LiveUpdate, waited: float) -> Iterator[LiveUpdate]:
        """An update as one for each run of words of a speaker."""
        if not update.words or self._found is None or not self._found.exclusive:
            yield update
            return
        place = 0
        for speaker, run in itertools.groupby(speakers_of_words(update.words, self._found)):
            end = place + len(list(run))
            words = tuple(replace(word, speaker=speaker) for word in update.words[place:end])
            yield replace(update, words=words, delays=tuple(delay + waited for delay in update.delays[place:end]))
            place = end
