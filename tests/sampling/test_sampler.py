"""The whole chain: distribution, determinism, greedy, biases, windows and odd input."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import EdgeLLMError, InvalidSettingError
from edgellm.sampling import Sampler, Sampling, log_softmax, logprob_of, top_logprobs

OFF = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
VOCABULARY = 300
quick = settings(deadline=None, max_examples=100)


def random_logits(seed: int = 0, size: int = VOCABULARY) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=size) * 3).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits.astype(np.float64) - logits.max())
    return shares / shares.sum()


def drawn(sampling: Sampling, logits: np.ndarray, count: int) -> list[int]:
    sampler = Sampler(sampling, logits.size)
    tokens = []
    for _ in range(count):
        tokens.append(sampler.sample(logits))
        sampler.accept(tokens[-1])
    return tokens


def test_tokens_come_as_often_as_their_probabilities_say() -> None:
    logits = np.log(np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04], np.float32))
    counts = np.bincount(drawn(dataclasses.replace(OFF, seed=7), logits, 20000), minlength=6)
    expected = 20000 * softmax(logits)
    # Chi-square with 5 degrees of freedom exceeds 20.5 once in a thousand; the seed is fixed.
    assert float(((counts - expected) ** 2 / expected).sum()) < 20.5


def test_temperature_changes_how_often_tokens_come() -> None:
    logits = random_logits(3, 8)
    counts = np.bincount(drawn(dataclasses.replace(OFF, seed=1, temperature=2.5), logits, 20000), minlength=8)
    expected = 20000 * softmax(logits / 2.5)
    assert float(((counts - expected) ** 2 / expected).sum()) < 24.3  # 7 degrees of freedom, one in a thousand


def test_the_same_seed_gives_the_same_text() -> None:
    every = dataclasses.replace(OFF, seed=5, xtc_probability=0.5, xtc_threshold=0.02, repeat_penalty=1.2)
    logits = random_logits()
    assert drawn(every, logits, 200) == drawn(every, logits, 200)
    assert drawn(every, logits, 200) != drawn(dataclasses.replace(every, seed=6), logits, 200)


def test_a_drawn_seed_can_be_used_again() -> None:
    for random in (None, -1):
        first = Sampler(dataclasses.replace(OFF, seed=random), VOCABULARY)
        again = Sampler(dataclasses.replace(OFF, seed=first.seed), VOCABULARY)
        other = Sampler(dataclasses.replace(OFF, seed=random), VOCABULARY)
        logits = random_logits()
        texts = [[sampler.sample(logits) for _ in range(50)] for sampler in (first, again, other)]
        assert texts[0] == texts[1] != texts[2]


def test_the_first_token_of_known_seeds() -> None:
    """Guards what users keep seeds for: that a seed gives the same text in the next version, too."""
    logits = np.zeros(1000, np.float32)
    for seed in (0, 1, 2**63):
        expected = int(np.random.Generator(np.random.PCG64(seed)).random() * 1000)
        assert Sampler(dataclasses.replace(OFF, seed=seed), 1000).sample(logits) == expected


@quick
@given(st.lists(st.integers(-40, 40).map(float), min_size=1, max_size=80), st.sampled_from([0.0, -1.0]))
def test_greedy_is_the_first_of_the_largest(logits: list[float], temperature: float) -> None:
    odd = Sampling(temperature=temperature, xtc_probability=1.0, typical_p=0.2, dynatemp_range=1.0, mirostat=2)
    for sampling in (Sampling(temperature=temperature), odd, dataclasses.replace(odd, samplers=())):
        values = np.array(logits, np.float32)
        assert Sampler(sampling, len(logits)).sample(values) == logits.index(max(logits))


def test_greedy_heeds_biases_and_penalties() -> None:
    logits = np.array([5.0, 4.5, 1.0], np.float32)
    greedy = Sampling(temperature=0)
    assert Sampler(dataclasses.replace(greedy, repeat_penalty=2.0), 3, [0]).sample(logits) == 1
    assert Sampler(dataclasses.replace(greedy, repeat_penalty=2.0, samplers=()), 3, [0]).sample(logits) == 0
    assert Sampler(dataclasses.replace(greedy, logit_bias={2: 9}), 3).sample(logits) == 2
    assert Sampler(dataclasses.replace(greedy, dry_multiplier=9.0), 3, [1, 2, 0, 1, 2]).sample(logits) == 1


@quick
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=300),
    st.integers(0, 50),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 4),
    st.integers(0, 20),
    st.permutations(["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]),
)
def test_any_chain_gives_a_distribution(
    logits: list[float],
    top_k: int,
    top_p: float,
    min_p: float,
    typical: float,
    sigma: float,
    min_keep: int,
    order: list[str],
) -> None:
    sampling = Sampling(
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical,
        top_n_sigma=sigma,
        xtc_probability=0.5,
        repeat_penalty=1.3,
        dry_multiplier=1.0,
        dynatemp_range=0.5,
        min_keep=min_keep,
        samplers=tuple(order),
        seed=1,
    )
    values = np.array(logits, np.float32)
    held = values.copy()
    sampler = Sampler(sampling, len(logits), [0, 0, 0])
    ids, shares = sampler.distribution(values)
    assert ids.size == shares.size >= 1 and np.unique(ids).size == ids.size
    assert (shares >= 0).all() and math.isclose(float(shares.sum()), 1.0, rel_tol=1e-9)
    assert 0 <= sampler.sample(values) < len(logits)
    assert (values == held).all()


def test_the_default_order() -> None:
    """top_k, then top_p and min_p of what is left, then temperature."""
    logits = random_logits(9, 5000)
    ids, shares = Sampler(Sampling(top_k=20, top_p=0.9, min_p=0.1, temperature=0.5), 5000).distribution(logits)
    best = np.argsort(-logits, kind="stable")[:20]
    best_shares = softmax(logits[best])
    nucleus = int((np.cumsum(best_shares) >= 0.9).argmax()) + 1
    kept = [i for i in range(nucleus) if best_shares[i] >= 0.1 * best_shares[0]]
    assert ids.tolist() == best[kept].tolist()
    np.testing.assert_allclose(shares, softmax(logits[best[kept]] / 0.5), rtol=1e-5)


def test_order_matters_and_left_out_samplers_are_off() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.1, 0.1], np.float32))
    base = dataclasses.replace(OFF, temperature=0.25, min_p=0.5)
    before = Sampler(dataclasses.replace(base, samplers=("min_p", "temperature")), 4).distribution(logits)[0]
    after = Sampler(dataclasses.replace(base, samplers=("temperature", "min_p")), 4).distribution(logits)[0]
    assert before.tolist() == [0, 1] and after.tolist() == [0]
    untouched = Sampler(dataclasses.replace(base, samplers=()), 4).distribution(logits)
    np.testing.assert_allclose(untouched[1], [0.5, 0.3, 0.1, 0.1], rtol=1e-6)


def test_penalties_look_back_as_far_as_told() -> None:
    logits = np.ones(10, np.float32)
    base = dataclasses.replace(OFF, presence_penalty=50.0)
    sampler = Sampler(dataclasses.replace(base, repeat_last_n=3), 10, [0, 1, 2, 3])
    assert np.flatnonzero(sampler.distribution(logits)[1] < 1e-9).tolist() == [1, 2, 3]
    sampler.accept(7)
    assert np.flatnonzero(sampler.distribution(logits)[1] < 1e-9).tolist() == [2, 3, 7]
    everything = Sampler(dataclasses.replace(base, repeat_last_n=-1), 10, [0, 1, 2, 3])
    assert np.flatnonzero(everything.distribution(logits)[1] < 1e-9).tolist() == [0, 1, 2, 3]
    nothing = Sampler(dataclasses.replace(base, repeat_last_n=0), 10, [0, 1, 2, 3])
    assert np.ptp(nothing.distribution(logits)[1]) == 0


def test_dry_in_the_chain() -> None:
    text = {0: b"a", 1: b"b", 2: b"c", 3: b"\n"}.__getitem__
    logits = np.zeros(4, np.float32)
    on = dataclasses.replace(OFF, dry_multiplier=100.0)

    def avoided(prompt: list[int], window: int = 64) -> list[int]:
        sampler = Sampler(dataclasses.replace(on, dry_penalty_last_n=window), 4, prompt, token_text=text)
        ids, shares = sampler.distribution(logits)
        return sorted(ids[shares < 1e-9].tolist())

    assert avoided([0, 1, 2, 0, 1]) == [2]
    assert avoided([0, 1, 2, 0, 3, 1]) == []  # the repeat is broken by the line break
    assert avoided([0, 1, 3, 0, 1]) == []  # the line break itself is never punished
    assert avoided([0, 1, 2, 0, 1], window=4) == []  # the earlier place is out of the window
    assert avoided([0, 1, 2, 0, 1], window=-1) == [2]
    grown = Sampler(on, 4, [0, 1, 2, 0], token_text=text)
    grown.accept(1)
    assert grown.distribution(logits)[1][2] < 1e-9


def test_mirostat_brings_the_surprise_to_the_target() -> None:
    logits = (-1.1 * np.log(np.arange(1, 2001))).astype(np.float32)
    for version in (1, 2):
        sampler = Sampler(Sampling(mirostat=version, mirostat_tau=4.0, temperature=1.0, seed=3), 2000)
        surprises = []
        for _ in range(600):
            ids, shares = sampler.distribution(logits)
            token = sampler.sample(logits)
            surprises.append(-math.log2(float(shares[np.flatnonzero(ids == token)[0]])))
        assert abs(float(np.mean(surprises[100:])) - 4.0) < 0.25


def test_logit_bias_by_id_text_and_false() -> None:
    texts = [b"a", b"b", b" c", b"d"]
    logits = np.zeros(4, np.float32)

    def shares(bias: dict[int | str, float | bool], encode: object = None) -> list[float]:
        sampling = dataclasses.replace(OFF, logit_bias=bias)
        sampler = Sampler(sampling, 4, token_text=texts.__getitem__, encode=encode)  # type: ignore[arg-type]
        ids, found = sampler.distribution(logits)
        result = np.zeros(4)
        result[ids] = found
        return result.tolist()

    assert shares({2: False}) == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
    assert shares({0: math.log(2.0)}) == pytest.approx([0.4, 0.2, 0.2, 0.2])
    assert shares({" c": False, 1: -math.inf}) == pytest.approx([0.5, 0, 0, 0.5])
    assert shares({"ad": False}, encode=lambda text: [0, 3]) == pytest.approx([0, 0.5, 0.5, 0])
    with pytest.raises(InvalidSettingError, match="'xyz' is not a token"):
        shares({"xyz": 1.0})
    with pytest.raises(InvalidSettingError, match="token 4 does not exist, ids go from 0 to 3"):
        shares({4: 1.0})


def test_ignore_eos() -> None:
    logits = np.array([9.0, 0.0, 8.0], np.float32)
    sampler = Sampler(dataclasses.replace(OFF, ignore_eos=True), 3, end_of_generation=frozenset({0, 2, 77}))
    assert sampler.sample(logits) == 1


@pytest.mark.parametrize("sampling", [Sampling(seed=1), Sampling(temperature=0), Sampling(mirostat=2, seed=1), OFF])
def test_nan_and_infinities_are_never_chosen(sampling: Sampling) -> None:
    logits = np.array([np.nan, -np.inf, 1.0, np.nan, 0.5], np.float32)
    sampler = Sampler(sampling, 5)
    assert {sampler.sample(logits) for _ in range(50)} <= {2, 4}
    for nothing in ([np.nan] * 5, [-np.inf] * 5, [np.nan, -np.inf, np.nan, -np.inf, -np.inf]):
        with pytest.raises(EdgeLLMError, match="no token can be sampled: all 5 logits"):
            sampler.sample(np.array(nothing, np.float32))
    assert sampler.sample(np.array([0, np.inf, 3, np.nan, -np.inf], np.float32)) == 1


def test_tokens_of_probability_zero_are_never_drawn() -> None:
    logits = np.full(100, -1000.0, np.float32)
    logits[[3, 50]] = 0.0
    sampler = Sampler(dataclasses.replace(OFF, seed=1), 100)
    assert {sampler.sample(logits) for _ in range(500)} == {3, 50}


def test_wrong_number_of_logits() -> None:
    with pytest.raises(EdgeLLMError, match="vocabulary of 3"):
        Sampler(OFF, 3).sample(np.zeros(4, np.float32))


def test_temperature_near_zero_does_not_overflow() -> None:
    logits = random_logits()
    sampler = Sampler(dataclasses.replace(OFF, temperature=1e-38), VOCABULARY)
    assert sampler.sample(logits) == int(logits.argmax())


def test_log_probabilities() -> None:
    logits = random_logits()
    expected = np.log(softmax(logits))
    np.testing.assert_allclose(log_softmax(logits), expected, atol=2e-6)
    assert log_softmax(logits).dtype == np.float32
    np.testing.assert_allclose(log_softmax(np.stack([logits, logits + 100]))[1], expected, atol=2e-5)
    best = top_logprobs(logits, 5)
    assert [id for id, _ in best] == np.argsort(-expected)[:5].tolist()
    assert best[0][1] == pytest.approx(float(expected.max()), abs=1e-5)
    assert logprob_of(logits, 17) == pytest.approx(float(expected[17]), abs=1e-5)
    assert top_logprobs(logits, 0) == [] and len(top_logprobs(logits, 10**6)) == VOCABULARY


def test_log_probabilities_of_odd_logits() -> None:
    odd = np.array([np.nan, 0.0, -np.inf, 0.0], np.float32)
    assert log_softmax(odd).tolist() == pytest.approx([-math.inf, math.log(0.5), -math.inf, math.log(0.5)])
    assert [id for id, _ in top_logprobs(odd, 4)] == [1, 3]
    assert log_softmax(np.array([0.0, np.inf, np.inf])).tolist() == pytest.approx(
        [-math.inf, math.log(0.5), math.log(0.5)]
    )
    with pytest.raises(EdgeLLMError, match="every logit is -inf or NaN"):
        log_softmax(np.full(3, np.nan))
