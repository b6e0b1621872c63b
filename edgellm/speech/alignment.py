"""When each word was said, from how the decoder attends to the sound (openai-whisper, ``timing.py``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgellm.platforms.alignment import normalized
from edgellm.platforms.batch import Batch, SpeechExecutor
from edgellm.speech.sequences import BlockPool, tables
from edgellm.speech.tokens import WhisperTokens

ROWS_PER_SECOND = 50
_SENTENCE_ENDS = frozenset(".。!！?？")
_LONGEST_MEDIAN = 0.7
_PREFERENCE = 0.5
"""Seconds by which a word may stick out of its segment before the segment's times are preferred."""


@dataclass(frozen=True)
class TimedWord:
    """A word within a window: its times in seconds, its tokens, and the mean probability of these."""

    text: str
    tokens: tuple[int, ...]
    start: float
    end: float
    probability: float


class Aligner:
    """Finds the times of words in windows that are encoded.

    Args:
        executor: of the model.
        pool: blocks of its cache.
        tokens: its vocabulary.
        heads: (layer, head) of the attention that follows the speech.
    """

    def __init__(
        self, executor: SpeechExecutor, pool: BlockPool, tokens: WhisperTokens, heads: tuple[tuple[int, int], ...]
    ) -> None:
        self._executor, self._pool, self._tokens, self._heads = executor, pool, tokens, heads

    def align(
        self,
        source: int,
        start: Sequence[int],
        text: Sequence[int],
        log_probabilities: Sequence[float],
        seconds: float,
        language: str,
    ) -> list[TimedWord]:
        """The words of a window.

        Args:
            source: number of the window.
            start: what a transcript without timestamps begins with.
            text: tokens, without timestamps.
            log_probabilities: of each.
            seconds: length of its sound.
            language: how text is cut into words.
        """
        words = self._tokens.split_to_words(text, language)
        if not words:
            return []
        times = self._token_times(source, start, text, seconds)
        found = []
        place = 0
        for word, part in words:
            end = place + len(part)
            probability = float(np.mean(np.exp(log_probabilities[place:end])))
            found.append(TimedWord(word, tuple(part), times[place], max(times[place], times[end]), probability))
            place = end
        return found

    def _token_times(self, source: int, start: Sequence[int], text: Sequence[int], seconds: float) -> list[float]:
        """When each token begins, and at the end when the last one ends."""
        rows = max(1, min(math.ceil(seconds * ROWS_PER_SECOND), self._executor.graph.source_length))
        ids = [*start, *text, self._tokens.end][: self._executor.max_rows]
        blocks: list[int] = []
        try:
            self._pool.writable(blocks, len(ids) - 1)
            zeros = np.zeros(len(ids), np.int32)
            batch = Batch(
                np.array(ids, np.int32), np.arange(len(ids), dtype=np.int32), zeros, tables([blocks]), zeros[:0],
                sources=zeros + np.int32(source),
            )  # fmt: skip
            weights = self._executor.alignment(batch, self._heads, rows)
        finally:
            self._pool.give(blocks)
        # A row attends to the sound of the token after it.
        gains = self._executor.smooth(normalized(weights))[len(start) - 1 : -1]
        tokens, frames = self._executor.warp(gains)
        first = np.flatnonzero(np.diff(tokens, prepend=-1))
        begins = (frames[first] / ROWS_PER_SECOND).tolist()
        ends = rows / ROWS_PER_SECOND
        return [min(time, seconds) for time in [*begins, *[ends] * (len(text) + 1 - len(begins))]]


def merge_punctuation(words: Sequence[TimedWord], prepended: str, appended: str) -> list[TimedWord]:
    """Signs joined to the word after them (``prepended``) or before them (``appended``)."""
    merged: list[TimedWord] = []
    for word in reversed(words):
        if merged and word.text.startswith(" ") and word.text.strip() in prepended and word.text.strip():
            merged[-1] = _joined(word, merged[-1], merged[-1])
        else:
            merged.append(word)
    result: list[TimedWord] = []
    for word in reversed(merged):
        if result and not result[-1].text.endswith(" ") and word.text in appended:
            result[-1] = _joined(result[-1], word, result[-1])
        else:
            result.append(word)
    return result


def _joined(first: TimedWord, second: TimedWord, timed: TimedWord) -> TimedWord:
    return replace(timed, text=first.text + second.text, tokens=first.tokens + second.tokens)


def shorten(words: Sequence[TimedWord]) -> tuple[list[TimedWord], float]:
    """Words at the ends of sentences no longer than twice the median, since they take in the pause beside them; and the
    median, of at most 0.7 s."""
    lengths = [word.end - word.start for word in words if word.end > word.start]
    median = min(_LONGEST_MEDIAN, float(np.median(lengths))) if lengths else 0.0
    longest = 2 * median
    shortened = list(words[:1])
    for word in words[1:]:
        if longest and word.end - word.start > longest:
            if word.text.strip() in _SENTENCE_ENDS:
                word = replace(word, end=word.start + longest)
            elif shortened[-1].text.strip()[-1:] in _SENTENCE_ENDS:
                word = replace(word, start=word.end - longest)
        shortened.append(word)
    return shortened, median


def fit_to_segment(
    words: list[TimedWord], start: float, end: float, spoken_until: float, median: float
) -> tuple[list[TimedWord], float, float]:
    """Long words at a segment's ends made shorter, and the segment's times made those of its words.

    Args:
        words: of the segment; one at least.
        start, end: of the segment.
        spoken_until: where the segment before ended.
        median: length of a word.

    Returns:
        The words, and the segment's start and end.
    """
    longest = 2 * median
    first = words[0]
    if first.end - spoken_until > 4 * median and (
        first.end - first.start > longest or (len(words) > 1 and words[1].end - first.start > 2 * longest)
    ):
        if len(words) > 1 and words[1].end - words[1].start > longest:
            boundary = max(words[1].end / 2, words[1].end - longest)
            first = replace(first, end=boundary)
            words[1] = replace(words[1], start=boundary)
        first = replace(first, start=max(0.0, first.start, first.end - longest))
    if start < first.end and start - _PREFERENCE > first.start:
        first = replace(first, start=max(0.0, min(first.end - median, start)))
    words[0], start = first, first.start
    last = words[-1]
    if end > last.start and end + _PREFERENCE < last.end:
        last = replace(last, end=max(last.start + median, end))
    words[-1], end = last, last.end
    return words, start, max(start, end)
