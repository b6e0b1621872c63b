"""What may come next in a transcript: the rules of timestamps, and guards against repetition (openai-whisper)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgellm.platforms.batch import Float32Array
from edgellm.speech.settings import TranscriptionSettings
from edgellm.speech.tokens import SECONDS_PER_TIMESTAMP, WhisperTokens

ANYWHERE, AT_FIRST, NOT_THE_END = 0, 1, 2
"""Rows of the bias: what is suppressed everywhere, at the beginning of a window, and where it must go on."""


def token_bias(tokens: WhisperTokens, settings: TranscriptionSettings) -> Float32Array:
    """(3, vocabulary): minus infinity for tokens that are never chosen, not at the beginning of a window, not yet."""
    bias = np.zeros((3, tokens.size), np.float32)
    bias[NOT_THE_END, tokens.end] = -np.inf
    bias[:, tokens.never_chosen(settings.suppress_tokens)] = -np.inf
    if settings.suppress_blank:
        bias[AT_FIRST, [*tokens.encode(" "), tokens.end]] = -np.inf
    return bias


class TimestampRules:
    """The rules of a row (see `edgellm.platforms.choosing`) from what a hypothesis has said so far.

    Timestamps come in pairs, but for the last; they do not fall; a window begins with one, not later than
    ``max_initial_timestamp``; and where timestamps together are likelier than any text, one is chosen.
    """

    def __init__(self, tokens: WhisperTokens, settings: TranscriptionSettings) -> None:
        self._boundary, self._text_end, self._size = tokens.timestamps, tokens.end, tokens.size
        self._timestamps = not settings.without_timestamps
        latest = settings.max_initial_timestamp
        last = None if latest is None else self._boundary + round(latest / SECONDS_PER_TIMESTAMP)
        self._first_end = self._size if last is None else min(last + 1, self._size)

    def row(self, said: Sequence[int], last_timestamp: int, goes_on: int = 0) -> tuple[int, ...]:
        """RULES numbers.

        Args:
            said: the tokens since the prompt.
            last_timestamp: the last timestamp among them, or -1.
            goes_on: the timestamp up to which there is speech. A segment that begins before it is not left empty, as
                Whisper leaves the last one of 30 s, which it takes to be cut off.
        """
        boundary = self._boundary
        kind = ANYWHERE if said else AT_FIRST
        if not self._timestamps:
            return kind, 0, boundary, boundary, 0, 0, 0, 0
        if not said:
            return kind, boundary, boundary, self._first_end, 1, 0, 0, 0
        first_text, first_timestamp = 0, boundary
        was_timestamp = said[-1] >= boundary
        before = len(said) < 2 or said[-2] >= boundary
        if last_timestamp >= 0:
            first_timestamp = last_timestamp if was_timestamp and not before else last_timestamp + 1
        if was_timestamp:
            if before:
                first_timestamp = self._size
                kind = NOT_THE_END if last_timestamp < goes_on else kind
            else:
                first_text = self._text_end
        return kind, first_text, min(first_timestamp, self._size), self._size, 1, 0, 0, 0


def guard_against_repetition(logits: Float32Array, said: Sequence[int], settings: TranscriptionSettings) -> None:
    """Make repetitions less likely in one row of logits (vocabulary,), in place.

    ``repetition_penalty`` (Keskar et al. 2019) divides positive logits of used tokens and multiplies negative ones;
    ``no_repeat_ngram_size`` rules out what would complete a sequence that has been there.
    """
    if not said:
        return
    if settings.repetition_penalty != 1:
        used = np.unique(np.asarray(said))
        values = logits[used]
        logits[used] = np.where(values > 0, values / settings.repetition_penalty, values * settings.repetition_penalty)
    size = settings.no_repeat_ngram_size
    if 0 < size <= len(said):
        tail = tuple(said[len(said) - size + 1 :])
        for start in range(len(said) - size + 1):
            if tuple(said[start : start + size - 1]) == tail:
                logits[said[start + size - 1]] = -np.inf
