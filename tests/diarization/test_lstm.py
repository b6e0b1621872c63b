"""Layers of long short-term memory on codes of 8 bits: the kernel against NumPy, and NumPy against exact arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import load_kernel
from network_reference import lstm_layer
from numpy.typing import NDArray

from edgellm.diarization.lstm import FULL, ZERO, Codes, Direction, LSTMKernel, quantized_direction, run_direction

UNTOUCHED = 7


def _direction(random: np.random.Generator, units: int, width: int, scale: float, backward: bool) -> Direction:
    def values(*shape: int) -> NDArray[np.float32]:
        return np.asarray(scale * random.standard_normal(shape) / np.sqrt(units), np.float32)

    return quantized_direction(values(4 * units, width), values(4 * units, units), 3 * values(4 * units), backward)


def _close(found: Codes, expected: Codes) -> bool:
    """Functions of the gates differ in the last place, so that a state between two codes may go either way, and what
    follows with it.
    """
    differences = np.abs(found.astype(int) - expected)
    return differences.max(initial=0) <= 3 and (differences > 0).sum() <= 0.02 * differences.size


@pytest.mark.parametrize("tier", ["plain", "native"])  # tests of the products run on all
@settings(max_examples=25, deadline=None)
@given(
    units=st.sampled_from([16, 48, 128]),
    width=st.sampled_from([0, 4, 60, 256]),
    rows=st.integers(0, 9),
    steps=st.integers(0, 12),
    scale=st.sampled_from([0.0, 1.0, 1e4]),
    backward=st.booleans(),
    own_starts=st.booleans(),
    seed=st.integers(0, 99),
)
def test_kernel_is_the_reference(
    tier: str,
    units: int,
    width: int,
    rows: int,
    steps: int,
    scale: float,
    backward: bool,
    own_starts: bool,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    layer = _direction(random, units, width, scale, backward)
    inputs = random.integers(0, 256, (steps, rows, width + 4)).astype(np.uint8)[:, :, 2 : 2 + width]
    starts = None
    if own_starts:
        starts = np.asarray(scale * random.standard_normal((steps, rows, 4 * units)), np.float32)
    room = np.full((steps, rows, units + 2), UNTOUCHED, np.uint8)
    run = LSTMKernel(*load_kernel(tier, "lstm.int8"), layer)
    run(inputs, room[:, :, 1 : 1 + units], None if starts is None else layer.start(starts))
    assert _close(room[:, :, 1 : 1 + units], run_direction(layer, inputs, starts))
    assert (room[:, :, 0] == UNTOUCHED).all()
    assert (room[:, :, -1] == UNTOUCHED).all()


def test_wrong_shapes_are_refused() -> None:
    layer = _direction(np.random.default_rng(0), 16, 4, 1.0, False)
    run = LSTMKernel(*load_kernel("native", "lstm.int8"), layer)
    inputs, output = np.zeros((3, 2, 4), np.uint8), np.zeros((3, 2, 16), np.uint8)
    for bad in (inputs[:2], inputs[:, :1], inputs[:, :, :3]):
        with pytest.raises(ValueError, match="inputs"):
            run(bad, output)
    with pytest.raises(ValueError, match="starts"):
        run(inputs, output, np.zeros((3, 2, 63), np.float32))
    with pytest.raises(ValueError, match="side by side"):
        run(inputs, np.zeros((3, 2, 32), np.uint8)[:, :, ::2])
    with pytest.raises(ValueError, match="multiples"):
        LSTMKernel(*load_kernel("native", "lstm.int8"), _direction(np.random.default_rng(0), 20, 4, 1.0, False))


@pytest.mark.parametrize("backward", [False, True])
def test_codes_lose_little(backward: bool) -> None:
    random = np.random.default_rng(3)
    steps, width, units = 200, 64, 32
    of_input = random.uniform(-0.3, 0.3, (4 * units, width)).astype(np.float32)
    of_state = random.uniform(-0.3, 0.3, (4 * units, units)).astype(np.float32)
    bias = random.uniform(-0.3, 0.3, 4 * units).astype(np.float32)
    codes = random.integers(1, 256, (steps, 1, width)).astype(np.uint8)
    values = (codes[:, 0].astype(np.float32) - ZERO) / FULL
    layer = quantized_direction(of_input, of_state, bias, backward)
    found = (run_direction(layer, codes)[:, 0].astype(np.float32) - ZERO) / FULL
    expected = lstm_layer(values[::-1] if backward else values, of_input, of_state, bias)
    np.testing.assert_allclose(found, expected[::-1] if backward else expected, atol=0.03)
