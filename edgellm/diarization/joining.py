"""Words and speakers together: who said which word.

Each word goes to who speaks for most of its time. Then sense mends what times alone get wrong: a sentence that is
nearly all one speaker's is all of it, and no single word stands between words of somebody else within a sentence.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from edgellm.diarization.results import Diarization, Turn
from edgellm.speech.results import Segment, Transcript, Word

_ENDINGS = (".", "?", "!", "。", "？", "！", "…")
_CLOSING = "\"'”’)]»"
_MOST_STRAY_WORDS = 2
"""At the edges of a sentence so many words may be taken from another speaker,"""
_STRAY_SHARE = 0.34
"""if they are at most this share of it."""
_PAUSE = 0.8
"""Seconds of silence that end a sentence, whatever the punctuation says."""


def assign_speakers(transcript: Transcript, diarization: Diarization) -> Transcript:
    """The transcript with a speaker for each word and segment; segments are cut where the speaker changes.

    Segments without words get the speaker of most of their time. Without any turns nothing is assigned.
    """
    if not diarization.exclusive:
        return transcript
    turns = _Turns(diarization.exclusive)
    speakers = iter(speakers_of_words(list(transcript.words), diarization))
    segments: list[Segment] = []
    for segment in transcript.segments:
        if segment.words:
            words = [dataclasses.replace(word, speaker=next(speakers)) for word in segment.words]
            segments += _cut(segment, words)
        else:
            segments.append(dataclasses.replace(segment, speaker=turns.at(segment.start, segment.end)))
    numbered = tuple(dataclasses.replace(segment, id=number) for number, segment in enumerate(segments))
    return dataclasses.replace(transcript, segments=numbered)


def speakers_of_words(words: Sequence[Word], diarization: Diarization) -> list[str]:
    """The speaker of each word, of a diarization that has any turns."""
    turns = _Turns(diarization.exclusive)
    speakers = [turns.at(word.start, max(word.end, word.start + 0.01)) for word in words]
    for first, end in _sentences(words):
        speakers[first:end] = _within_sentence(speakers[first:end])
    return speakers


def merge_channels(transcripts: Sequence[Transcript], names: Sequence[str]) -> Transcript:
    """The transcripts of the channels of one recording as one, each channel a speaker; segments by their start.

    Raises:
        ValueError: there are not as many names as transcripts, or none.
    """
    segments = []
    for transcript, name in zip(transcripts, names, strict=True):
        for segment in transcript.segments:
            words = tuple(dataclasses.replace(word, speaker=name) for word in segment.words)
            segments.append(dataclasses.replace(segment, words=words, speaker=name))
    segments.sort(key=lambda segment: (segment.start, segment.end))
    first = max(transcripts, key=lambda transcript: sum(len(segment.text) for segment in transcript.segments))
    return dataclasses.replace(
        first,
        segments=tuple(dataclasses.replace(segment, id=number) for number, segment in enumerate(segments)),
        duration=max(transcript.duration for transcript in transcripts),
    )


class _Turns:
    """Turns that do not overlap, to be asked for times."""

    def __init__(self, turns: Iterable[Turn]) -> None:
        self._turns = sorted(turns)
        self._ends = [turn.end for turn in self._turns]

    def at(self, start: float, end: float) -> str:
        """Who speaks for most of a time; where nobody does, whose turn is nearest."""
        first = min(bisect.bisect_right(self._ends, start), len(self._turns) - 1)
        seconds: dict[str, float] = {}
        for turn in itertools.islice(self._turns, first, None):
            if turn.start >= end:
                break
            seconds[turn.speaker] = seconds.get(turn.speaker, 0.0) + min(end, turn.end) - max(start, turn.start)
        if seconds and max(seconds.values()) > 0:
            return max(seconds, key=lambda speaker: seconds[speaker])
        around = self._turns[max(0, first - 1) : first + 1]
        return min(around, key=lambda turn: max(turn.start - end, start - turn.end)).speaker


def _sentences(words: Sequence[Word]) -> Iterable[tuple[int, int]]:
    """First word and the one after the last of each sentence."""
    first = 0
    for number, word in enumerate(words):
        ends = word.text.rstrip().rstrip(_CLOSING).endswith(_ENDINGS)
        last = number + 1 == len(words)
        if last or ends or words[number + 1].start - word.end > _PAUSE:
            yield first, number + 1
            first = number + 1


def _within_sentence(speakers: list[str]) -> list[str]:
    """Stray words at the edges go to the rest of the sentence, single ones in its middle to who is around them."""
    mended = list(speakers)
    for place in range(1, len(mended) - 1):
        if mended[place - 1] == mended[place + 1] != mended[place]:
            mended[place] = mended[place - 1]
    runs = [(speaker, len(list(group))) for speaker, group in itertools.groupby(mended)]
    most = min(_MOST_STRAY_WORDS, int(_STRAY_SHARE * len(mended)))
    if len(runs) > 1 and runs[0][1] <= most:
        runs[0] = (runs[1][0], runs[0][1])
    if len(runs) > 1 and runs[-1][1] <= most:
        runs[-1] = (runs[-2][0], runs[-1][1])
    return [speaker for speaker, count in runs for _ in range(count)]


def _cut(segment: Segment, words: Sequence[Word]) -> list[Segment]:
    """A segment as one for each run of words of a speaker; one that needs no cut keeps all it has."""
    runs = [tuple(group) for _, group in itertools.groupby(words, key=lambda word: word.speaker)]
    if len(runs) == 1:
        return [dataclasses.replace(segment, words=runs[0], speaker=words[0].speaker)]
    pieces = []
    for number, run in enumerate(runs):
        pieces.append(
            dataclasses.replace(
                segment,
                start=segment.start if number == 0 else run[0].start,
                end=segment.end if number == len(runs) - 1 else max(run[-1].end, run[0].start),
                text="".join(word.text for word in run),
                tokens=(),
                words=run,
                speaker=run[0].speaker,
            )
        )
    return pieces
