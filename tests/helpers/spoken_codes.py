"""A language of bursts: each word is a level held for 0.3 s, so that a fake recognizer can hear what was said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgellm.speech.packing import Window
from edgellm.speech.results import Segment, Transcript, Word
from edgellm.speech.settings import TranscriptionSettings
from edgellm.speech.voice_activity import VoiceActivityModel
from edgellm.speech.windows import Beginning

WORD_SAMPLES = 4800
GAP_SAMPLES = 1600


def utter(codes: Sequence[int], silence: float = 1.0) -> np.ndarray:
    """Words with 0.1 s between them, and silence after them, float32 at 16 kHz."""
    parts = []
    for code in codes:
        parts += [np.full(WORD_SAMPLES, 0.6 + code / 1000), np.full(GAP_SAMPLES, 0.55)]
    return np.concatenate([*parts, np.zeros(round(silence * 16_000))]).astype(np.float32)


class LoudIsSpeech(VoiceActivityModel):
    """Stands for the voice activity model, and needs no file."""

    def __init__(self) -> None:
        pass

    def run(
        self, frames: np.ndarray, hidden: np.ndarray, cell: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return (np.abs(frames[:, 64:]).max(axis=1) > 0.5).astype(np.float32), hidden, cell


class CodeTranscriber:
    """Hears words whole; a word that is cut off is heard as something else, as recognizers do.

    Attributes:
        lengths: seconds of each sound it was given.
        settings: those it was given.
        known: what each window was known to begin with.
        cut_off: of each window, whether somebody was speaking at its end.
    """

    def __init__(self) -> None:
        self.lengths: list[float] = []
        self.settings: list[TranscriptionSettings] = []
        self.known: list[Beginning | None] = []
        self.cut_off: list[bool] = []

    def transcribe(self, source: np.ndarray, settings: TranscriptionSettings) -> Transcript:
        self.lengths.append(len(source) / 16_000)
        self.settings.append(settings)
        words = tuple(hear(source))
        text = "".join(word.text for word in words)
        segments = (Segment(0, words[0].start, words[-1].end, text, words=words),) if words else ()
        return Transcript(segments, "en", duration=len(source) / 16_000)

    def transcribe_window(
        self, window: Window, settings: TranscriptionSettings, known: Beginning | None, cut_off: bool
    ) -> list[Segment]:
        self.known.append(known)
        self.cut_off.append(cut_off)
        found = []
        for segment in self.transcribe(window.samples, settings).segments:
            times = [window.time_map.word_times(word.start, word.end) for word in segment.words]
            pairs = zip(segment.words, times, strict=True)
            words = tuple(replace(word, start=start, end=end) for word, (start, end) in pairs)
            found.append(replace(segment, start=words[0].start, end=words[-1].end, words=words))
        return found


def hear(samples: np.ndarray) -> list[Word]:
    """The words in a sound, with their times."""
    words = []
    speech = samples > 0.58
    edges = np.flatnonzero(np.diff(np.r_[False, speech, False].astype(np.int8)))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        code = round(float(np.median(samples[start:end]) - 0.6) * 1000)
        text = f" w{code}" if end - start >= WORD_SAMPLES - 600 else f" cut{code}-{end - start}"
        words.append(Word(start / 16_000, end / 16_000, text, 0.9))
    return words
