"""What transcribing a sound gives: a ``Transcript`` of ``Segment``s, each with its ``Word``s if they were asked for."""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from edgellm.errors import EdgeLLMError

if TYPE_CHECKING:
    from edgellm.speech.formats import LineShape

Task = Literal["transcribe", "translate"]

_TIME_DIGITS = 3
_FIGURE_DIGITS = 6


def _figure(value: float) -> float | None:
    """A figure for JSON, which has no infinity."""
    return round(float(value), _FIGURE_DIGITS) if math.isfinite(value) else None


@dataclass(frozen=True)
class Word:
    """A word with its times in seconds of the original sound.

    ``text`` stands as the model wrote it, mostly with a space before it and punctuation attached, so that the words of
    a segment joined are its text. ``probability`` is the mean of its tokens'. ``speaker`` is such as ``SPEAKER_00``.
    """

    start: float
    end: float
    text: str
    probability: float
    speaker: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """With the names of OpenAI's Whisper: ``word``, ``start``, ``end``, ``probability``."""
        return {
            "word": self.text,
            "start": round(self.start, _TIME_DIGITS),
            "end": round(self.end, _TIME_DIGITS),
            "probability": _figure(self.probability),
            **({"speaker": self.speaker} if self.speaker is not None else {}),
        }


@dataclass(frozen=True)
class Segment:
    """A stretch of speech with its text.

    Attributes:
        id: counted from 0 within the transcript.
        start: seconds of the original sound.
        end: likewise.
        text: as the model wrote it, mostly with a space before it.
        tokens: ids of the text and timestamp tokens.
        temperature: at which it was decoded.
        average_log_probability: mean over the tokens of the window it was decoded in.
        compression_ratio: of the window's text by zlib: high where the text repeats itself.
        no_speech_probability: of the window.
        words: with times of their own; empty if they were not asked for.
        seek: where the window began that it was decoded in, in frames of 10 ms.
        speaker: who said it or most of it, such as ``SPEAKER_00``.
    """

    id: int
    start: float
    end: float
    text: str
    tokens: tuple[int, ...] = ()
    temperature: float = 0.0
    average_log_probability: float = 0.0
    compression_ratio: float = 0.0
    no_speech_probability: float = 0.0
    words: tuple[Word, ...] = ()
    seek: int = 0
    speaker: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """With the names of OpenAI's verbose JSON."""
        return {
            "id": self.id,
            "seek": self.seek,
            "start": round(self.start, _TIME_DIGITS),
            "end": round(self.end, _TIME_DIGITS),
            "text": self.text,
            "tokens": list(self.tokens),
            "temperature": _figure(self.temperature),
            "avg_logprob": _figure(self.average_log_probability),
            "compression_ratio": _figure(self.compression_ratio),
            "no_speech_prob": _figure(self.no_speech_probability),
            **({"words": [word.to_dict() for word in self.words]} if self.words else {}),
            **({"speaker": self.speaker} if self.speaker is not None else {}),
        }


@dataclass(frozen=True)
class TranscriptionTimings:
    """Where the time went, in seconds; ``total`` is wall time from the first block of sound to the last segment.

    ``speech`` is no time spent but how much of the sound voice activity kept; None where it was off.
    """

    total: float = 0.0
    voice_activity: float = 0.0
    features: float = 0.0
    encoder: float = 0.0
    decoder: float = 0.0
    alignment: float = 0.0
    speech: float | None = None

    def times_real_time(self, duration: float) -> float:
        """Seconds of sound per second of work; 0 where nothing was measured."""
        return duration / self.total if self.total > 0 else 0.0


@dataclass(frozen=True)
class Transcript:
    """What was said in a sound.

    Attributes:
        segments: in order of time.
        language: code such as ``en``.
        language_probability: 1 where the language was given.
        duration: of the sound, in seconds.
        task: ``transcribe``, or ``translate`` into English.
        model: its name.
        timings: where the time went.
    """

    segments: tuple[Segment, ...]
    language: str
    language_probability: float = 1.0
    duration: float = 0.0
    task: Task = "transcribe"
    model: str = ""
    timings: TranscriptionTimings = field(default_factory=TranscriptionTimings)

    @cached_property
    def text(self) -> str:
        """All of it."""
        return "".join(segment.text for segment in self.segments).strip()

    @property
    def words(self) -> Iterator[Word]:
        """The words of all segments."""
        return (word for segment in self.segments for word in segment.words)

    @property
    def speakers(self) -> tuple[str, ...]:
        """Everyone named, in order of first speaking."""
        named = (
            speaker for segment in self.segments for speaker in (segment.speaker, *(w.speaker for w in segment.words))
        )
        return tuple(dict.fromkeys(speaker for speaker in named if speaker is not None))

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's verbose JSON, complete: words within their segments, as its Whisper writes them, and by themselves,
        as its API does. ``language`` is the code.
        """
        words = [{key: word.to_dict()[key] for key in ("word", "start", "end")} for word in self.words]
        return {
            "task": self.task,
            "language": self.language,
            "language_probability": _figure(self.language_probability),
            "duration": round(self.duration, _TIME_DIGITS),
            "model": self.model,
            "text": self.text,
            "segments": [segment.to_dict() for segment in self.segments],
            **({"words": words} if words else {}),
        }

    def write(self, path: str | os.PathLike[str], format: str | None = None, shape: LineShape | None = None) -> None:
        """Write it to a file, which appears whole or not at all.

        Args:
            path: the file; one that is there is replaced.
            format: one of `edgellm.speech.formats.FORMATS`; the path's ending by default.
            shape: how subtitles are broken into lines.

        Raises:
            InvalidSettingError: there is no such format, or the shape needs words the transcript does not have.
            OSError: it cannot be written.
        """
        from edgellm.speech.formats import write_transcript

        write_transcript(self, path, format, shape)


class SegmentStream(Iterator[Segment]):
    """The segments of a transcript as they are ready; when they are all there, so is ``transcript``.

    Args:
        segments: yields the segments and returns the whole.
    """

    def __init__(self, segments: Generator[Segment, None, Transcript]) -> None:
        self._segments = segments
        self._transcript: Transcript | None = None

    def __next__(self) -> Segment:
        try:
            return next(self._segments)
        except StopIteration as end:
            self._transcript = self._transcript or end.value
            raise

    @property
    def transcript(self) -> Transcript:
        """The whole; takes the segments that were not asked for yet."""
        for _ in self:
            pass
        if self._transcript is None:
            raise EdgeLLMError("the transcription was given up before its end")
        return self._transcript

    def close(self) -> None:
        """Give up; what is under way is let go."""
        self._segments.close()
