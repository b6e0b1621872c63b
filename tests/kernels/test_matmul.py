"""Products of weights and activations against exact arithmetic on the decoded weights, for every weight type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import (
    TIERS,
    TINY,
    gamma,
    load_kernels,
    matmul_kernel,
    matmul_record,
    outlined,
    padded,
    product_extras,
)
from numpy.typing import NDArray
from weight_blocks import (
    FLOAT_TYPES,
    NOT_FINITE_HALVES,
    QUANTIZED_TYPES,
    SHAPES,
    decoded,
    offsets,
    random_blocks,
    random_floats,
)

from edgellm.gguf import TensorType
from edgellm.kernels import floats
from edgellm.kernels.records import MATMUL

Doubles = NDArray[np.float64]
LARGEST = float(np.finfo(np.float32).max)
WEIGHT_ROWS, INPUT_ROWS, BLOCKS = (1, 15, 16, 17, 37), (1, 2, 4, 5, 9, 70), (1, 2, 3)
CASES = given(
    seed=st.integers(0, 2**32 - 1),
    weight_rows=st.sampled_from(WEIGHT_ROWS),
    rows=st.sampled_from(INPUT_ROWS),
    blocks=st.sampled_from(BLOCKS),
    scales=st.sampled_from(["ordinary", "extreme"]),
    values=st.sampled_from(["ordinary", "zeros", "huge", "tiny", "outlier"]),
    bias=st.booleans(),
    accumulate=st.booleans(),
    threads=st.sampled_from([0, 1, 2, 3]),
    following=st.booleans(),
)


def activations(rows: int, columns: int, kind: str, generator: np.random.Generator) -> NDArray[np.float32]:
    """(rows, columns) float32."""
    x = generator.standard_normal((rows, columns))
    if kind == "zeros":
        x[:] = 0
    elif kind == "huge":
        x *= 10.0 ** generator.integers(20, 38, (rows, 1))
        x = np.clip(x, -LARGEST, LARGEST)
    elif kind == "tiny":
        x *= 10.0 ** generator.integers(-45, -25, (rows, 1))
    elif kind == "outlier":
        x[np.arange(rows), generator.integers(0, columns, rows)] *= 1e4
    return x.astype(np.float32)


def multiply(
    tier: str, type_name: str, raw: NDArray[np.uint8], x: NDArray[np.float32], bias: Any = None, before: Any = None,
    threads: int = 1, fine: bool = False, following: bool = False,
) -> tuple[NDArray[np.float32], Doubles]:  # fmt: skip
    """The kernel's result and the activations that it was given: (rows, parts, columns) as they were quantized.

    Threads 0 stands for one thread that takes denormal numbers as zero. ``following``: another product comes next,
    with weights far away.
    """
    kernels = load_kernels(tier)
    matrix = kernels.pack(raw, type_name, x.shape[1], threads or 1)
    output, untouched = outlined(len(x), padded(len(raw)))
    more = product_extras(output, len(raw), bias, before)
    inputs = x if type_name in FLOAT_TYPES else kernels.quantize(x, fine)
    used = x.astype(np.float64)[:, None] if isinstance(inputs, np.ndarray) else inputs.values
    record = matmul_record(matrix, inputs, output, **more)
    if following:
        following_record = matmul_record(kernels.pack(raw, type_name, x.shape[1], 1), inputs, output)
        record.values[MATMUL.following // 8] = following_record.values.ctypes.data
    if threads == 0:
        kernels.call_flushing(matmul_kernel(type_name, fine), record)
    else:
        kernels.call(matmul_kernel(type_name, fine), record, threads)
    assert untouched()
    return output[:, : len(raw)], used


def check(
    result: NDArray[np.float32], exact: Doubles, size: Doubles, roundings: int, lost: Doubles, largest: Doubles
) -> None:
    """Each result is exact but for its roundings: ``size`` is the sum of the magnitudes of all terms.

    Where ``largest``, a bound of all numbers on the way, comes near the largest float32, infinity and NaN are right
    too: a wrong number never is.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        close = np.abs(result - exact) <= gamma(roundings) * size + lost
    assert (close | ((largest > LARGEST / 4) & ~np.isfinite(result))).all()


def extras(
    rows: int, weight_rows: int, bias: bool, accumulate: bool, generator: np.random.Generator
) -> tuple[Any, Any, Doubles, Doubles]:
    """A bias, what the output holds before, the sum of both, and the sum of their magnitudes."""
    bias_values = generator.standard_normal(weight_rows).astype(np.float32) if bias else None
    before = generator.standard_normal((rows, weight_rows)).astype(np.float32) if accumulate else None
    parts = [np.zeros((rows, weight_rows))] + [part for part in (bias_values, before) if part is not None]
    return bias_values, before, sum(parts), sum(map(np.abs, parts))


@pytest.mark.parametrize("type_name", QUANTIZED_TYPES)
@pytest.mark.parametrize("tier", [*TIERS, "fine"])
@settings(deadline=None, max_examples=20)
@CASES
def test_quantized_weights(
    tier: str, type_name: str, seed: int, weight_rows: int, rows: int, blocks: int, scales: str, values: str,
    bias: bool, accumulate: bool, threads: int, following: bool,
) -> None:  # fmt: skip
    """A block with offset o adds scale * (d * sum of integers) and o * (d * sum of the activations' codes).

    The integer sum and the scales are exact. The roundings between a term and the result are: at most two in the
    block's sum of activations (its d, its product) or one where the integer sum is multiplied by d; one
    multiplication; one addition for each of the terms, and for the sum of both parts of the activations; and one for
    bias and accumulation each. The exact result comes from weights that the codec rounded twice itself.
    """
    generator = np.random.default_rng(seed)
    raw = random_blocks(type_name, weight_rows, blocks, scales, generator)
    span = SHAPES[type_name].span
    x = activations(rows, blocks * TensorType[type_name].block_size, values, generator)
    bias_values, before, more, more_size = extras(rows, weight_rows, bias, accumulate, generator)
    fine = tier == "fine"
    actual = "native" if fine else tier
    result, parts = multiply(actual, type_name, raw, x, bias_values, before, threads, fine, following)

    weights, offset = decoded(raw, type_name), offsets(raw, type_name)
    used = np.abs(parts).sum(axis=1)
    exact = parts.sum(axis=1) @ weights.T + more
    sums = np.abs(parts.reshape(*parts.shape[:2], -1, span).sum(axis=3)).sum(axis=1)  # of each sub-block's activations
    size = used @ np.abs(weights - offset).T + sums @ np.abs(offset[:, ::span]).T + more_size
    terms = 2 * weights.shape[1] // span
    # A flushed product is wrong by TINY at most, times the weight's scale if that comes after it.
    scale = np.abs(weights - offset).max(axis=1) + np.abs(offset).max(axis=1)
    flushed = 2 * TINY * (terms * (2 + scale) + 32 * np.abs(weights).sum(axis=1))
    codec = gamma(2) * used @ np.abs(weights).T
    # Before the scale is applied there are activations times codes of up to 255.
    largest = np.maximum(size, 256 * used.sum(axis=1)[:, None])
    check(result, exact, size, terms + 2 + 1 + 1 + 2, codec + flushed, largest)


@pytest.mark.parametrize("type_name", FLOAT_TYPES)
@pytest.mark.parametrize("tier", TIERS)
@settings(deadline=None, max_examples=20)
@CASES
def test_float_weights(
    tier: str, type_name: str, seed: int, weight_rows: int, rows: int, blocks: int, scales: str, values: str,
    bias: bool, accumulate: bool, threads: int, following: bool,
) -> None:  # fmt: skip
    """A plain sum of products: one rounding for the product, one for each addition. Activations stay float32."""
    generator = np.random.default_rng(seed)
    columns = int(generator.choice([1, 3, 4, 31, 64])) * blocks
    raw = random_floats(type_name, weight_rows, columns, scales, generator)
    x = activations(rows, columns, values, generator)
    bias_values, before, more, more_size = extras(rows, weight_rows, bias, accumulate, generator)
    result, parts = multiply(tier, type_name, raw, x, bias_values, before, threads, following=following)
    weights, used = decoded(raw, type_name), parts[:, 0]
    exact, size = used @ weights.T + more, np.abs(used) @ np.abs(weights).T + more_size
    # A flushed weight or activation takes its product along.
    lost = TINY * (columns + np.abs(used).sum(axis=1)[:, None] + np.abs(weights).sum(axis=1))
    check(result, exact, size, columns + 3, lost, size)


@pytest.mark.parametrize("rows", [1, 4, 8, 13])
@pytest.mark.parametrize("type_name", FLOAT_TYPES)
@pytest.mark.parametrize("tier", TIERS)
def test_rounding_errors_do_not_grow_with_the_width(tier: str, type_name: str, rows: int) -> None:
    """Sums of thousands of equal products, each rounded in the same direction for long, have the roundings of one span,
    of joining the four sums of a single row, and of the result."""
    columns = 8192 + 5
    raw = np.tile(random_floats(type_name, 64, 1, "ordinary", np.random.default_rng(5)), (1, columns))
    result, _ = multiply(tier, type_name, raw, np.ones((rows, columns), np.float32))
    exact = decoded(raw, type_name).sum(axis=1)
    roundings = max(floats.SPAN, floats.ROW_SPAN // 4 + 2) + 1
    assert (np.abs(result - exact) <= gamma(roundings) * np.abs(exact) + columns * TINY).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("rows", [1, 4, 8])
@pytest.mark.parametrize("tier", TIERS)
def test_sums_beyond_float32_are_infinite(tier: str, rows: int, sign: int) -> None:
    """What is rounded off them is no number."""
    raw = np.full((32, 100), 3e38, np.float32).view(np.uint8)
    result, _ = multiply(tier, "F32", raw, np.full((rows, 100), sign, np.float32))
    assert (result == sign * np.inf).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type_name", [*QUANTIZED_TYPES, *FLOAT_TYPES])
@pytest.mark.parametrize("tier", [*TIERS, "fine"])
def test_an_activation_that_is_no_number_shows_in_all_results_of_its_row_and_in_no_other(
    tier: str, type_name: str, bad: float
) -> None:
    generator = np.random.default_rng(1)
    blocks = 64 if type_name in FLOAT_TYPES else 2
    make = random_floats if type_name in FLOAT_TYPES else random_blocks
    raw = make(type_name, 17, blocks, "ordinary", generator)
    x = activations(6, blocks * TensorType[type_name].block_size, "ordinary", generator)
    for row, column in ((1, 0), (3, 13), (4, x.shape[1] - 1), (5, 16)):  # in tiles and in rows by themselves
        x[row, column] = bad
    fine = tier == "fine" and type_name not in FLOAT_TYPES
    result, _ = multiply("native" if tier == "fine" else tier, type_name, raw, x, fine=fine)
    assert not np.isfinite(result[[1, 3, 4, 5]]).any()
    assert np.isfinite(result[[0, 2]]).all()


@pytest.mark.parametrize("half", NOT_FINITE_HALVES)
@pytest.mark.parametrize("type_name", QUANTIZED_TYPES)
@pytest.mark.parametrize("tier", TIERS)
def test_a_scale_that_is_no_number_shows_in_the_results(tier: str, type_name: str, half: np.uint16) -> None:
    generator = np.random.default_rng(2)
    shape, size = SHAPES[type_name], TensorType[type_name].block_bytes
    for offset in shape.halves:
        raw = random_blocks(type_name, 18, 3, "ordinary", generator)
        raw.reshape(18, 3, size)[[0, 17], 1, offset : offset + 2] = half.reshape(1).view(np.uint8)
        x = activations(5, 3 * TensorType[type_name].block_size, "ordinary", generator)
        result, _ = multiply(tier, type_name, raw, x)
        assert not np.isfinite(result[:, [0, 17]]).any()
        assert np.isfinite(result[:, 1:17]).all()


@pytest.mark.parametrize("type_name", [*QUANTIZED_TYPES, *FLOAT_TYPES])
def test_all_threads_and_tiles_give_the_same_bits(type_name: str) -> None:
    """A row's result depends neither on who computes it nor on the rows beside it in the quantized formats."""
    generator = np.random.default_rng(3)
    blocks = 64 if type_name in FLOAT_TYPES else 2
    make = random_floats if type_name in FLOAT_TYPES else random_blocks
    raw = make(type_name, 50, blocks, "ordinary", generator)
    x = activations(67, blocks * TensorType[type_name].block_size, "ordinary", generator)
    one, _ = multiply("native", type_name, raw, x)
    for threads in (2, 3, 7):
        assert np.array_equal(multiply("native", type_name, raw, x, threads=threads)[0], one)
    if type_name not in FLOAT_TYPES:
        for row in (0, 5, 66):
            alone, _ = multiply("native", type_name, raw, x[row : row + 1])
            assert np.array_equal(alone[0], one[row])


def test_the_byte_products_agree_between_all_instruction_sets() -> None:
    """The integer sums are exact everywhere, so that only the roundings of sums of floats may differ: extreme codes
    against extreme activations would show a saturating instruction."""
    raw = np.zeros((16, 34), np.uint8)
    raw[:, 0:2] = np.array([1], np.float16).view(np.uint8)
    raw[:, 2:] = np.where(np.arange(32) % 2, 0x7F, 0x80).astype(np.uint8)  # 127 and -128
    x = np.where(np.arange(32) % 2, 127, -127).astype(np.float32)[None]
    for tier in TIERS:
        result, _ = multiply(tier, "Q8_0", raw, x)
        assert (result == 16 * (127 * 127 + 128 * 127)).all()
