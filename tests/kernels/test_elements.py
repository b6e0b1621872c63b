"""Joined, mixed and rounded rows against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import TINY, UNIT, Activations, Kernels, Record, gamma, load_kernels, outlined, padded
from numpy.typing import NDArray

from edgellm.kernels.records import JOIN, ROUND_ROWS, WEIGHTED_SUM
from edgellm.platforms.reference_operations import join, round_rows, slice_parts, weighted_sum

Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return load_kernels()


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 5),
    heads=st.integers(1, 5),
    widths=st.sampled_from([(1, 1), (16, 0), (33, 16), (20, 12), (64, 5)]),
    shared=st.booleans(),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_parts_are_copied_bit_for_bit(
    kernels: Kernels, rows: int, heads: int, widths: tuple[int, int], shared: bool, threads: int, seed: int
) -> None:
    """Join, and Slice where nothing follows: every pattern of bits stays as it is."""
    generator = np.random.default_rng(seed)
    first, second = widths
    bits = generator.integers(0, 1 << 32, (rows, heads * (first + 3) + heads * max(second, 1)), dtype=np.uint32)
    a, b = np.split(bits.view(np.float32), [heads * (first + 3)], axis=1)
    b = b[:, : max(second, 1)] if shared else b
    output, untouched = outlined(rows, heads * (first + second))
    more = {} if second == 0 else {
        "b": b, "b_stride": b.strides[0], "b_head": 0 if shared else 4 * second, "b_width": second,
    }  # fmt: skip
    record = Record(
        JOIN, rows=np.array([rows]), heads=heads, a=a[:, 2:], a_stride=a.strides[0], a_head=4 * (first + 3),
        a_width=first, output=output, output_stride=output.strides[0], **more,
    )  # fmt: skip
    kernels.call("elements.join", record, threads)
    assert untouched()
    expected = slice_parts(a, heads, 2, first)
    if second:
        expected = join(expected, b, heads, shared)
    assert np.array_equal(output.view(np.uint32), np.ascontiguousarray(expected).view(np.uint32))


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 5),
    parts=st.integers(1, 9),
    width=st.sampled_from([1, 15, 16, 17, 64, 100]),
    accumulate=st.booleans(),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_weighted_sums(
    kernels: Kernels, rows: int, parts: int, width: int, accumulate: bool, threads: int, seed: int
) -> None:
    """One rounding for each product and each addition; the weights stand behind as many numbers."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((rows, parts * width)).astype(np.float32)
    wide = np.full((rows + 1, padded(parts * width)), np.nan, np.float32)  # the last vector may reach beyond a row
    wide[:rows, : parts * width] = x
    routes = generator.standard_normal((rows, 2 * parts)).astype(np.float32)
    routes[:, :parts] = np.nan
    before = generator.standard_normal((rows, width)).astype(np.float32) * accumulate
    output, untouched = outlined(rows, padded(width))
    output[:, :width] = before
    record = Record(
        WEIGHTED_SUM, rows=np.array([rows]), width=width, parts=parts, input=wide, input_stride=wide.strides[0],
        routes=routes, routes_stride=routes.strides[0], output=output, output_stride=output.strides[0],
        accumulate=int(accumulate),
    )  # fmt: skip
    kernels.call("elements.weighted_sum", record, threads)
    assert untouched()
    expected = weighted_sum(x.astype(np.float64), routes.astype(np.float64)) + before
    size = weighted_sum(np.abs(x).astype(np.float64), np.abs(routes).astype(np.float64)) + np.abs(before)
    assert (np.abs(output[:, :width] - expected) <= gamma(parts + 2) * size + TINY).all()


def round_all(kernels: Kernels, x: Floats, threads: int, made: Activations | None = None) -> Floats:
    """The kernel's result."""
    rows, width = x.shape
    wide = np.full((rows, padded(width)), 1e30, np.float32)  # what is behind a row must not count
    wide[:, :width] = x
    output, untouched = outlined(rows, padded(width))
    fields = {} if made is None else {name: value for name, value in made.fields.items() if "fine" not in name}
    record = Record(
        ROUND_ROWS, rows=np.array([rows]), width=width, input=wide, input_stride=wide.strides[0], output=output,
        output_stride=output.strides[0], **fields,
    )  # fmt: skip
    kernels.call("elements.round_rows", record, threads)
    assert untouched()
    return output[:, :width]


@settings(deadline=None, max_examples=100)
@given(
    rows=st.integers(1, 5),
    width=st.sampled_from([1, 15, 16, 17, 32, 48, 50, 96]),
    magnitude=st.sampled_from([0.0, 1e-30, 1e-6, 1e-5, 1.0, 1e4, 1e37]),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_rounded_rows_have_the_bits_of_the_reference(
    kernels: Kernels, rows: int, width: int, magnitude: float, threads: int, seed: int
) -> None:
    x = (np.random.default_rng(seed).uniform(-1, 1, (rows, width)) * magnitude).astype(np.float32)
    x[0, 0] = magnitude
    assert np.array_equal(round_all(kernels, x, threads), round_rows(x).astype(np.float32))


def test_codes_are_the_numbers_of_steps(kernels: Kernels) -> None:
    """Of one size in a whole row, so that a product is exact but for one factor."""
    x = np.random.default_rng(3).standard_normal((5, 96)).astype(np.float32)
    for threads in (1, 2, 7):
        made = Activations.empty(5, 96)
        rounded = round_all(kernels, x, threads, made)
        steps = made.scales[:, 0, :, 0]
        assert (steps == steps[:, :1]).all()
        assert made.values[:, 0] == pytest.approx(rounded, rel=3 * UNIT)
        assert np.abs(made.codes).max(axis=(1, 2)).tolist() == [127] * 5
        blocks = made.codes.reshape(5, 3, 2, 16).sum(axis=3, dtype=np.float64)
        expected = np.stack([steps * blocks.sum(axis=2), steps * blocks[..., 0], steps * blocks[..., 1]], axis=2)
        assert made.scales[:, 0, :, 1:] == pytest.approx(expected, rel=2 * UNIT)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_shows_in_its_whole_row_and_in_no_other(kernels: Kernels, bad: float) -> None:
    for column in (0, 31, 33):
        x = np.ones((3, 34), np.float32)
        x[1, column] = bad
        rounded = round_all(kernels, x, 2)
        assert np.isnan(rounded[1]).all()
        assert np.array_equal(rounded[[0, 2]], np.ones((2, 34)))
