"""Activations, rotations and the choice of rows against their definitions in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import TINY, UNIT, Activations, Kernels, Record, gamma, load_kernels, outlined, padded
from numpy.typing import NDArray

from edgellm.graph import SWIGLU_LIMIT, SWIGLU_SLOPE
from edgellm.kernels import activation
from edgellm.kernels.records import ACTIVATION, ROPE, ROWS

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]
KINDS = (
    "silu", "gelu_tanh", "gelu", "relu_squared", "sigmoid", "sigmoid_of_row", "swiglu_clamped", "add", "scale",
    "softcap",
)  # fmt: skip
TWO_INPUTS = ("add", "swiglu_clamped")

# The kernels' e^x: Cephes states a relative error of at most 1.7e-7 for the polynomial and its argument in float32
# (Moshier, Cephes Mathematical Library, expf.c); one unit more for products that are not fused.
EXPONENTIAL = 1.7e-7 + UNIT
# tanh y = 1 - 2 / (e^2y + 1): an error of e^2y is damped to at most half of it; two roundings of a quotient that is
# at most 2, and that of the difference.
TANH = EXPONENTIAL / 2 + 2 * 2 * UNIT + UNIT


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return load_kernels()


def activate(
    kernels: Kernels, kind: str, a: Floats, b: Floats | None = None, factor: float = 0.0, threads: int = 1,
    made: Activations | None = None,
) -> Floats:  # fmt: skip
    """The kernel's result."""
    rows, width = a.shape
    wide_a, wide_b = np.zeros((2, rows, padded(width)), np.float32)
    wide_a[:, :width] = a
    if b is not None:
        wide_b[:, :width] = b
    output, untouched = outlined(rows, padded(width))
    record = Record(
        ACTIVATION, rows=np.array([rows]), width=width, a=wide_a, a_stride=wide_a.strides[0],
        b=0 if b is None else wide_b, b_stride=wide_b.strides[0], output=output, output_stride=output.strides[0],
        factor=np.array([factor], np.float32), **({} if made is None else made.fields),
    )  # fmt: skip
    if threads == 0:
        kernels.call_flushing(f"activation.{kind}", record)
    else:
        kernels.call(f"activation.{kind}", record, threads)
    assert untouched()
    return output[:, :width]


def exact(kind: str, a: Doubles, b: Doubles | None, factor: float) -> tuple[Doubles, Doubles]:
    """The result and how far roundings may lead from it."""
    with np.errstate(over="ignore"):
        match kind:
            case "silu":
                result = a / (1 + np.exp(-a))
                error = (EXPONENTIAL + 2 * UNIT) * np.abs(result) + 100 * TINY  # e^-a may overflow early
            case "gelu_tanh":
                inner = np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)
                result = a / 2 * (1 + np.tanh(inner))
                # The argument has eight roundings, and |y| (1 - tanh^2 y) < 0.45; 1 + tanh is rounded too.
                error = np.abs(a) / 2 * (TANH + 0.45 * gamma(8) + 2 * UNIT) + 2 * UNIT * np.abs(result)
            case "gelu":
                size = np.abs(a)
                below = size * np.vectorize(math.erfc)(size / np.sqrt(2)) / 2
                result = np.maximum(a, 0) - below
                # The square in the exponential is rounded, then come both polynomials of positive terms and three more.
                error = below * (EXPONENTIAL + size**2 / 2 * UNIT + gamma(21)) + UNIT * np.abs(result) + 10 * TINY
            case "sigmoid":
                result = 1 / (1 + np.exp(-a))
                error = (EXPONENTIAL + 2 * UNIT) * result + 100 * TINY
            case "sigmoid_of_row":
                result = np.repeat(1 / (1 + np.exp(-a[:, :1])), a.shape[1], axis=1)
                error = (EXPONENTIAL + 2 * UNIT) * result + 100 * TINY
            case "swiglu_clamped":
                assert b is not None
                low, clipped = np.minimum(a, SWIGLU_LIMIT), np.clip(b, -SWIGLU_LIMIT, SWIGLU_LIMIT)
                result = low / (1 + np.exp(-SWIGLU_SLOPE * low)) * (clipped + 1)
                # The slope is rounded and its product: relative errors of e^-x of as much times x.
                relative = EXPONENTIAL + gamma(6) + np.abs(2 * SWIGLU_SLOPE * low) * UNIT
                return result, relative * (np.abs(result) + np.abs(low) * UNIT) + 100 * TINY
            case "relu_squared":
                result = np.square(np.maximum(a, 0))
                error = UNIT * result
            case "scale":
                result = a * factor
                error = UNIT * np.abs(result)
            case "softcap":
                result = factor * np.tanh(a / factor)
                error = np.abs(factor) * (TANH + 0.45 * UNIT) + UNIT * np.abs(result)
            case _:
                assert b is not None
                return a + b, UNIT * np.abs(a + b) + TINY
    if b is not None:
        result, error = result * b, (error + UNIT * np.abs(result)) * np.abs(b)
    return result, error + TINY * (1 + abs(factor)) * (1 + (0 if b is None else np.abs(b)))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 5),
    width=st.sampled_from([1, 15, 16, 17, 32, 48, 50, 96]),
    magnitude=st.sampled_from([0.0, 1e-38, 1e-5, 1.0, 10.0, 100.0, 1e4]),
    gated=st.booleans(),
    factor=st.sampled_from([-0.5, 1.0, 30.0]),
    threads=st.integers(0, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_activations(
    kernels: Kernels, kind: str, rows: int, width: int, magnitude: float, gated: bool, factor: float, threads: int,
    seed: int,
) -> None:  # fmt: skip
    generator = np.random.default_rng(seed)
    a = (generator.standard_normal((rows, width)) * magnitude).astype(np.float32)
    b = generator.standard_normal((rows, width)).astype(np.float32) if gated or kind in TWO_INPUTS else None
    result = activate(kernels, kind, a, b, factor, threads)
    expected, error = exact(kind, a.astype(np.float64), None if b is None else b.astype(np.float64), factor)
    assert (np.abs(result - expected) <= error).all()


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "gelu", "sigmoid", "softcap"])
def test_functions_made_of_the_exponential_over_their_whole_range(kernels: Kernels, kind: str) -> None:
    """All float32 of either sign, 256 to an octave, and closely around the ends of the exponential's range."""
    bits = np.arange(0, 0x7F800000, 1 << 15, dtype=np.uint32)
    a = np.concatenate([bits, bits | 0x80000000]).view(np.float32)
    a = np.concatenate([a, np.linspace(-110, 110, 100_000, dtype=np.float32)])
    a = np.resize(a, (-(-len(a) // 64), 64))
    result = activate(kernels, kind, a, factor=30.0)
    expected, error = exact(kind, a.astype(np.float64), None, 30.0)
    assert (np.abs(result - expected) <= error).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_number_shows(kernels: Kernels, kind: str) -> None:
    a = np.array([[np.nan, np.inf, 1.0, np.nan]], np.float32)
    if kind == "sigmoid_of_row":
        assert np.isnan(activate(kernels, kind, a)).all()
        return
    result = activate(kernels, kind, a, np.ones_like(a) if kind in TWO_INPUTS else None, factor=30.0)
    assert np.isnan(result[0, [0, 3]]).all()
    assert np.isfinite(result[0, 2])
    if kind not in ("softcap", "sigmoid", "swiglu_clamped"):  # which lead everything into its range
        assert not np.isfinite(result[0, 1])
    gate = activate(kernels, kind, np.ones_like(a), a, factor=30.0)
    assert np.isnan(gate[0, [0, 3]]).all()


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_quantized_at_once(kernels: Kernels, kind: str, fine: bool) -> None:
    a, b = np.random.default_rng(1).standard_normal((2, 5, 96)).astype(np.float32)
    alone = activate(kernels, kind, a, b, 2.0)
    expected = kernels.quantize(np.ascontiguousarray(alone), fine)
    for threads in (1, 2, 3, 7):
        made = Activations.empty(5, 96, fine)
        assert np.array_equal(activate(kernels, kind, a, b, 2.0, threads, made), alone)
        assert np.array_equal(made.codes, expected.codes)
        assert np.array_equal(made.scales, expected.scales)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 5),
    heads=st.integers(1, 3),
    pairs=st.sampled_from([1, 2, 4, 7, 10, 40]),
    rest=st.sampled_from([0, 1, 5, 16]),
    interleaved=st.booleans(),
    threads=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_rope(
    kernels: Kernels, rows: int, heads: int, pairs: int, rest: int, interleaved: bool, threads: int, seed: int
) -> None:
    """Two products and their sum: two roundings each."""
    generator = np.random.default_rng(seed)
    width = 2 * pairs + rest
    values, untouched = outlined(rows, heads * width)
    values[...] = generator.standard_normal(values.shape)
    before = values.astype(np.float64).reshape(rows, heads, width)
    cosines, sines = generator.standard_normal((2, rows, pairs)).astype(np.float32)
    record = Record(
        ROPE, rows=np.array([rows]), heads=heads, width=width, pairs=pairs, values=values, stride=values.strides[0],
        cosines=cosines, sines=sines,
    )  # fmt: skip
    name = "rope.interleaved" if interleaved else "rope.halves"
    if threads == 0:
        kernels.call_flushing(name, record)
    else:
        kernels.call(name, record, threads)
    assert untouched()

    first = slice(0, 2 * pairs, 2) if interleaved else slice(0, pairs)
    second = slice(1, 2 * pairs, 2) if interleaved else slice(pairs, 2 * pairs)
    x, y = before[..., first], before[..., second]
    c, s = cosines[:, None].astype(np.float64), sines[:, None].astype(np.float64)
    after = values.reshape(rows, heads, width)
    size = gamma(2)
    assert (np.abs(after[..., first] - (x * c - y * s)) <= size * (np.abs(x * c) + np.abs(y * s)) + 2 * TINY).all()
    assert (np.abs(after[..., second] - (y * c + x * s)) <= size * (np.abs(y * c) + np.abs(x * s)) + 2 * TINY).all()
    assert np.array_equal(after[..., 2 * pairs :], before[..., 2 * pairs :])


@pytest.mark.parametrize("width", [1, 16, 33])
@pytest.mark.parametrize("chosen", [[0], [3, 3, 0], [4, 2, 1, 0, 4]])
def test_selected_rows(kernels: Kernels, width: int, chosen: list[int]) -> None:
    x = np.random.default_rng(1).standard_normal((5, padded(width))).astype(np.float32)
    output, untouched = outlined(len(chosen), padded(width))
    record = Record(
        ROWS, rows=np.array([len(chosen)]), width=padded(width), input=x, input_stride=x.strides[0],
        output=output, output_stride=output.strides[0], index=np.array(chosen, np.int32),
    )  # fmt: skip
    for threads in (1, 2, 4):
        output[...] = 0
        kernels.call("rows.select", record, threads)
        assert np.array_equal(output, x[chosen])
        assert untouched()


@pytest.mark.parametrize("tier", ["plain", "native"])
def test_denormal_numbers_count_as_zero_in_a_plan_only(tier: str) -> None:
    """One denormal operand costs a hundred cycles; but the calling thread may be an application's own, where they
    must count again afterwards."""
    kernels = load_kernels(tier)
    small = np.full((1, 64), 1e-41, np.float32)
    output = np.ones((1, 64), np.float32)
    record = Record(
        ACTIVATION, rows=np.array([1]), width=64, a=small, a_stride=256, b=np.zeros_like(small), b_stride=256,
        output=output, output_stride=256, factor=np.zeros(1, np.float32),
    )  # fmt: skip
    kernels.call_flushing("activation.add", record)
    assert not output.any()
    kernels.call("activation.add", record)  # in this very thread, right after
    assert np.array_equal(output, small)
    assert np.array_equal(small * np.float32(2), np.full((1, 64), 2e-41, np.float32))


def test_constants_are_those_of_the_graph() -> None:
    """Which kernels do not import."""
    assert (activation.SWIGLU_SLOPE, activation.SWIGLU_LIMIT) == (SWIGLU_SLOPE, SWIGLU_LIMIT)
