"""Who spoke when: the whole way from sound to turns."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgellm.audio import AudioSource, open_audio
from edgellm.diarization.analysis import Analysis, AnalysisSettings
from edgellm.diarization.embedding_network import EMBEDDING
from edgellm.diarization.models import Models, Progress, load_models
from edgellm.diarization.reconstruction import active_speakers, local_votes, window_evidence
from edgellm.diarization.results import Diarization, Turn, speakers_of
from edgellm.diarization.segmentation import frame_time
from edgellm.diarization.segmentation_network import SAMPLE_RATE
from edgellm.diarization.speakers import ClusterSettings, Embeddings, SpeakerCount, find_speakers
from edgellm.diarization.stretches import runs

_BLOCK = 10 * SAMPLE_RATE


@dataclass(frozen=True)
class DiarizationSettings:
    """All settings, each with its own docstring.

    Attributes:
        analysis: how the sound is looked at.
        clusters: how embeddings are joined to speakers.
        sharpness: how much a difference in similarity counts when frames are labelled.
        bridged: silences of one speaker below so many seconds are no silences.
        shortest: turns below so many seconds are none.
    """

    analysis: AnalysisSettings = field(default_factory=AnalysisSettings)
    clusters: ClusterSettings = field(default_factory=ClusterSettings)
    sharpness: float = 10.0
    bridged: float = 0.2
    shortest: float = 0.1


class Diarizer:
    """Tells speakers apart. May be used for one sound after another.

    Args:
        models: the networks.
        settings: of all stages.
        threads: how many calls of the networks run at a time; all cores by default.
    """

    def __init__(self, models: Models, settings: DiarizationSettings | None = None, threads: int | None = None) -> None:
        self.models = models
        self.settings = settings or DiarizationSettings()
        self.threads = threads or _cores()
        self._pool = ThreadPoolExecutor(self.threads, "edgellm-diarization")

    @classmethod
    def load(
        cls,
        settings: DiarizationSettings | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
        offline: bool = False,
    ) -> Diarizer:
        """With the models of ``edgellm pull diarization``, which are fetched if they are not here.

        Raises:
            DownloadError: they could not be fetched.
            EdgeLLMError: a package is missing.
        """
        return cls(load_models(progress, offline), settings, threads)

    def __enter__(self) -> Diarizer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End its threads."""
        self._pool.shutdown()

    def diarize(
        self,
        source: AudioSource,
        speakers: int | None = None,
        min_speakers: int | None = None,
        max_speakers: int | None = None,
        progress: Progress | None = None,
    ) -> Diarization:
        """Who spoke when in a sound.

        Args:
            source: a path, or samples at 16 kHz.
            speakers: how many there are, if that is known.
            min_speakers: how many there are at least.
            max_speakers: how many there are at most.
            progress: called with "diarize", milliseconds done and in all (0 if that is not known).

        Raises:
            CorruptFileError: the file cannot be read as sound.
            InvalidSettingError: the numbers of speakers contradict each other.
        """
        known = SpeakerCount(speakers, min_speakers, max_speakers)
        analysis = self.start()
        with open_audio(source) as reader:
            total = round(1000 * (reader.duration or 0))
            for block in reader.blocks(_BLOCK):
                analysis.push(block)
                if progress:
                    progress("diarize", min(1000 * analysis.samples // SAMPLE_RATE, total), total)
        return self.conclude(analysis, known)

    def start(self) -> Analysis:
        """An analysis to push sound into; `conclude` ends it."""
        return Analysis(self.models, self.settings.analysis, self._pool, self.threads)

    def conclude(self, analysis: Analysis, known: SpeakerCount | None = None) -> Diarization:
        """The result of a sound that has ended."""
        samples = analysis.samples
        analysis.finish()
        centres = self._centres(analysis, known or SpeakerCount())
        turns, exclusive = assign(analysis, centres, self.settings)
        return _named(turns, exclusive, samples / SAMPLE_RATE)

    def _centres(self, analysis: Analysis, known: SpeakerCount) -> Embeddings:
        embeddings = np.array(analysis.embeddings, np.float32).reshape(-1, EMBEDDING)
        return find_speakers(analysis.windows, embeddings, analysis.activities, known, self.settings.clusters)


def assign(
    analysis: Analysis, centres: Embeddings, settings: DiarizationSettings
) -> tuple[list[list[tuple[float, float]]], list[list[tuple[float, float]]]]:
    """Turns of each speaker in seconds: overlapping, and one speaker at a time."""
    count = len(analysis.counts)
    counts = analysis.counts.astype(np.int64)
    if len(centres) == 0:  # too short for any embedding: one speaker, if any
        flags = (counts > 0)[:, None]
        return _turns(flags, settings), _turns(flags, settings)
    similarities = np.array(analysis.embeddings, np.float32) @ centres.T
    evidence = window_evidence(analysis.windows, similarities, settings.sharpness, count)
    scores = local_votes(analysis.activities, evidence, counts == 1) + evidence
    turns = _turns(active_speakers(scores, counts), settings)
    return turns, _turns(active_speakers(scores, np.minimum(counts, 1)), settings, exclusive=True)


def _turns(
    active: NDArray[np.bool_], settings: DiarizationSettings, exclusive: bool = False
) -> list[list[tuple[float, float]]]:
    """Each speaker's turns in seconds, from (frames, speakers); exclusive ones are not bridged over somebody else."""
    found = []
    anybody = active.any(axis=1)
    for speaker in range(active.shape[1]):
        merged: list[list[int]] = []
        for start, end in runs(active[:, speaker]):
            gap = frame_time(start) - frame_time(merged[-1][1]) if merged else np.inf
            if gap < settings.bridged and not (exclusive and anybody[merged[-1][1] : start].any()):
                merged[-1][1] = end
            else:
                merged.append([start, end])
        times = [(max(0.0, frame_time(start)), frame_time(end)) for start, end in merged]
        found.append([(start, end) for start, end in times if end - start >= settings.shortest])
    return found


def _named(
    turns: list[list[tuple[float, float]]], exclusive: list[list[tuple[float, float]]], duration: float
) -> Diarization:
    """Speakers numbered in the order in which they first speak."""
    numbered = [Turn(start, min(end, duration), f"{number}") for number, own in enumerate(turns) for start, end in own]
    names = {number: f"SPEAKER_{place:02d}" for place, number in enumerate(speakers_of(numbered))}
    return Diarization(
        tuple(sorted(Turn(turn.start, turn.end, names[turn.speaker]) for turn in numbered)),
        tuple(
            sorted(
                Turn(start, min(end, duration), names[str(number)])
                for number, own in enumerate(exclusive)
                for start, end in own
                if str(number) in names
            )
        ),
        tuple(names.values()),
        duration,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
