"""Samplers that look back: penalties on tokens seen before, and DRY."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgellm.sampling.candidates import Candidates, Ids, by_id

Values = NDArray[np.float64]

_LOG_LARGEST_FLOAT32 = math.log(float(np.finfo(np.float32).max))
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)

# Repeats are told apart up to this length. Any longer one is penalised like one of this length, which bounds the work
# on a text that repeats a single token for ever.
_LONGEST_REPEAT = 1024


def _changed(candidates: Candidates, ids: Ids, new_logit: Callable[[Values, Ids], Values]) -> Candidates:
    """Candidates in which those of ``ids`` (sorted, unique) that are present have ``new_logit(old, which)``."""
    candidates = by_id(candidates)
    places = np.searchsorted(candidates.ids, ids)
    present = places < candidates.ids.size
    present[present] = candidates.ids[places[present]] == ids[present]
    if not present.any():
        return candidates
    places = places[present]
    logits = candidates.logits.copy()
    changed = new_logit(logits[places].astype(np.float64), np.flatnonzero(present))
    logits[places] = np.clip(changed, -_LARGEST_FLOAT32, _LARGEST_FLOAT32)
    return candidates._replace(logits=logits)


def penalties(candidates: Candidates, recent: Ids, repeat: float, frequency: float, presence: float) -> Candidates:
    """Make tokens that occur in ``recent`` less likely.

    A positive logit is divided by ``repeat``, a negative one multiplied by it; then ``frequency`` times the number of
    occurrences and ``presence`` (once) are subtracted.

    Args:
        recent: ids of the last tokens, shape (n,).
        repeat: > 0, 1 = off.
        frequency: 0 = off.
        presence: 0 = off.

    Source: Keskar et al., "CTRL", 2019, https://arxiv.org/abs/1909.05858 (repeat; the rule for negative logits is
    llama.cpp's); OpenAI's API reference (frequency and presence).
    """
    if not recent.size:
        return candidates
    ids, counts = np.unique(recent, return_counts=True)

    def new_logit(old: Values, which: Ids) -> Values:
        scaled: Values = np.where(old <= 0, old * repeat, old / repeat)
        return scaled - counts[which] * frequency - presence

    return _changed(candidates, ids, new_logit)


def continuing_tokens(history: Ids, shortest: int, longest: int) -> dict[int, int]:
    """Tokens that would continue a repetition, and how long that repetition already is.

    For every earlier place whose preceding tokens equal the last tokens of ``history``, the token at that place would
    continue a repeat. Per token the longest such repeat counts.

    Args:
        history: token ids, oldest first, shape (n,).
        shortest: shorter repeats are not reported.
        longest: longer repeats are reported with this length.

    Returns:
        token id -> tokens repeated so far, from ``shortest`` to ``longest``.
    """
    lengths = np.zeros(max(history.size - 1, 0), np.int64)
    # `ends` holds the places e < n - 1 where history[e - length + 1 .. e] equals the last `length` tokens.
    ends = np.arange(lengths.size)
    for length in range(longest if ends.size else 0):
        ends = ends[ends >= length]
        ends = ends[history[ends - length] == history[history.size - 1 - length]]
        if not ends.size:
            break
        lengths[ends] = length + 1
    reported = np.flatnonzero(lengths >= shortest)
    # Shortest first, so that the longest repeat of a token has the last word.
    reported = reported[np.argsort(lengths[reported], kind="stable")]
    return dict(zip(history[reported + 1].tolist(), lengths[reported].tolist(), strict=True))


def dry(
    candidates: Candidates,
    history: Ids,
    since_breaker: int,
    multiplier: float,
    base: float,
    allowed_length: int,
    is_breaker: Callable[[int], bool],
) -> Candidates:
    """Don't Repeat Yourself: make tokens less likely that would continue a repetition of earlier text.

    A token that would lengthen a repeat of n tokens loses multiplier * base ** (n - allowed_length), for n of at least
    ``allowed_length``. No repeat is followed back over a sequence breaker, and breakers themselves are not penalised.

    Args:
        history: ids of the last tokens, oldest first, shape (n,).
        since_breaker: how many tokens at the end of ``history`` follow the last sequence breaker.
        multiplier: 0 = off.
        base: under 1 = off.
        allowed_length: repeats shorter than this are free.
        is_breaker: whether a token's text holds a whole sequence breaker.

    Source: P. E. Weidmann, https://github.com/oobabooga/text-generation-webui/pull/5677, as pi6am put it into
    KoboldCpp (https://github.com/LostRuins/koboldcpp/pull/982) and llama.cpp took it over.
    """
    longest = min(history.size, since_breaker)
    if multiplier == 0.0 or base < 1.0 or history.size <= allowed_length or longest < allowed_length:
        return candidates
    # Beyond this exponent the penalty would overflow float32; llama.cpp stops there too.
    largest_exponent = int(_LOG_LARGEST_FLOAT32 / math.log(base)) if base > 1.000001 else _LONGEST_REPEAT
    longest = min(longest, allowed_length + largest_exponent, max(_LONGEST_REPEAT, allowed_length))
    repeats = continuing_tokens(history, allowed_length, longest)
    ids = np.array(sorted(token for token in repeats if not is_breaker(token)), np.int64)
    penalty = np.array([multiplier * base ** (repeats[token] - allowed_length) for token in ids.tolist()])
    return _changed(candidates, ids, lambda old, which: old - penalty[which])


class SequenceBreakers:
    """Watches the text for strings that end a repetition, such as a line break or a speaker's name.

    Breakers are looked for in the bytes of the text, so one that is spread over several tokens is found as well.

    Args:
        breakers: the strings, none of them empty.
        token_text: the bytes a token stands for; None: no breaker is ever seen.
    """

    def __init__(self, breakers: tuple[str, ...], token_text: Callable[[int], bytes] | None) -> None:
        self._breakers = tuple(breaker.encode() for breaker in breakers) if token_text is not None else ()
        self._token_text = token_text
        self._overlap = max((len(breaker) for breaker in self._breakers), default=1) - 1
        self._tail = b""
        self._known: dict[int, bool] = {}
        self.tokens_since = 0

    def push(self, token: int) -> None:
        """Take note of the next token of the text; ``tokens_since`` counts the tokens after the last breaker."""
        self.tokens_since += 1
        if self._token_text is None or not self._breakers:
            return
        before = len(self._tail)
        text = self._tail + self._token_text(token)
        # Only a breaker that ends inside this token is new.
        if any(text.rfind(breaker) + len(breaker) > before for breaker in self._breakers if breaker in text):
            self.tokens_since = 0
        self._tail = text[-self._overlap :] if self._overlap else b""

    def within(self, token: int) -> bool:
        """Whether the token's own text holds a whole breaker."""
        if self._token_text is None or not self._breakers:
            return False
        if token not in self._known:
            text = self._token_text(token)
            self._known[token] = any(breaker in text for breaker in self._breakers)
        return self._known[token]
