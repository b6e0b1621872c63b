"""Densely connected layers on codes of 8 bits: the kernel against NumPy, layer by layer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import load_kernel
from numpy.typing import NDArray

from edgellm.diarization.dense import DenseKernel, DenseLayer, Masked, rounded, run_layers


class _Layers:
    """Layers of random weights."""

    def __init__(self, seed: int, scale: float) -> None:
        self._random, self._scale = np.random.default_rng(seed), scale

    def values(self, *shape: int) -> NDArray[np.float32]:
        return np.asarray(self._scale * self._random.standard_normal(shape), np.float32)

    def layer(self, channels: int, outputs: int, dilation: int) -> DenseLayer:
        weights, scales = rounded(self.values(outputs, channels))
        masked = None
        if dilation:
            local, local_scales = rounded(self.values(32, outputs, 3))
            narrow, wide = (self.values(*shape) / 64 for shape in ((64, outputs), (32, 64)))
            masked = Masked(dilation, local, local_scales, narrow, self.values(64), wide, self.values(32))
        bias = self.values(outputs)
        return DenseLayer(self.values(channels), self.values(channels), weights, scales, bias, bool(dilation), masked)


@pytest.mark.parametrize("tier", ["avx2", "native"])  # tests of the products run on all
@settings(max_examples=20, deadline=None)
@given(
    channels=st.sampled_from([16, 48, 256]),
    inner=st.sampled_from([64, 128]),
    outputs=st.sampled_from([64, 192]),
    dilation=st.integers(1, 3),
    steps=st.integers(1, 11),
    scale=st.sampled_from([0.0, 1.0, 1e-6, 100.0]),
    seed=st.integers(0, 99),
)
def test_kernel_is_the_reference(
    tier: str, channels: int, inner: int, outputs: int, dilation: int, steps: int, scale: float, seed: int
) -> None:
    random = _Layers(seed, scale)
    layers = [random.layer(channels, inner, dilation), random.layer(channels + 32, outputs, 0)]
    x = np.random.default_rng(seed).standard_normal((steps, channels)).astype(np.float32)
    expected = run_layers(layers, x)
    found = DenseKernel(*load_kernel(tier, "dense.int8"), layers, 11)(x)
    assert found.shape == expected.shape == (steps, outputs)
    # A value between two codes may go either way: a step of 255 in one of all that is summed.
    off = np.abs(found - expected) / max(float(np.abs(expected).max()), 1e-30)
    assert off.max() < 0.02
    assert np.median(off) < 2e-3


def test_wrong_shapes_are_refused() -> None:
    random = _Layers(0, 1.0)
    layers = [random.layer(16, 64, 1), random.layer(48, 64, 0)]
    run = DenseKernel(*load_kernel("native", "dense.int8"), layers, 5)
    for bad in ((6, 16), (0, 16), (5, 15)):
        with pytest.raises(ValueError, match="expected up to 5 of 16"):
            run(np.zeros(bad, np.float32))
    with pytest.raises(ValueError, match="multiples"):
        DenseKernel(*load_kernel("native", "dense.int8"), [layers[0], random.layer(48, 60, 0)], 5)
    assert run(np.zeros((5, 16), np.float32)).shape == (5, 64)


def test_codes_lose_little() -> None:
    random = _Layers(1, 0.1)
    layer, last = random.layer(64, 128, 2), random.layer(96, 64, 0)
    x = np.abs(np.random.default_rng(1).standard_normal((50, 64))).astype(np.float32)
    exact = (
        np.maximum(x * layer.factors + layer.shifts, 0).astype(np.float64) @ (layer.weights * layer.scales[:, None]).T
    )
    exact = np.maximum(exact + layer.bias, 0)
    assert layer.masked is not None
    weights = layer.masked.weights * layer.masked.scales[:, None, None].astype(np.float64)
    padded = np.pad(exact, ((2, 2), (0, 0)))
    local = sum(padded[2 * place : 2 * place + 50] @ weights[:, :, place].T for place in range(3))
    hidden = np.maximum(layer.masked.narrow @ exact.mean(axis=0) + layer.masked.narrow_bias, 0)
    added = local / (1 + np.exp(-(layer.masked.wide @ hidden + layer.masked.wide_bias)))
    both = np.concatenate([x, added], axis=1)
    exact = np.maximum(both * last.factors + last.shifts, 0) @ (last.weights * last.scales[:, None]).T + last.bias
    found = run_layers([layer, last], x)
    assert np.abs(found - exact).max() < 0.02 * np.abs(exact).max()
