"""Kernels that compute in float64, against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import TIERS, TINY, Record, guarded, load_kernels, matmul_record, outlined, padded, product_extras
from numpy.typing import NDArray
from weight_blocks import FLOAT_TYPES, decoded, random_floats

from edgellm.kernels.double_layout import scores_bytes, scratch_bytes
from edgellm.kernels.records import ACTIVATION, NORM
from edgellm.kernels.sound_records import DOUBLE_ATTENTION

Doubles = NDArray[np.float64]
UNIT = 2.0**-53  # largest relative error of one float64 rounding
LARGEST = float(np.finfo(np.float32).max)
SEEDS = st.integers(0, 2**32 - 1)
GELU_FIT = 2.7e-9  # relative error of the polynomials


def multiply(
    tier: str, type_name: str, raw: NDArray[np.uint8], x: Doubles, bias: NDArray[np.float32] | None = None,
    before: Doubles | None = None, threads: int = 1,
) -> Doubles:  # fmt: skip
    kernels = load_kernels(tier)
    matrix = kernels.pack(raw, type_name, x.shape[1])
    output, untouched = outlined(len(x), padded(len(raw)), np.float64)
    more = product_extras(output, len(raw), bias, before)
    record = matmul_record(matrix, guarded(x), output, **more)
    kernels.call(f"double_products.{type_name.lower()}", record, threads)
    assert untouched()
    return output[:, : len(raw)]


@pytest.mark.parametrize("type_name", FLOAT_TYPES)
@pytest.mark.parametrize("tier", TIERS)
@settings(deadline=None, max_examples=20)
@given(
    seed=SEEDS,
    weight_rows=st.sampled_from([1, 15, 16, 17, 37]),
    rows=st.sampled_from([1, 2, 11, 12, 13, 48, 50, 70]),
    columns=st.sampled_from([1, 3, 16, 31, 192]),
    scales=st.sampled_from(["ordinary", "extreme"]),
    magnitude=st.sampled_from([0.0, 1e-30, 1.0, 1e30]),
    biased=st.booleans(),
    accumulate=st.booleans(),
    threads=st.integers(1, 4),
)
def test_products(
    tier: str, type_name: str, seed: int, weight_rows: int, rows: int, columns: int, scales: str, magnitude: float,
    biased: bool, accumulate: bool, threads: int,
) -> None:  # fmt: skip
    generator = np.random.default_rng(seed)
    raw = random_floats(type_name, weight_rows, columns, scales, generator)
    x = generator.standard_normal((rows, columns)) * magnitude
    bias = generator.standard_normal(weight_rows).astype(np.float32) if biased else None
    before = generator.standard_normal((rows, weight_rows)) if accumulate else None
    result = multiply(tier, type_name, raw, x, bias, before, threads)
    weights = decoded(raw, type_name)
    more = [part.astype(np.float64) for part in (bias, before) if part is not None]
    exact, size = x @ weights.T + sum(more), np.abs(x) @ np.abs(weights).T + sum(map(np.abs, more))
    # A weight in half precision that is float32's denormal, if it is flushed, takes its product along.
    assert (np.abs(result - exact) <= 2 * (columns + 3) * UNIT * size + TINY * np.abs(x).sum(axis=1)[:, None]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tier", TIERS)
def test_an_activation_that_is_no_number_shows_in_its_row_alone(tier: str, bad: float) -> None:
    raw = random_floats("F16", 17, 40, "ordinary", np.random.default_rng(1))
    x = np.random.default_rng(2).standard_normal((14, 40))
    x[[1, 13], [0, 39]] = bad
    result = multiply(tier, "F16", raw, x)
    assert not np.isfinite(result[[1, 13]]).any()
    assert np.isfinite(np.delete(result, [1, 13], axis=0)).all()


def convert(kind: str, a: NDArray[np.floating], b: Doubles | None = None, threads: int = 1) -> NDArray[np.floating]:
    """An element-wise kernel's result."""
    rows, width = a.shape
    wide_a = np.zeros((rows, padded(width)), a.dtype)
    wide_a[:, :width] = a
    wide_b = np.zeros((rows, padded(width)))
    if b is not None:
        wide_b[:, :width] = b
    output, untouched = outlined(rows, padded(width), np.float32 if kind == "narrow" else np.float64)
    wide_a, wide_b = guarded(wide_a), guarded(wide_b)
    record = Record(
        ACTIVATION, rows=np.array([rows]), width=width, a=wide_a, a_stride=wide_a.strides[0],
        b=0 if b is None else wide_b, b_stride=wide_b.strides[0], output=output, output_stride=output.strides[0],
    )  # fmt: skip
    load_kernels().call(f"double_rows.{kind}", record, threads)
    assert untouched()
    return output[:, :width]


def gelu(x: Doubles) -> tuple[Doubles, Doubles]:
    """The result, and how far polynomials and roundings may lead from it."""
    size = np.abs(x)
    below = size * np.vectorize(math.erfc)(size / np.sqrt(2)) / 2
    result = np.maximum(x, 0) - below
    return result, GELU_FIT * below + 1e-15 * (1 + np.abs(result))


@settings(deadline=None, max_examples=60)
@given(
    seed=SEEDS, rows=st.integers(1, 5), width=st.sampled_from([1, 15, 16, 17, 32, 50]),
    magnitude=st.sampled_from([0.0, 1e-300, 1e-20, 1.0, 1e20, 1e200]), threads=st.integers(1, 4),
)  # fmt: skip
def test_rows(seed: int, rows: int, width: int, magnitude: float, threads: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.standard_normal((2, rows, width)) * magnitude
    assert (convert("add", a, b, threads) == a + b).all()
    with np.errstate(over="ignore"):
        single = a.astype(np.float32)
    assert (convert("widen", single, threads=threads) == single).all()
    assert (convert("narrow", a, threads=threads) == single).all()
    expected, error = gelu(a)
    assert (np.abs(convert("gelu", a, threads=threads) - expected) <= error).all()


def test_gelu_over_its_whole_range() -> None:
    x = np.linspace(-45, 45, 64 * 4000).reshape(-1, 64)
    expected, error = gelu(x)
    assert (np.abs(convert("gelu", x) - expected) <= error).all()
    odd = np.array([[np.nan, np.inf, 1.0, 1e308]])
    result = convert("gelu", odd)
    assert np.isnan(result[0, 0])
    assert result[0, 1] == np.inf
    assert result[0, 3] == 1e308


@settings(deadline=None, max_examples=80)
@given(
    seed=SEEDS, rows=st.integers(1, 6), width=st.sampled_from([1, 2, 15, 16, 17, 33, 64, 200]),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e9]), centre=st.sampled_from([0.0, -3e4]), biased=st.booleans(),
    accumulate=st.booleans(), threads=st.integers(1, 4),
)  # fmt: skip
def test_layer_norm(
    seed: int, rows: int, width: int, scale: float, centre: float, biased: bool, accumulate: bool, threads: int
) -> None:
    generator = np.random.default_rng(seed)
    x = (generator.standard_normal((rows, width)) + centre) * scale
    weight, bias = generator.standard_normal((2, width)).astype(np.float32)
    epsilon = np.array([1e-5], np.float32)
    output, untouched = outlined(rows, width, np.float64)
    before = generator.standard_normal(x.shape) * accumulate
    output[...] = before
    source = guarded(x)
    record = Record(
        NORM, rows=np.array([rows]), parts=1, width=width, input=source, input_stride=source.strides[0], output=output,
        output_stride=output.strides[0], epsilon=epsilon, weight=guarded(weight), by_column=1,
        accumulate=int(accumulate), **({"bias": guarded(bias)} if biased else {}),
    )  # fmt: skip
    load_kernels().call("norm.layer_double", record, threads)
    assert untouched()
    middle = x - x.mean(axis=1, keepdims=True)
    factor = 1 / np.sqrt(np.square(middle).mean(axis=1, keepdims=True) + epsilon[0])
    exact = middle * factor * weight + biased * bias + before
    # What is off in the mean is so by a rounding of the numbers, which may be far larger than their differences.
    error = 8 * (width + 8) * UNIT * (np.abs(x).max() * factor + 1) * np.abs(weight) + 8 * UNIT * np.abs(exact)
    assert (np.abs(output - exact) <= error).all()


def attend(tier: str, q: Doubles, k: Doubles, v: Doubles, heads: int, scale: float, threads: int) -> Doubles:
    """Attention of rows (rows, heads * width) to all rows."""
    kernels = load_kernels(tier)
    rows, columns = q.shape
    keys, width = padded(rows), columns // heads
    output, untouched = outlined(rows, columns, np.float64)
    arranged = [outlined(heads, width * keys, np.float64, margin=0) for _ in range(2)]
    scratch, scratch_untouched = outlined(threads, scratch_bytes(keys) // 8, np.float64, margin=0)
    q, k, v = guarded(q), guarded(k), guarded(v)
    record = Record(
        DOUBLE_ATTENTION, rows=np.array([rows]), heads=heads, width=width, queries=q, queries_stride=q.strides[0],
        keys=k, keys_stride=k.strides[0], values=v, values_stride=v.strides[0], output=output,
        output_stride=output.strides[0], arranged_keys=arranged[0][0], arranged_values=arranged[1][0],
        head_bytes=8 * width * keys, scale=np.array([scale]), scores_bytes=scores_bytes(keys), scratch=scratch,
        scratch_stride=scratch.strides[0],
    )  # fmt: skip
    kernels.call("double_attention.keys", record, threads)
    kernels.call("double_attention.attend", record, threads)
    assert untouched()
    assert scratch_untouched()
    assert all(part_untouched() for _, part_untouched in arranged)
    return output


@pytest.mark.parametrize("tier", TIERS)
@settings(deadline=None, max_examples=25)
@given(
    seed=SEEDS, rows=st.sampled_from([1, 2, 11, 12, 13, 15, 16, 17, 33, 60]), heads=st.integers(1, 3),
    width=st.sampled_from([16, 32, 80]), magnitude=st.sampled_from([0.0, 1e-20, 1.0, 8.0, 1e4]),
    threads=st.integers(1, 4),
)  # fmt: skip
def test_attention(tier: str, seed: int, rows: int, heads: int, width: int, magnitude: float, threads: int) -> None:
    generator = np.random.default_rng(seed)
    q, k, v = generator.standard_normal((3, rows, heads * width))
    q, k, scale = q * magnitude, k * magnitude, width**-0.5
    result = attend(tier, q, k, v, heads, scale, threads)
    parts = (part.reshape(rows, heads, width).transpose(1, 0, 2) for part in (q, k, v))
    queries, keys, values = parts
    scores = queries @ keys.transpose(0, 2, 1) * scale
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    expected = (weights @ values).transpose(1, 0, 2).reshape(rows, -1)
    size = (np.abs(queries) @ np.abs(keys).transpose(0, 2, 1)).max() * scale  # of what a score is the sum of
    error = (4 * (width + 2) * UNIT * size + 1e-13 + 4 * rows * UNIT) * np.abs(v).max()
    assert (np.abs(result - expected) <= error).all()


def test_attention_to_what_is_no_number_shows() -> None:
    q, k, v = np.random.default_rng(3).standard_normal((3, 20, 32))
    k[7, 3] = np.nan
    result = attend("native", q, k, v, 2, 0.25, 2)
    assert np.isnan(result[:, :16]).all()
    assert np.isfinite(result[:, 16:]).all()


def test_all_threads_give_the_same_bits() -> None:
    generator = np.random.default_rng(4)
    q, k, v = generator.standard_normal((3, 31, 96))
    raw, x = random_floats("F32", 50, 96, "ordinary", generator), generator.standard_normal((67, 96))
    for threads in (2, 3, 7):
        assert np.array_equal(attend("native", q, k, v, 3, 0.2, threads), attend("native", q, k, v, 3, 0.2, 1))
        assert np.array_equal(multiply("native", "F32", raw, x, threads=threads), multiply("native", "F32", raw, x))
