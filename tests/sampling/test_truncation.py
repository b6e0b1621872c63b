"""Each truncating sampler against a slow one, its closed form, and the values of the method's own definition."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import reference_samplers as slow
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.sampling import candidates as c
from edgellm.sampling import truncation
from edgellm.sampling.candidates import Candidates

quick = settings(deadline=None, max_examples=150)

# Steps of 1/8 give ties now and then; ties are where orders differ.
some_logits = st.lists(st.integers(-160, 160).map(lambda n: n / 8), min_size=1, max_size=60)
probability = st.floats(0.01, 0.99)
small_count = st.integers(0, 8)


def made(logits: list[float]) -> Candidates:
    return c.from_logits(np.array(logits, np.float32))


def from_shares(*shares: float) -> Candidates:
    return made([math.log(share) for share in shares])


def pairs(candidates: Candidates) -> slow.Pairs:
    return list(zip(candidates.ids.tolist(), candidates.logits.tolist(), strict=True))


def ids(candidates: Candidates) -> set[int]:
    return set(candidates.ids.tolist())


def check_invariants(before: Candidates, after: Candidates) -> None:
    """What every sampler must leave true."""
    assert after.ids.size == after.logits.size >= 1
    assert ids(after) <= ids(before) and len(ids(after)) == after.ids.size
    assert np.isfinite(after.logits).all()
    expected = slow.ranked(pairs(after)) if after.ordered else sorted(pairs(after))
    assert pairs(after) == expected
    assert math.isclose(float(c.probabilities(after).sum()), 1.0, rel_tol=1e-9)


def nearly_tied(logits: list[float], p: float) -> bool:
    """Whether rounding could decide how many tokens sum to p."""
    sums = np.cumsum(slow.softmax(slow.ranked(list(enumerate(logits)))))
    return bool(np.abs(sums - p).min() < 1e-6)


@quick
@given(some_logits, st.integers(1, 70))
def test_top_k_keeps_the_first_k_of_the_sorted_list(logits: list[float], k: int) -> None:
    kept = truncation.top_k(made(logits), k)
    assert pairs(kept) == slow.ranked(list(enumerate(logits)))[:k]
    check_invariants(made(logits), kept)


@pytest.mark.parametrize("size", [63, 64, 65, 1000, 5000])
@pytest.mark.parametrize("k", [1, 2, 40, 70, 300, 4999, 6000])
@pytest.mark.parametrize("levels", [2, 50, 10**6])
def test_largest_equals_a_full_sort(size: int, k: int, levels: int) -> None:
    logits = np.random.default_rng(size * k).integers(0, levels, size).astype(np.float32) / 16
    expected = np.lexsort((np.arange(size), -logits))[:k]
    assert c.largest(c.from_logits(logits), k).ids.tolist() == expected.tolist()


@quick
@given(some_logits, probability, small_count)
def test_top_p(logits: list[float], p: float, min_keep: int) -> None:
    kept = truncation.top_p(made(logits), p, min_keep)
    check_invariants(made(logits), kept)
    if not nearly_tied(logits, p):
        assert ids(kept) == {id for id, _ in slow.top_p(list(enumerate(logits)), p, min_keep)}


@pytest.mark.parametrize("p", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("levels", [40, 10**6])
def test_top_p_with_a_wide_nucleus(p: float, levels: int) -> None:
    logits = (np.random.default_rng(1).integers(0, levels, 20000) / levels * 3).astype(np.float32)
    kept = truncation.top_p(c.from_logits(logits), p)
    expected = slow.top_p(list(enumerate(logits.tolist())), p, 0)
    assert kept.ids.size > 256
    # Both sum thousands of rounded numbers, so the very last token may differ.
    assert len(ids(kept) ^ {id for id, _ in expected}) <= 1
    check_invariants(c.from_logits(logits), kept)


def test_top_p_with_a_wide_nucleus_and_a_far_tail() -> None:
    logits = np.concatenate([np.zeros(1000), np.full(1000, -80.0)]).astype(np.float32)
    assert truncation.top_p(c.from_logits(logits), 0.9999).ids.tolist() == list(range(1000))


@quick
@given(some_logits, probability, small_count)
def test_min_p(logits: list[float], p: float, min_keep: int) -> None:
    kept = truncation.min_p(made(logits), p, min_keep)
    check_invariants(made(logits), kept)
    margin = [abs(logit - max(logits) - math.log(p)) for logit in logits]
    if min(margin) > 1e-5:
        assert ids(kept) == {id for id, _ in slow.min_p(list(enumerate(logits)), p, min_keep)}


@quick
@given(st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=40, unique=True), probability, small_count)
def test_typical(logits: list[float], p: float, min_keep: int) -> None:
    kept = truncation.typical(made(logits), p, min_keep)
    check_invariants(made(logits), kept)
    expected = slow.typical(list(enumerate(logits)), p, min_keep)
    # Equal distances and sums near p are decided by rounding: then only the count must be near.
    assert abs(kept.ids.size - len(expected)) <= 1
    shares = dict(enumerate(slow.softmax(list(enumerate(logits)))))
    if kept.ids.size > min_keep:
        assert sum(shares[id] for id in ids(kept)) > p - 1e-5


@quick
@given(some_logits, st.floats(0.1, 4))
def test_top_n_sigma(logits: list[float], n: float) -> None:
    kept = truncation.top_n_sigma(made(logits), n)
    check_invariants(made(logits), kept)
    floor = max(logits) - n * float(np.std(logits))
    if min(abs(logit - floor) for logit in logits) > 1e-5:
        assert ids(kept) == {id for id, _ in slow.top_n_sigma(list(enumerate(logits)), n)}


@quick
@given(some_logits, st.floats(0.01, 0.5), small_count)
def test_xtc(logits: list[float], threshold: float, min_keep: int) -> None:
    kept = truncation.xtc(made(logits), threshold, min_keep)
    check_invariants(made(logits), kept)
    shares = slow.softmax(list(enumerate(logits)))
    if min(abs(share - threshold) for share in shares) > 1e-6:
        assert ids(kept) == {id for id, _ in slow.xtc(list(enumerate(logits)), threshold, min_keep)}


@quick
@given(some_logits, st.floats(1e-3, 10))
def test_temperature_scales_the_log_odds(logits: list[float], value: float) -> None:
    cooled = truncation.temperature(made(logits), value)
    check_invariants(made(logits), cooled)
    expected = (np.array(logits) - max(logits)) / value
    np.testing.assert_allclose(cooled.logits, expected, rtol=1e-5, atol=1e-6)


@quick
@given(some_logits, st.floats(0.1, 2), st.floats(0.01, 3), st.floats(0.1, 4))
def test_dynamic_temperature_stays_in_its_range(logits: list[float], value: float, spread: float, power: float) -> None:
    before = made(logits)
    after = truncation.dynamic_temperature(before, value, spread, power)
    check_invariants(before, after)
    drops = float(before.logits.max() - before.logits.min())
    if after.ids.size == before.ids.size > 1 and drops > 0:
        applied = drops / float(after.logits.max() - after.logits.min())
        low, high = max(0.0, value - spread), value + spread
        assert low * 0.999 - 1e-6 <= applied <= high * 1.001


def test_dynamic_temperature_closed_forms() -> None:
    # Equally likely tokens: all the entropy there can be, so the highest temperature.
    two = truncation.dynamic_temperature(made([1.0, 1.0, 1.0]), 1.0, 0.5, 1.0)
    assert c.probabilities(two).tolist() == pytest.approx([1 / 3] * 3)
    # Shares 3/4 and 1/4: entropy over ln 2 is 0.8112781, so t = 0.5 + 1.0 * 0.8112781.
    one = truncation.dynamic_temperature(from_shares(0.75, 0.25), 1.0, 0.5, 1.0)
    assert float(one.logits[0] - one.logits[1]) == pytest.approx(math.log(3) / (0.5 + 0.8112781), rel=1e-6)
    squared = truncation.dynamic_temperature(from_shares(0.75, 0.25), 1.0, 0.5, 2.0)
    assert float(squared.logits[0] - squared.logits[1]) == pytest.approx(math.log(3) / (0.5 + 0.8112781**2), rel=1e-6)


# Hand-made distributions with the outcome the definitions demand.
@pytest.mark.parametrize(
    ("sampler", "shares", "kept"),
    [
        (lambda x: truncation.top_k(x, 3), (0.1, 0.2, 0.3, 0.4), {1, 2, 3}),
        (lambda x: truncation.top_p(x, 0.0), (0.1, 0.2, 0.3, 0.4), {3}),
        (lambda x: truncation.top_p(x, 0.65), (0.1, 0.2, 0.3, 0.4), {2, 3}),
        (lambda x: truncation.top_p(x, 0.75), (0.1, 0.2, 0.3, 0.4), {1, 2, 3}),
        (lambda x: truncation.min_p(x, 0.24), (0.1, 0.2, 0.3, 0.4), {0, 1, 2, 3}),
        (lambda x: truncation.min_p(x, 0.26), (0.1, 0.2, 0.3, 0.4), {1, 2, 3}),
        (lambda x: truncation.min_p(x, 0.76), (0.1, 0.2, 0.3, 0.4), {3}),
        (lambda x: truncation.min_p(x, 1.0), (0.1, 0.2, 0.3, 0.4), {3}),
        (lambda x: truncation.xtc(x, 0.09), (0.4, 0.3, 0.2, 0.1), {3}),
        (lambda x: truncation.xtc(x, 0.19), (0.4, 0.3, 0.2, 0.1), {2, 3}),
        (lambda x: truncation.xtc(x, 0.29), (0.4, 0.3, 0.2, 0.1), {1, 2, 3}),
        (lambda x: truncation.xtc(x, 0.39), (0.4, 0.3, 0.2, 0.1), {0, 1, 2, 3}),
        (lambda x: truncation.xtc(x, 0.09, 2), (0.4, 0.3, 0.2, 0.1), {0, 1, 2, 3}),
        (lambda x: truncation.typical(x, 0.5), (0.97, 0.01, 0.01, 0.01), {0}),
        (lambda x: truncation.typical(x, 0.5), (0.4, 0.2, 0.2, 0.2), {1, 2, 3}),
        (lambda x: truncation.top_n_sigma(x, 1.0), (0.1, 0.2, 0.3, 0.4), {2, 3}),
        (lambda x: truncation.top_n_sigma(x, 3.0), (0.1, 0.2, 0.3, 0.4), {0, 1, 2, 3}),
    ],
)
def test_known_outcomes(sampler: Callable[[Candidates], Candidates], shares: tuple[float, ...], kept: set[int]) -> None:
    assert ids(sampler(from_shares(*shares))) == kept


@quick
@given(some_logits)
def test_settings_that_switch_off(logits: list[float]) -> None:
    before = made(logits)
    for after in (
        truncation.top_k(before, 0),
        truncation.top_k(before, -1),
        truncation.top_p(before, 1.0),
        truncation.min_p(before, 0.0),
        truncation.typical(before, 1.0),
        truncation.top_n_sigma(before, 0.0),
        truncation.top_n_sigma(before, -1.0),
        truncation.xtc(before, 0.51),
    ):
        assert after is before
    assert ids(truncation.top_k(before, len(logits))) == ids(before)
    np.testing.assert_allclose(c.probabilities(truncation.temperature(before, 1.0)), c.probabilities(before), rtol=1e-6)


def test_order_of_ids_survives_a_chain() -> None:
    before = made(np.random.default_rng(0).normal(size=500).tolist())
    chain = truncation.min_p(truncation.typical(truncation.top_p(before, 0.9), 0.8), 0.05)
    check_invariants(before, chain)


def test_odd_logits() -> None:
    odd = c.from_logits(np.array([np.nan, 1.0, -np.inf, 2.0], np.float32))
    assert pairs(odd) == [(1, 1.0), (3, 2.0)]
    endless = c.from_logits(np.array([np.inf, 1.0, np.nan, np.inf], np.float32))
    assert endless.ids.tolist() == [0, 3] and c.probabilities(endless).tolist() == [0.5, 0.5]
