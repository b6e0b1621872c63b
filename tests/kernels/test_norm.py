"""Normalization against its definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import TINY, UNIT, Activations, Kernels, Record, gamma, load_kernels, outlined
from numpy.typing import NDArray

from edgellm.kernels.records import NORM

Doubles = NDArray[np.float64]
EPSILON = np.float32(1e-5)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return load_kernels()


def normalize(
    kernels: Kernels, kind: str, x: NDArray[np.float32], parts: int, threads: int, **more: int | NDArray[np.float32]
) -> NDArray[np.float32]:
    """The kernel's result; ``before`` among ``more`` is what the output holds at first."""
    rows, width = x.shape
    output, untouched = outlined(rows, width)
    before = more.pop("before", None)
    if before is not None:
        output[...] = before
        more["accumulate"] = 1
    record = Record(
        NORM, rows=np.array([rows]), parts=parts, width=width // parts, input=x, input_stride=x.strides[0],
        output=output, output_stride=output.strides[0], epsilon=np.array([EPSILON]), **more,
    )  # fmt: skip
    if threads == 0:
        kernels.call_flushing(f"norm.{kind}", record)
    else:
        kernels.call(f"norm.{kind}", record, threads)
    assert untouched()
    return output


def exact(kind: str, x: Doubles, weight: Doubles, bias: Doubles) -> tuple[Doubles, Doubles]:
    """The result for parts (n, width), and how far roundings may lead from it.

    LayerNorm is computed in float64, so that only the result is rounded; the rest is far below, even where a mean is
    many times what the values differ by. Of RMSNorm, sums run over width / 64 vectors and up to three more, then 6
    halvings, then a rest in double precision; the mean square has the relative error of its sum and of the squares; the
    square root halves that and adds roundings of its own with those of the factor. Then follow the products.
    """
    width = x.shape[1]
    mean = x.mean(axis=1, keepdims=True) if kind == "layer" else np.zeros((len(x), 1))
    factor = 1 / np.sqrt(np.square(x - mean).mean(axis=1, keepdims=True) + EPSILON)
    scaled = np.abs((x - mean) * factor * weight)
    result = (x - mean) * factor * weight + bias
    if kind == "layer":
        return result, UNIT * np.abs(result) + 1e-10 * (scaled + 1) + TINY
    error = scaled * ((gamma(width // 64 + 3 + 6 + 1) + gamma(5)) / 2 + 9 * UNIT)
    return result, error + 2 * UNIT * (scaled + np.abs(bias)) + 8 * TINY * (1 + np.abs(weight) * factor)


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(["rms", "layer"]),
    rows=st.integers(1, 6),
    parts=st.integers(1, 4),
    width=st.sampled_from([1, 2, 8, 15, 16, 17, 20, 33, 64, 80, 200]),
    scale=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e9]),
    centre=st.sampled_from([0.0, 5.0, -3e4]),
    weighted=st.booleans(),
    biased=st.booleans(),
    accumulate=st.booleans(),
    threads=st.integers(0, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_norm(
    kernels: Kernels, kind: str, rows: int, parts: int, width: int, scale: float, centre: float, weighted: bool,
    biased: bool, accumulate: bool, threads: int, seed: int,
) -> None:  # fmt: skip
    generator = np.random.default_rng(seed)
    x = ((generator.standard_normal((rows, parts * width)) + centre) * scale).astype(np.float32)
    weight, bias = generator.standard_normal((2, width)).astype(np.float32)
    before = generator.standard_normal(x.shape).astype(np.float32) if accumulate else None
    more: dict[str, int | NDArray[np.float32]] = {"by_column": int(parts == 1)}
    if weighted:
        more["weight"] = weight
    if biased:
        more["bias"] = bias
    if before is not None:
        more["before"] = before
    result = normalize(kernels, kind, x, parts, threads, **more)

    ones = weight.astype(np.float64) if weighted else np.ones(width)
    zeros = bias.astype(np.float64) if biased else np.zeros(width)
    expected, error = exact(kind, x.astype(np.float64).reshape(-1, width), ones, zeros)
    expected, error = expected.reshape(x.shape), error.reshape(x.shape)
    if before is not None:
        expected = expected + before
        error = error + UNIT * (np.abs(expected) + np.abs(before))
    assert (np.abs(result - expected) <= error).all()


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("width", [32, 96, 992])
@pytest.mark.parametrize("fine", [False, True])
def test_quantized_at_once_and_shared_by_columns(kernels: Kernels, kind: str, width: int, fine: bool) -> None:
    """The same codes as from quantizing the result, whoever computes which rows or columns."""
    x = np.random.default_rng(width).standard_normal((3, width)).astype(np.float32)
    for rows in (1, 2, 3):
        alone = normalize(kernels, kind, x[:rows], 1, 1)
        expected = kernels.quantize(alone, fine)
        for threads in (1, 2, 3, 5):
            made = Activations.empty(rows, width, fine)
            result = normalize(kernels, kind, x[:rows], 1, threads, by_column=1, **made.fields)
            assert np.array_equal(result, alone)
            assert np.array_equal(made.codes, expected.codes)
            assert np.array_equal(made.scales, expected.scales)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("column", [0, 20, 47, 48])
def test_a_value_that_is_no_number_shows_and_stays_in_its_part(
    kernels: Kernels, kind: str, column: int, bad: float
) -> None:
    x = np.random.default_rng(1).standard_normal((2, 2 * 49)).astype(np.float32)
    x[1, 49 + column] = bad
    result = normalize(kernels, kind, x, 2, 1)
    assert not np.isfinite(result[1, 49 + column])
    assert np.isfinite(result[0]).all()
    assert np.isfinite(result[1, :49]).all()
