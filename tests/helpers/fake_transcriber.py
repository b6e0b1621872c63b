"""A transcriber that hears what it is told, in the length of the sound it is given."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np

from edgellm.audio import load_audio
from edgellm.speech.results import Segment, SegmentStream, Transcript, Word
from edgellm.speech.settings import TranscriptionSettings


class FakeTranscriber:
    """Has of ``Transcriber`` what the command line uses; reads files for real, so that bad ones fail."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.settings: list[TranscriptionSettings] = []
        self.sources: list[object] = []
        self.closed = False

    def __enter__(self) -> FakeTranscriber:
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True

    def transcribe(self, source: np.ndarray | Path, settings: TranscriptionSettings) -> Transcript:
        return self.stream(source, settings).transcript

    def stream(
        self,
        source: np.ndarray | Path,
        settings: TranscriptionSettings,
        heard: Callable[[float, float | None], None] | None = None,
    ) -> SegmentStream:
        self.settings.append(settings)
        self.sources.append(source)
        return SegmentStream(self._run(source, settings, heard))

    def _run(
        self,
        source: np.ndarray | Path,
        settings: TranscriptionSettings,
        heard: Callable[[float, float | None], None] | None,
    ) -> Generator[Segment, None, Transcript]:
        seconds = len(load_audio(source)) / 16_000
        share = seconds / max(1, len(self.texts))
        segments = []
        for number, text in enumerate(self.texts):
            words = text.split()
            each = share / max(1, len(words))
            timed = tuple(
                Word(number * share + i * each, number * share + (i + 1) * each, f" {word}", 0.9)
                for i, word in enumerate(words)
            )
            chosen = timed if settings.word_timestamps else ()
            segments.append(Segment(number, number * share, (number + 1) * share, f" {text}", (1, 2), words=chosen))
            if heard is not None:
                heard((number + 1) * share, seconds)
            yield segments[-1]
        return Transcript(tuple(segments), settings.language or "en", 0.9, seconds, settings.task, "fake")
