"""Scores of texts computed side by side against the logits of each text by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm import LLM
from edgellm.errors import ContextOverflowError, EdgeLLMError, InvalidSettingError
from edgellm.llm import Backend
from edgellm.sampling import log_softmax
from edgellm.scoring import ScoredText

TOLERANCE = {"reference": 2e-6, "cpu": 2e-5}


@pytest.fixture(scope="module", params=["reference", "cpu"])
def llm(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> Iterator[LLM]:
    backend: Backend = request.param
    with LLM.load(tiny_model(context_length=600), backend=backend, threads=2) as llm:
        yield llm


def tolerance(llm: LLM) -> float:
    return TOLERANCE["reference" if "Reference" in type(llm._engine.executor).__name__ else "cpu"]


def random_texts(llm: LLM, lengths: list[int], seed: int) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(0, llm.tokenizer.vocabulary_size, length).tolist() for length in lengths]


def check(llm: LLM, text: ScoredText, logprobs: np.ndarray, best: np.ndarray) -> None:
    """Against what ``LLM.logits`` gives."""
    rows = llm.logits(text.tokens)[text.first - 1 : -1]
    expected = log_softmax(rows)[np.arange(len(rows)), list(text.tokens[text.first :])]
    assert logprobs == pytest.approx(expected, abs=tolerance(llm) * float(np.abs(rows).max(initial=1)))
    for row, token in zip(rows, best, strict=True):
        assert row[token] >= row.max() - tolerance(llm) * np.abs(row).max()


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.sampled_from([1, 2, 3, 17, 31, 32, 33, 64, 100, 300, 520, 600]), min_size=1, max_size=7),
    remember=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_texts_side_by_side(llm: LLM, lengths: list[int], remember: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    texts = [
        ScoredText(ids, int(random.integers(1, len(ids) + 1)), remember) for ids in random_texts(llm, lengths, seed)
    ]
    found = list(llm.score(texts))
    assert len(found) == len(texts)
    for text, scores in zip(texts, found, strict=True):
        assert len(scores.logprobs) == len(scores.best) == len(text.tokens) - text.first
        check(llm, text, scores.logprobs, scores.best)


def test_texts_that_begin_alike_are_computed_once(llm: LLM) -> None:
    begin, *ends = random_texts(llm, [90, 5, 40, 1, 33], 3)
    computed = []
    executor = llm._engine.executor
    with pytest.MonkeyPatch.context() as patch:
        run = executor.begin
        patch.setattr(executor, "begin", lambda batch: (computed.append(len(batch.tokens)), run(batch)))
        list(llm.score([ScoredText(begin, len(begin), remember=True)]))
        texts = [ScoredText(begin + end, len(begin), remember=True) for end in ends]
        found = list(llm.score(texts))
    assert computed == [90, sum(len(end) for end in ends)]  # one row of the context each, none of the last token
    for text, scores in zip(texts, found, strict=True):
        check(llm, text, scores.logprobs, scores.best)


def test_the_cache_is_given_back(llm: LLM) -> None:
    texts = [ScoredText(ids) for ids in random_texts(llm, [500, 20, 20], 5)]
    llm._engine.forget()
    list(llm.score(texts))
    found = llm.score(texts)
    next(found)
    found.close()  # in the middle
    assert llm.memory()["cache_used"] == 0
    with pytest.raises(ContextOverflowError):
        list(llm.score([ScoredText([0] * 601)]))
    assert llm.memory()["cache_used"] == 0


def test_what_cannot_be_scored(llm: LLM) -> None:
    for tokens, first in (([], 1), ([1], 0), ([1, 2], 3)):
        with pytest.raises(InvalidSettingError):
            ScoredText(tokens, first)
    with pytest.raises(InvalidSettingError, match="no id of this model"):
        list(llm.score([ScoredText([1, 10**9])]))
    with pytest.raises(InvalidSettingError, match="load it twice"):
        list(llm.compare(llm, [ScoredText([1, 2])]))


def test_a_model_that_computes_no_numbers(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    damaged = bytearray(tiny_model().read_bytes())
    damaged[-4096:] = b"\xff" * 4096  # NaN in the last tensor
    (tmp_path / "damaged.gguf").write_bytes(damaged)
    with (
        LLM.load(tmp_path / "damaged.gguf", threads=1) as llm,
        pytest.raises(EdgeLLMError, match="values that are not numbers"),
    ):
        list(llm.score([ScoredText([1, 2, 3])]))


def exact_log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_two_models(tiny_model: Callable[..., Path], backend: Backend) -> None:
    paths = [tiny_model(context_length=600, seed=seed) for seed in (0, 1)]
    with LLM.load(paths[0], backend=backend) as base, LLM.load(paths[1], backend=backend) as llm:
        texts = [ScoredText(ids, 1 + len(ids) // 2) for ids in random_texts(llm, [4, 300, 31, 600], 7)]
        for text, found in zip(texts, llm.compare(base, texts), strict=True):
            check(base, text, found.base.logprobs, found.base.best)
            check(llm, text, found.own.logprobs, found.own.best)
            p, q = (exact_log_softmax(one.logits(text.tokens)[text.first - 1 : -1]) for one in (base, llm))
            assert found.divergence == pytest.approx((np.exp(p) * (p - q)).sum(axis=1), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_nothing_divides_a_model_from_itself(tiny_model: Callable[..., Path], backend: Backend) -> None:
    path = tiny_model(context_length=600)
    with LLM.load(path, backend=backend) as base, LLM.load(path, backend=backend) as llm:
        texts = [ScoredText(ids) for ids in random_texts(llm, [40, 300, 2], 9)]
        for found in llm.compare(base, texts):
            assert (found.divergence == 0).all()
            assert np.array_equal(found.base.logprobs, found.own.logprobs)


def test_vocabularies_must_be_equal(tiny_model: Callable[..., Path]) -> None:
    with (
        LLM.load(tiny_model(), backend="reference") as base,
        LLM.load(tiny_model(extra_tokens=8), backend="reference") as llm,
        pytest.raises(InvalidSettingError, match="vocabularies of"),
    ):
        list(llm.compare(base, [ScoredText([1, 2])]))
