"""Quantized activations against the definition: codes, block scales, block sums and remainders."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import TIERS, TINY, UNIT, Activations, Record, load_kernels
from numpy.typing import NDArray

from edgellm.kernels.records import QUANTIZE

NOTHING = 1e-30  # a block whose largest magnitude is no more than this counts as zero


def inputs(rows: int, blocks: int, kinds: list[str], seed: int) -> NDArray[np.float32]:
    """(rows, 32 * blocks) float32; block i is of kind i, in turn."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((rows * blocks, 32))
    for number in range(len(x)):
        match kinds[number % len(kinds)]:
            case "zeros":
                x[number] = generator.choice([0.0, -0.0], 32)
            case "huge":
                x[number] *= 10.0 ** generator.uniform(30, 38.5)
            case "tiny":
                x[number] *= 10.0 ** generator.uniform(-45, -28)
            case "outlier":
                x[number, generator.integers(32)] *= 1e5
            case "halves":  # ties: x / d = n + 1/2 exactly
                x[number] = generator.integers(-126, 127, 32) + 0.5
                x[number, 0] = 127
    largest = 0.99 * float(np.finfo(np.float32).max)  # 127 d, rounded, must not be more than the largest float32
    return np.clip(x, -largest, largest).astype(np.float32).reshape(rows, -1)


def run(tier: str, x: NDArray[np.float32], fine: bool, threads: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes (parts, blocks, 32) and scales (parts, blocks, 4)."""
    kernels = load_kernels(tier)
    made = Activations.empty(len(x), x.shape[1], fine)
    record = Record(
        QUANTIZE, rows=np.array([len(x)]), blocks=x.shape[1] // 32, input=x, input_stride=x.strides[0], **made.fields
    )  # fmt: skip
    if threads == 0:
        kernels.call_flushing("quantize.all", record)
    else:
        kernels.call("quantize.all", record, threads)
    parts = made.codes.shape[1]
    return made.codes.swapaxes(0, 1).reshape(parts, -1, 32), made.scales.swapaxes(0, 1).reshape(parts, -1, 4)


@pytest.mark.parametrize("tier", TIERS)
@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 5),
    blocks=st.integers(1, 4),
    kinds=st.lists(st.sampled_from(["ordinary", "zeros", "huge", "tiny", "outlier", "halves"]), min_size=1, max_size=3),
    seed=st.integers(0, 2**32 - 1),
    fine=st.booleans(),
    threads=st.sampled_from([0, 1, 2, 3]),
)
def test_codes_and_scales(
    tier: str, rows: int, blocks: int, kinds: list[str], seed: int, fine: bool, threads: int
) -> None:
    """d is max |x| / 127 rounded once; x / d is computed with two roundings (of 127 / max |x|, of the product), so a
    code is the nearest integer but for 2 * 127 units, and a remainder, after one more subtraction and with 254 times
    the scale, but for 5 * 127 units; sums of codes are exact and rounded once, with a d that was not rounded yet."""
    x = inputs(rows, blocks, kinds, seed)
    codes, scales = run(tier, x, fine, threads)
    values = x.reshape(-1, 32).astype(np.float64)
    peak = np.abs(values).max(axis=1)
    d = peak / 127
    assert codes.min() >= -127
    something = peak > NOTHING
    rest = values - codes[0] * d[:, None]
    assert (np.abs(rest[something]) <= (d[something] * (0.5 + 4 * 127 * UNIT))[:, None]).all()
    assert not codes[:, ~something].any()
    if fine:
        finer = d[:, None] / 254
        rest = rest - codes[1] * finer
        # The remainder's own rounding, and that of d * code before it where that is not fused.
        error = finer * (0.5 + 8 * 127 * UNIT) + 127 * d[:, None] * 3 * UNIT
        assert (np.abs(rest[something]) <= error[something]).all()
    for part, unit in enumerate((d, d / 254)[: len(codes)]):
        numbers = codes[part].astype(np.float64)
        low, high = numbers[:, :16].sum(axis=1), numbers[:, 16:].sum(axis=1)
        expected = np.stack([unit, unit * (low + high), unit * low, unit * high], axis=1)
        overflow = np.abs(expected) > float(np.finfo(np.float32).max)
        with np.errstate(invalid="ignore"):
            close = np.abs(scales[part] - expected) <= 2 * UNIT * np.abs(expected) + TINY
        assert (close | (overflow & np.isinf(scales[part]))).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tier", TIERS)
def test_a_value_that_is_no_number_spoils_its_block_alone(tier: str, bad: float) -> None:
    for column in range(32, 64):
        x = inputs(2, 3, ["ordinary"], 1)
        x[1, column] = bad
        _, scales = run(tier, x, True, 1)
        assert np.isnan(scales[:, 4]).all()
        assert np.isfinite(np.delete(scales, 4, axis=1)).all()


def test_every_instruction_set_gives_the_same_codes() -> None:
    x = inputs(20, 8, ["ordinary", "outlier", "halves", "huge", "tiny"], 2)
    expected_codes, expected_scales = run("native", x, False, 1)
    for tier in TIERS:
        codes, scales = run(tier, x, False, 3)
        assert np.array_equal(codes, expected_codes)
        assert np.array_equal(scales, expected_scales)
