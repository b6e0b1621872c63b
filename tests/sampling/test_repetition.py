"""Penalties, DRY with its sequence breakers, and Mirostat."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference_samplers as slow
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.sampling import candidates as c
from edgellm.sampling import mirostat, repetition, truncation
from edgellm.sampling.candidates import Candidates

quick = settings(deadline=None, max_examples=200)
few_tokens = st.lists(st.integers(0, 4), max_size=40)


def made(logits: list[float]) -> Candidates:
    return c.from_logits(np.array(logits, np.float32))


def shares_of(candidates: Candidates, size: int) -> list[float]:
    result = np.zeros(size)
    result[candidates.ids] = c.probabilities(candidates)
    return result.tolist()


@quick
@given(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12),
    st.lists(st.integers(0, 15), max_size=20),
    st.floats(0.5, 3),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.booleans(),
)
def test_penalties(
    logits: list[float], recent: list[int], repeat: float, frequency: float, presence: float, sort_first: bool
) -> None:
    before = truncation.top_k(made(logits), 9) if sort_first else made(logits)
    held = dict(zip(before.ids.tolist(), before.logits.tolist(), strict=True))
    after = repetition.penalties(before, np.array(recent, np.int64), repeat, frequency, presence)
    expected = dict(slow.penalties(list(held.items()), recent, repeat, frequency, presence))
    assert dict(zip(after.ids.tolist(), after.logits.tolist(), strict=True)) == pytest.approx(
        expected, rel=1e-5, abs=1e-5
    )
    assert dict(zip(before.ids.tolist(), before.logits.tolist(), strict=True)) == held  # the input is left alone


def test_known_penalties() -> None:
    equal = made([math.log(0.2)] * 5)
    after = repetition.penalties(equal, np.array([0, 1, 2, 0, 0]), 1.0, 5.0, 5.0)
    rest = math.exp(0)
    weights = [math.exp(-20), math.exp(-10), math.exp(-10), rest, rest]
    assert shares_of(after, 5) == pytest.approx([w / sum(weights) for w in weights], abs=1e-6)


@quick
@given(few_tokens, st.integers(0, 12), st.integers(0, 12))
def test_continuing_tokens(history: list[int], shortest: int, longest: int) -> None:
    found = repetition.continuing_tokens(np.array(history, np.int64), shortest, longest)
    expected = {token: n for token, n in slow.repeats(history, longest).items() if n >= shortest}
    assert found == expected


def dried(
    size: int, history: list[int], multiplier: float, base: float, allowed: int, since: int | None = None
) -> list[float]:
    after = repetition.dry(
        made([0.0] * size),
        np.array(history, np.int64),
        len(history) if since is None else since,
        multiplier,
        base,
        allowed,
        lambda token: False,
    )
    return after.logits.tolist()


def test_dry_known_values() -> None:
    # "0 1" is the end of the text and was followed by 2 before: a repeat of two tokens, none over what is allowed.
    assert dried(4, [0, 1, 2, 0, 1], 1.0, 1.1, 2) == pytest.approx([0, 0, -1.0, 0])
    # One more repeated token costs one more factor.
    assert dried(4, [3, 0, 1, 2, 3, 0, 1], 1.0, 1.1, 2) == pytest.approx([0, 0, -1.1, 0])
    assert dried(4, [3, 0, 1, 2, 3, 0, 1], 2.0, 1.5, 1) == pytest.approx([0, 0, -2.0 * 1.5**2, 0])
    # Too short a text, or too short a repeat.
    assert dried(4, [0, 1], 1.0, 1.1, 2) == [0, 0, 0, 0]
    assert dried(5, [0, 1, 2, 3, 4, 0, 1], 1.0, 1.1, 4) == [0, 0, 0, 0, 0]
    # The worked example of llama.cpp's source: a b c c b c y, then a b c again.
    a, b, y, cc = 0, 1, 2, 3
    text = [a, b, cc, cc, b, cc, y, a, b, cc]
    assert repetition.continuing_tokens(np.array(text), 1, 10) == {cc: 3, b: 1, y: 2}


def test_dry_stops_at_a_breaker() -> None:
    text = [0, 1, 3, 4, 0, 1]
    assert dried(5, text, 1.0, 1.1, 2)[3] == pytest.approx(-1.0)
    assert dried(5, text, 1.0, 1.1, 2, since=2)[3] == pytest.approx(-1.0)
    assert dried(5, text, 1.0, 1.1, 2, since=1) == [0, 0, 0, 0, 0]


def test_dry_does_not_overflow() -> None:
    logits = dried(8, [7] * 3000, 5.0, 100.0, 1)
    assert math.isfinite(logits[7]) and logits[7] < -1e30
    assert math.isfinite(dried(8, [7] * 3000, 5.0, 1.0, 1)[7])


def test_dry_spares_breakers() -> None:
    history = np.array([0, 1, 2, 0, 1])
    after = repetition.dry(made([0.0] * 4), history, 5, 1.0, 1.1, 2, lambda token: token == 2)
    assert after.logits.tolist() == [0, 0, 0, 0]


WORDS = {
    0: b"He",
    1: b"llo",
    2: b"\n",
    3: b" wor",
    4: b"ld: ",
    5: b"</",
    6: b"end",
    7: b">",
    8: b"ends> and",
    9: b"\xe2\x80",
}


@quick
@given(st.lists(st.integers(0, 9), max_size=30))
def test_breakers_are_found_across_tokens(tokens: list[int]) -> None:
    breakers = ("\n", ": ", "</end>", "<")
    for chosen in (breakers[:1], breakers[1:3], breakers):
        watch = repetition.SequenceBreakers(chosen, WORDS.__getitem__)
        for token in tokens:
            watch.push(token)
        # Directly: the token that holds the last byte of the last breaker.
        text = b"".join(WORDS[token] for token in tokens)
        end = max((text.rfind(b.encode()) + len(b) for b in chosen if b.encode() in text), default=0)
        after = 0
        while after < len(tokens) and sum(len(WORDS[token]) for token in tokens[: len(tokens) - after - 1]) >= end:
            after += 1
        assert watch.tokens_since == after


def test_breakers_within_tokens() -> None:
    watch = repetition.SequenceBreakers(("end", "\n"), WORDS.__getitem__)
    assert [token for token in WORDS if watch.within(token)] == [2, 6, 8]
    unseen = repetition.SequenceBreakers(("end",), None)
    unseen.push(6)
    assert unseen.tokens_since == 1 and not unseen.within(6)


@quick
@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=200), st.floats(-5, 20))
def test_mirostat_2_keeps_what_surprises_at_most_mu(logits: list[float], mu: float) -> None:
    before = made(logits)
    surprise = -np.log2(np.maximum(c.probabilities(before), 1e-300))
    kept = set(mirostat.mirostat_2(before, mu).ids.tolist())
    sure = set(np.flatnonzero(surprise < mu - 1e-6).tolist()) | {int(np.argmax(before.logits))}
    perhaps = set(np.flatnonzero(surprise < mu + 1e-6).tolist()) | {int(np.argmax(before.logits))}
    assert sure <= kept <= perhaps


@quick
@given(st.floats(0.4, 3), st.floats(0.5, 12), st.integers(200, 5000))
def test_mirostat_1_on_zipfs_law(exponent: float, mu: float, size: int) -> None:
    # For logits of exact Zipf form the estimate is exact, and k has a closed form.
    before = made((-exponent * np.log(np.arange(1, size + 1))).tolist())
    excess = exponent - 1
    if abs(excess) < 1e-3:
        return
    k = (excess * 2**mu / (1 - size**-excess)) ** (1 / exponent)
    kept = mirostat.mirostat_1(before, mu, size).ids.size
    assert abs(kept - min(max(int(k), 1), size)) <= 1 + 1e-3 * k


def test_mirostat_1_edges() -> None:
    assert mirostat.mirostat_1(made([1.0]), 10, 1).ids.tolist() == [0]
    assert mirostat.mirostat_1(made([1.0] * 50), 10, 50).ids.size == 50
    assert mirostat.mirostat_1(made([0.0, -1e30, -2e30]), 10, 3).ids.tolist() == [0]
    harmonic = made((-np.log(np.arange(1, 101))).tolist())  # s = 1, where the formula is 0 / 0
    assert mirostat.mirostat_1(harmonic, 5.0, 100).ids.size == int(2**5 / math.log(100))


def test_mu_moves_towards_the_target() -> None:
    assert mirostat.updated_mu(10.0, 0.5, 5.0, 0.1) == pytest.approx(10.0 - 0.1 * (1.0 - 5.0))
    assert mirostat.updated_mu(10.0, 1.0, 5.0, 0.1) == pytest.approx(10.5)
