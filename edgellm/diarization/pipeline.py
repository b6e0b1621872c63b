"""Who spoke when: the whole way from sound to turns."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from edgellm.audio import AudioSource, open_audio
from edgellm.diarization.analysis import Analysis, AnalysisSettings, Findings
from edgellm.diarization.models import Models, Progress, load_models
from edgellm.diarization.reconstruction import active_speakers, local_votes, window_evidence
from edgellm.diarization.results import Diarization, Times
from edgellm.diarization.segmentation import frame_time
from edgellm.diarization.segmentation_network import SAMPLE_RATE
from edgellm.diarization.speakers import ClusterSettings, Embeddings, SpeakerCount, find_speakers
from edgellm.diarization.stretches import runs
from edgellm.diarization.voices import Voice, recognize
from edgellm.errors import InvalidSettingError

_BLOCK = 10 * SAMPLE_RATE
_MOST_OF_ANOTHER = 0.25
"""How long somebody else may speak in a recording of one voice, as a share of what the one speaks."""


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
        channels: bool = False,
    ) -> Diarization:
        """Who spoke when in a sound.

        Args:
            source: a path, or samples at 16 kHz.
            speakers: how many there are, if that is known.
            min_speakers: how many there are at least.
            max_speakers: how many there are at most.
            channels: each channel is a speaker of its own.

        Raises:
            CorruptFileError: the file cannot be read as sound.
            InvalidSettingError: the numbers of speakers contradict each other.
        """
        return self.run(source, SpeakerCount(speakers, min_speakers, max_speakers), channels=channels)

    def run(
        self,
        source: AudioSource,
        known: SpeakerCount | None = None,
        voices: Sequence[Voice] = (),
        channels: bool = False,
        progress: Progress | None = None,
        heard: Callable[[NDArray[np.float32]], None] | None = None,
    ) -> Diarization:
        """Like `diarize`, with all that can be wished.

        Args:
            source: a path, or samples at 16 kHz.
            known: what is known of the number of speakers.
            voices: speakers who sound like one of these are called by their names.
            channels: each channel is a speaker of its own; ``known`` and ``voices`` do not matter then.
            progress: called with "diarize", milliseconds done and in all (0 if that is not known).
            heard: called with each block of samples as it is read, the mean of its channels.
        """
        with open_audio(source, split_channels=channels) as reader:
            analyses = [self.start() for _ in range(reader.info.channels if channels else 1)]
            total = round(1000 * (reader.duration or 0))
            for block in reader.blocks(_BLOCK):
                for number, analysis in enumerate(analyses):
                    analysis.push(np.ascontiguousarray(block[:, number]) if channels else block)
                if heard:
                    heard(np.asarray(block.mean(axis=1), np.float32) if channels else block)
                if progress:
                    progress("diarize", min(1000 * analyses[0].heard // SAMPLE_RATE, total), total)
        if channels:
            return self._by_channel(analyses)
        return self.conclude(analyses[0], known, voices)

    def _by_channel(self, analyses: Sequence[Analysis]) -> Diarization:
        turns: list[Times] = []
        for analysis in analyses:
            analysis.finish()
            turns += speech_of(analysis.findings(), self.settings)
        names = [speaker_name(number) for number in range(len(analyses))]
        none = np.zeros((0, 0), np.float32)
        return Diarization.build(turns, turns, names, analyses[0].heard / SAMPLE_RATE, none)

    def embed_voice(self, source: AudioSource) -> NDArray[np.float32]:
        """How the one speaker of a sound sounds, a unit vector (192,).

        Raises:
            InvalidSettingError: nobody speaks, or several people do.
        """
        found = self.diarize(source)
        seconds = {name: sum(turn.duration for turn in found.turns if turn.speaker == name) for name in found.speakers}
        most = sorted(seconds, key=lambda name: -seconds[name])
        if not most or most[0] not in found.embeddings:
            raise InvalidSettingError("too little speech to know a voice by", "give a recording of several seconds")
        if len(most) > 1 and seconds[most[1]] > _MOST_OF_ANOTHER * seconds[most[0]]:
            raise InvalidSettingError(
                f"{len(most)} people speak in it, expected one", "give a recording of one person, some ten seconds"
            )
        return found.embeddings[most[0]]

    def start(self, live: bool = False) -> Analysis:
        """An analysis to push sound into; `conclude` ends it. A live one does what it can do at once."""
        settings = self.settings.analysis
        return Analysis(self.models, replace(settings, batch=1) if live else settings, self._pool, self.threads, live)

    def conclude(
        self, analysis: Analysis, known: SpeakerCount | None = None, voices: Sequence[Voice] = ()
    ) -> Diarization:
        """The result of a sound that has ended."""
        analysis.finish()
        findings = analysis.findings()
        centres = self.centres(findings, known or SpeakerCount())
        turns, exclusive = turns_of(findings, centres, self.settings)
        names = _names(turns, recognize(centres, voices))
        return Diarization.build(turns, exclusive, names, analysis.heard / SAMPLE_RATE, centres)

    def centres(self, findings: Findings, known: SpeakerCount) -> Embeddings:
        """How each speaker sounds, unit vectors (speakers, 192)."""
        return find_speakers(findings.windows, findings.embeddings, findings.activities, known, self.settings.clusters)


def speaker_name(number: int) -> str:
    """What an unknown speaker is called: SPEAKER_00 and so on."""
    return f"SPEAKER_{number:02d}"


def _names(turns: Sequence[Times], known: Mapping[int, str]) -> list[str]:
    """Known speakers by name, the others numbered in the order in which they first speak."""
    order = sorted(range(len(turns)), key=lambda row: turns[row][0] if turns[row] else (np.inf, np.inf))
    unknown = [row for row in order if row not in known]
    return [known[row] if row in known else speaker_name(unknown.index(row)) for row in range(len(turns))]


def turns_of(findings: Findings, centres: Embeddings, settings: DiarizationSettings) -> tuple[list[Times], list[Times]]:
    """Turns of each speaker: overlapping, and one speaker at a time."""
    if len(centres) == 0:  # too short for any embedding: one speaker, if any
        return speech_of(findings, settings), speech_of(findings, settings)
    counts = findings.counts.astype(np.int64)
    similarities = findings.embeddings @ centres.T
    evidence = window_evidence(findings.windows, similarities, settings.sharpness, len(counts))
    scores = local_votes(findings.activities, evidence, counts == 1) + evidence
    turns = _turns(active_speakers(scores, counts), settings)
    return turns, _turns(active_speakers(scores, np.minimum(counts, 1)), settings, exclusive=True)


def speech_of(findings: Findings, settings: DiarizationSettings) -> list[Times]:
    """Where anybody speaks, as if there were one speaker."""
    return _turns((findings.counts > 0)[:, None], settings)


def _turns(active: NDArray[np.bool_], settings: DiarizationSettings, exclusive: bool = False) -> list[Times]:
    """Each speaker's turns in seconds, from (frames, speakers); exclusive ones are not bridged over somebody else."""
    found = []
    anybody = np.asarray(active.any(axis=1), bool)
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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
