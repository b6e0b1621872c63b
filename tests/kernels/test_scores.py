"""Kernels that read a distribution off logits, against float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import TIERS, Kernels, Record, load_kernels, outlined
from numpy.typing import NDArray

from edgellm.kernels.records import SCORES

Floats = NDArray[np.float32]
WIDTHS = st.sampled_from([1, 2, 15, 16, 17, 384, 1023, 1024, 1025, 2063, 5000])


@pytest.fixture(scope="module", params=TIERS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return load_kernels(request.param)


def scores(kernels: Kernels, logits: Floats, targets: NDArray[np.int32], threads: int, base: Floats | None) -> Floats:
    """What the kernels write; logits stand in the middle of larger memory, of which nothing else may count."""
    rows, width = logits.shape
    output, untouched = outlined(rows, 4 if base is None else 9)
    fields = {} if base is None else {"base": base, "base_stride": base.strides[0]}
    record = Record(
        SCORES, rows=np.array([rows]), width=width, logits=logits, logits_stride=logits.strides[0], targets=targets,
        output=output, output_stride=output.strides[0], **fields,
    )  # fmt: skip
    kernels.call("scores.tokens" if base is None else "scores.divergence", record, threads)
    assert untouched()
    return output


def made(rows: int, width: int, magnitude: float, seed: int) -> Floats:
    """Logits, in memory with other numbers before and behind each row."""
    whole = np.full((rows, width + 32), 1e30, np.float32)
    part = whole[:, 16 : 16 + width]
    part[:] = np.random.default_rng(seed).standard_normal((rows, width)) * magnitude
    return part


def check(output: Floats, logits: Floats, targets: NDArray[np.int32]) -> None:
    wide = logits.astype(np.float64)
    rows = np.arange(len(logits))
    assert np.array_equal(output[:, 0], logits.max(axis=1))
    assert output[:, 1] == pytest.approx(np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1), rel=2e-6)
    assert np.array_equal(output[:, 2], logits[rows, targets])
    assert np.array_equal(output.copy().view(np.int32)[:, 3], logits.argmax(axis=1))


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 5),
    width=WIDTHS,
    magnitude=st.sampled_from([0.0, 1e-3, 1.0, 10.0, 1e4, 1e30]),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_tokens(kernels: Kernels, rows: int, width: int, magnitude: float, threads: int, seed: int) -> None:
    logits = made(rows, width, magnitude, seed)
    targets = np.random.default_rng(seed + 1).integers(0, width, rows).astype(np.int32)
    check(scores(kernels, logits, targets, threads, None), logits, targets)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 5),
    width=WIDTHS,
    magnitude=st.sampled_from([1e-3, 1.0, 10.0]),
    distance=st.sampled_from([0.0, 1e-3, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_divergence(kernels: Kernels, rows: int, width: int, magnitude: float, distance: float, seed: int) -> None:
    base, logits = made(rows, width, magnitude, seed), made(rows, width, distance, seed + 1)
    logits += base
    targets = np.zeros(rows, np.int32)
    output = scores(kernels, logits, targets, 2, base)
    check(output[:, :4], base, targets)
    check(output[:, 4:8], logits, targets)
    a, b = (part.astype(np.float64) - part.max(axis=1, keepdims=True) for part in (base, logits))
    size = (np.exp(a) * (np.abs(a) + np.abs(b))).sum(axis=1)
    assert (np.abs(output[:, 8] - (np.exp(a) * (a - b)).sum(axis=1)) <= 4e-6 * size).all()
    if distance == 0:
        assert (output[:, 8] == 0).all()


@pytest.mark.parametrize("place", [0, 700, 1024, 2062])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_shows_in_the_sum(kernels: Kernels, place: int, bad: float) -> None:
    logits = made(2, 2063, 1.0, 0)
    logits[0, place] = bad
    output = scores(kernels, logits, np.zeros(2, np.int32), 1, None)
    assert np.isnan(output[0, 1])
    assert np.isfinite(output[1, 1])


def test_the_first_of_equals_is_the_best(kernels: Kernels) -> None:
    logits = made(1, 5000, 1.0, 0)
    logits[0, [1500, 1501, 3000]] = 100
    assert scores(kernels, logits, np.zeros(1, np.int32), 1, None).view(np.int32)[0, 3] == 1500
