"""How a transcript is broken into subtitles and lines, by the rules of OpenAI's Whisper.

A segment is a subtitle, and lines break where they would be wider than ``max_line_width``. With ``max_line_count`` as
well, subtitles no longer follow segments: each takes as many words as fit its lines, up to a pause of 3 s. With
``max_words_per_line`` a segment is cut after every so many words. A change of speaker always begins a new subtitle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgellm.errors import InvalidSettingError
from edgellm.speech.results import Segment, Transcript, Word

_LONG_PAUSE = 3.0


@dataclass(frozen=True)
class LineShape:
    """How subtitles are broken into lines; the names are those of OpenAI's Whisper. All of them need words.

    Attributes:
        max_line_width: characters of a line; a longer word stands alone.
        max_line_count: lines of a subtitle; counts only together with ``max_line_width``.
        max_words_per_line: words of a subtitle; counts only without both of the others.
        highlight_words: a subtitle for every word, in which it is underlined.

    Raises:
        InvalidSettingError: a number is not positive.
    """

    max_line_width: int | None = None
    max_line_count: int | None = None
    max_words_per_line: int | None = None
    highlight_words: bool = False

    def __post_init__(self) -> None:
        for name in ("max_line_width", "max_line_count", "max_words_per_line"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidSettingError(f"{name} is at least 1, not {value}")

    @property
    def needs_words(self) -> bool:
        """Whether any of it was asked for."""
        return self != LineShape()

    @property
    def _keeps_segments(self) -> bool:
        return self.max_line_width is None or self.max_line_count is None


@dataclass(frozen=True)
class Cue:
    """A subtitle: what to show from ``start`` to ``end`` seconds. ``parts`` joined are its text, lines in it included.

    ``highlighted`` is the part that is spoken now.
    """

    start: float
    end: float
    parts: tuple[str, ...]
    speaker: str | None = None
    highlighted: int | None = None

    @property
    def text(self) -> str:
        return "".join(self.parts)


def cues(transcript: Transcript, shape: LineShape) -> Iterator[Cue]:
    """The subtitles of a transcript.

    Raises:
        InvalidSettingError: the shape needs words, and the transcript has none.
    """
    has_words = any(segment.words for segment in transcript.segments)
    if not has_words:
        if shape.needs_words and transcript.segments:
            raise InvalidSettingError("breaking lines anew needs the times of words", "ask for --word-timestamps")
        for segment in transcript.segments:
            yield Cue(segment.start, segment.end, (tidy(segment.text).strip(),), segment.speaker)
        return
    for words in _subtitles(transcript, shape):
        yield from _highlighted(words) if shape.highlight_words else [_cue(words)]


def tidy(text: str) -> str:
    """Text that breaks no format: on one line, without the arrow that separates times."""
    return " ".join(text.split("\n")).replace("\r", " ").replace("-->", "->")


@dataclass(frozen=True)
class _Placed:
    """A word and where it stands: ``lead`` goes before its text."""

    word: Word
    text: str
    speaker: str | None


def _subtitles(transcript: Transcript, shape: LineShape) -> Iterator[list[_Placed]]:
    """Words grouped into subtitles, line breaks set."""
    width = shape.max_line_width or 1000
    subtitle: list[_Placed] = []
    line_width, lines, previous = 0, 1, 0.0
    for word, speaker, first in _words(transcript, shape):
        text = tidy(word.text)
        pause = not shape._keeps_segments and bool(subtitle) and word.start - previous > _LONG_PAUSE
        fits = line_width + len(text) <= width
        broken = (first and shape._keeps_segments) or (bool(subtitle) and speaker != subtitle[-1].speaker)
        full = shape.max_line_count is not None and not fits and lines >= shape.max_line_count
        if subtitle and (broken or pause or full):
            yield subtitle
            subtitle, line_width, lines = [], 0, 1
        if line_width > 0 and fits:
            line_width += len(text)
        else:
            text = text.strip()
            line_width = len(text)
            if subtitle:
                text, lines = "\n" + text, lines + 1
        subtitle.append(_Placed(word, text, speaker))
        previous = word.start
    if subtitle:
        yield subtitle


def _words(transcript: Transcript, shape: LineShape) -> Iterator[tuple[Word, str | None, bool]]:
    """Every word with who said it, and whether a subtitle may begin with it because a segment or a part of it does."""
    for segment in transcript.segments:
        for index, word in enumerate(segment.words or _whole(segment)):
            first = index % shape.max_words_per_line == 0 if shape.max_words_per_line else index == 0
            yield word, word.speaker or segment.speaker, first


def _whole(segment: Segment) -> tuple[Word, ...]:
    """A segment without words among others that have them."""
    return (Word(segment.start, segment.end, segment.text, 0.0),) if segment.text.strip() else ()


def _cue(words: list[_Placed]) -> Cue:
    parts = tuple(placed.text for placed in words)
    return Cue(words[0].word.start, words[-1].word.end, parts, words[0].speaker)


def _highlighted(words: list[_Placed]) -> Iterator[Cue]:
    """One subtitle a word, and one without highlight in each gap."""
    whole = _cue(words)
    last = whole.start
    for index, placed in enumerate(words):
        word = placed.word
        if round(1000 * word.start) != round(1000 * last):
            yield Cue(last, word.start, whole.parts, whole.speaker)
        yield Cue(word.start, word.end, whole.parts, whole.speaker, index)
        last = word.end
