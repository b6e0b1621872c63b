"""Compiled quantizers against the same search in NumPy, against plain rounding, and against an exhaustive search."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import TIERS, load_kernels
from numpy.typing import NDArray
from reference_quantizers import requantized

from edgellm.convert.encode import encode
from edgellm.gguf import TensorType, decode
from edgellm.kernels.quantizer_memory import KINDS, SCRATCH_BYTES
from edgellm.kernels.quantizer_schemes import SCHEMES
from edgellm.quantize.rows import RowQuantizer, ValueRangeError

Float32 = NDArray[np.float32]
KINDS_OF_VALUES = ["ordinary", "zeros", "tiny", "outlier", "constant", "steps", "positive", "heavy", "denormal"]


@cache
def quantizer() -> RowQuantizer:
    return RowQuantizer([(TensorType[name], weighted) for name in SCHEMES for weighted in (False, True)])


def quantized(values: Float32, name: str, importance: Float32 | None = None) -> Float32:
    raw = quantizer().quantize(values.view(np.uint8), TensorType.F32, TensorType[name], importance)
    return decode(raw, TensorType[name])


def made(kind: str, count: int, largest: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """Values of a block."""
    x = generator.standard_normal(count) * 0.05
    match kind:
        case "zeros":
            return generator.choice([0.0, -0.0], count)
        case "tiny":
            return x * 10.0 ** generator.uniform(-40, -5)
        case "denormal":
            return x * 1e-43
        case "outlier":
            x[generator.integers(count)] = generator.choice([-1, 1]) * largest * generator.uniform(0.1, 0.99)
        case "constant":
            return np.full(count, x[0])
        case "steps":
            return np.round(x / 0.02) * 0.02
        case "positive":
            return np.abs(x) + generator.uniform(0, 3)
        case "heavy":
            return generator.standard_t(2, count) * 0.05
    return x


def sample(
    name: str, rows: int, blocks: int, kinds: list[str], generator: np.random.Generator
) -> tuple[Float32, NDArray[np.float64]]:
    scheme = SCHEMES[name]
    count = scheme.group * scheme.groups
    parts = [
        made(kinds[number % len(kinds)], count, min(scheme.largest, 1e5), generator) for number in range(rows * blocks)
    ]
    values = np.concatenate(parts).astype(np.float32).reshape(rows, -1)
    return values, generator.uniform(0.01, 4, values.shape[1])


def block_errors(name: str, values: Float32, got: Float32, weights: NDArray[np.float64] | float) -> NDArray[np.float64]:
    scheme = SCHEMES[name]
    errors = weights * (got.astype(np.float64) - values) ** 2
    total: NDArray[np.float64] = errors.reshape(-1, scheme.group * scheme.groups).sum(axis=1)
    return total


def half_rounding(name: str, values: Float32, weights: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Most that blocks' errors change with how scale and minimum are rounded to half precision.

    Each is off by 2^-12 of itself, or by 2^-25 where it is denormal; a value is at most 4096 (63 * 63 and the like)
    times the scale of a superblock, 255 times that of a smaller block.
    """
    scheme = SCHEMES[name]
    size = scheme.group * scheme.groups
    largest = np.abs(values.astype(np.float64)).reshape(-1, size).max(axis=1)
    spread = np.broadcast_to(weights, values.shape).reshape(-1, size).sum(axis=1)
    step = 2.0**-11 * largest + 2.0**-25 * (4096 if scheme.multiples else 255)
    return np.asarray(spread * step**2, np.float64)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", SCHEMES)
@settings(deadline=None, max_examples=15, derandomize=True)  # of many trials a few find another local optimum
@given(
    rows=st.integers(1, 7),
    blocks=st.integers(1, 5),
    kinds=st.lists(st.sampled_from(KINDS_OF_VALUES), min_size=1, max_size=3),
    seed=st.integers(0, 2**32 - 1),
)
def test_as_good_as_the_search_in_numpy(
    name: str, weighted: bool, rows: int, blocks: int, kinds: list[str], seed: int
) -> None:
    """Sums in another order let another of two trials win that are as good but for the rounding of float32: blocks
    differ a little, the more the finer the type. Beside an outlier they differ by what float32 does not see, and by how
    its minimum happens to be rounded to half precision."""
    values, weights = sample(name, rows, blocks, kinds, np.random.default_rng(seed))
    importance = weights.astype(np.float32) if weighted else None
    got = quantized(values, name, importance)
    assert np.isfinite(got).all()
    expected = requantized(values, name, importance)
    own: NDArray[np.float64] | float = weights if weighted else 1.0
    errors, others = block_errors(name, values, got, own), block_errors(name, values, expected, own)
    squares = block_errors(name, values, np.zeros_like(values), own)
    # Of two trials that are as good, groups' scales rounded together may suit one better than the other.
    slack = (1e-4 if SCHEMES[name].multiples else 1.5e-5) * squares + half_rounding(name, values, own) + 1e-30
    factor = 1.6 if name in ("Q2_K", "Q3_K") else 1.3
    assert (errors <= factor * others + slack).all()
    assert (others <= factor * errors + slack).all()
    if not weighted and name != "TQ1_0":
        assert (errors <= squares + slack).all()  # never worse than nothing at all


def plain_rounding(name: str, values: Float32) -> Float32:
    """Each group's range spread over the codes, rounded; scales are not rounded at all."""
    scheme = SCHEMES[name]
    x = values.reshape(-1, scheme.group).astype(np.float64)
    if scheme.has_minima:
        low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
        if scheme.multiples:
            low = np.minimum(low, 0)
        scale = (high - low) / scheme.high
        return (np.rint((x - low) / scale) * scale + low).astype(np.float32).reshape(values.shape)
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    scale = peak / scheme.low
    return (np.clip(np.rint(x / scale), scheme.low, scheme.high) * scale).astype(np.float32).reshape(values.shape)


@pytest.mark.parametrize("spread", ["normal", "laplace"])
@pytest.mark.parametrize("name", [name for name, scheme in SCHEMES.items() if not scheme.by_table])
def test_better_than_plain_rounding(name: str, spread: str) -> None:
    generator = np.random.default_rng(3)
    draw = generator.standard_normal if spread == "normal" else generator.laplace
    values = (draw(size=(64, 1536)) * 0.05).astype(np.float32)
    error = block_errors(name, values, quantized(values, name), 1.0).sum()
    plain = block_errors(name, values, plain_rounding(name, values), 1.0).sum()
    # By how much depends on the number of codes; scales of groups that are rounded themselves cost a little.
    assert error < {"Q5_K": 1.0, "Q6_K": 1.0, "Q4_K": 0.95, "Q8_0": 0.97}.get(name, 0.95) * plain


@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "TQ2_0"])
def test_near_the_best_scale_there_is(name: str) -> None:
    """All scales of half precision that could be any good are tried for each group."""
    scheme = SCHEMES[name]
    generator = np.random.default_rng(5)
    values = (generator.standard_normal((24, 256)) * 0.05).astype(np.float32)
    errors = block_errors(name, values, quantized(values, name), 1.0)
    x = values.reshape(-1, scheme.group).astype(np.float64)
    best = np.full(len(x), np.inf)
    peak = np.abs(x).max(axis=1)
    steps = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float64)
    largest = 113 if scheme.by_table else scheme.high
    for factor in np.linspace(0.25 if largest == 1 else 0.7, 1.25, 1500):
        for sign in (-1, 1):
            scale = (sign * peak * factor / largest).astype(np.float16).astype(np.float64)[:, None]
            scaled = x / scale
            if scheme.by_table:
                codes = steps[np.searchsorted((steps[1:] + steps[:-1]) / 2, scaled)]
            else:
                codes = np.clip(np.rint(scaled), scheme.low, scheme.high)
            best = np.minimum(best, ((codes * scale - x) ** 2).sum(axis=1))
    assert errors.sum() <= {"Q8_0": 1.12, "TQ2_0": 1.002}.get(name, 1.04) * best.sum()


@pytest.mark.parametrize("name", SCHEMES)
def test_what_the_type_holds_exactly_is_kept(name: str) -> None:
    """Numbers of few bits are found again: ternary ones in ternary types, small integers elsewhere."""
    scheme = SCHEMES[name]
    generator = np.random.default_rng(7)
    low, high = (-1, 1) if scheme.by_table else (scheme.low, scheme.high)
    values = generator.integers(low, high + 1, (5, 512)).astype(np.float32)
    values.reshape(-1, scheme.group)[:, 0] = low
    values.reshape(-1, scheme.group)[:, 1] = high
    if scheme.by_table:
        values *= 0  # the table has no two entries of equal magnitude
    got = quantized(values, name)
    if scheme.has_minima and scheme.multiples:  # a 63rd or 15th of a step is no number of half precision
        assert np.allclose(got, values, rtol=2e-3, atol=1e-3)
    else:
        assert np.array_equal(got, values)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_numbers_that_cannot_be_held_are_refused(name: str, weighted: bool, bad: float) -> None:
    values = np.ones((3, 512), np.float32)
    values[2, 511] = bad
    importance = np.ones(512, np.float32) if weighted else None
    with pytest.raises(ValueRangeError, match="not finite" if not np.isfinite(bad) else "too large"):
        quantized(values, name, importance)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_is_read(kind: str) -> None:
    values = (np.random.default_rng(11).standard_normal((9, 800)) * 0.1).astype(np.float32)
    raw = encode(values, "F32", TensorType[kind]).reshape(9, -1)
    read = decode(raw, TensorType[kind])
    for name in ("Q4_0", "Q5_1"):
        direct = quantizer().quantize(raw, TensorType[kind], TensorType[name])
        assert np.array_equal(direct, quantizer().quantize(read.view(np.uint8), TensorType.F32, TensorType[name]))


def test_a_source_without_a_reader_is_decoded() -> None:
    values = (np.random.default_rng(13).standard_normal((4, 512)) * 0.1).astype(np.float32)
    raw = quantizer().quantize(values.view(np.uint8), TensorType.F32, TensorType.Q6_K)
    again = quantizer().quantize(raw, TensorType.Q6_K, TensorType.Q6_K)
    read = decode(raw, TensorType.Q6_K)
    assert ((decode(again, TensorType.Q6_K) - read) ** 2).sum() <= ((read - values) ** 2).sum()


def test_importance_moves_the_error_to_where_it_matters_less() -> None:
    values = (np.random.default_rng(17).standard_normal((64, 512)) * 0.05).astype(np.float32)
    importance = np.full(512, 0.01, np.float32)
    importance[::8] = 10
    for name in SCHEMES:
        plain, weighed = quantized(values, name), quantized(values, name, importance)
        matter = (slice(None), slice(0, None, 8))
        assert ((weighed - values)[matter] ** 2).sum() < 0.97 * ((plain - values)[matter] ** 2).sum(), name


@pytest.mark.parametrize("tier", [tier for tier in TIERS if tier != "native"])
@pytest.mark.parametrize("variant", ["Q8_0", "Q5_K_weighted", "IQ4_XS"])
def test_every_instruction_set_is_as_good(tier: str, variant: str) -> None:
    kernels = load_kernels(tier)
    name = variant.removesuffix("_weighted")
    kind = TensorType[name]
    values = (np.random.default_rng(19).standard_normal((5, 768)) * 0.05).astype(np.float32)
    importance = np.random.default_rng(23).uniform(0.1, 2, 768).astype(np.float32)
    blocks = values.size // kind.block_size
    for threads in (1, 3):
        out = np.full(blocks * kind.block_bytes + 64, 0x5A, np.uint8)
        memory, problem = np.zeros(threads * SCRATCH_BYTES, np.uint8), np.zeros(1, np.int64)
        addresses = [array.ctypes.data for array in (importance, out, memory, problem)]
        record = np.array([values.ctypes.data, 0, blocks, 768, *addresses], np.int64)
        kernels.call(f"quantizer.{variant}", record, threads)
        assert (out[-64:] == 0x5A).all()
        got = decode(out[:-64].reshape(5, -1), kind)
        own = importance if "weighted" in variant else None
        error = ((got - values) ** 2 * (1 if own is None else own)).sum()
        native = ((quantized(values, name, own) - values) ** 2 * (1 if own is None else own)).sum()
        assert abs(error - native) < 0.01 * native
