"""The densely connected layers of CAM++ on codes of 8 bits: in plain NumPy, the reference, and by the kernel.

What goes into a product is not negative and is rounded to 255 steps: those of one moment for the first half of a layer,
those of the whole window for the second. Weights are int8 with a scale for each output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.diarization.kernel_calls import call_kernel, kernel_function
from edgellm.kernels.sound_records import DENSE, DENSE_LAYER

Floats = NDArray[np.float32]
GROWTH = 32
"""Channels that a layer with a mask adds."""
HIDDEN = 64
LANES, GROUP = 16, 64
_LARGEST = np.float32(255)
_VALUES_BYTES = 8192
_LINE = 64


@dataclass(frozen=True)
class Masked:
    """The second half of a layer.

    Attributes:
        dilation: how many moments its neighbours are away.
        weights: int8 (32, width, 3).
        scales: of each output, float32 (32).
        narrow, narrow_bias: float32 (64, width) and (64): from the mean over time.
        wide, wide_bias: float32 (32, 64) and (32): to the mask.
    """

    dilation: int
    weights: NDArray[np.int8]
    scales: Floats
    narrow: Floats
    narrow_bias: Floats
    wide: Floats
    wide_bias: Floats


@dataclass(frozen=True)
class DenseLayer:
    """A layer.

    Attributes:
        factors, shifts: of each channel so far, float32 (channels).
        weights: int8 (outputs, channels).
        scales, bias: of each output, float32 (outputs).
        rectify: outputs below zero become zero.
        masked: the second half, whose outputs join the channels so far; without one the outputs replace them.
    """

    factors: Floats
    shifts: Floats
    weights: NDArray[np.int8]
    scales: Floats
    bias: Floats
    rectify: bool
    masked: Masked | None = None


def rounded(weights: NDArray[Any]) -> tuple[NDArray[np.int8], Floats]:
    """Weights (outputs, ...) as int8 and a scale for each output."""
    steps = np.abs(weights).reshape(len(weights), -1).max(axis=1).astype(np.float64) / 127
    steps[steps == 0] = 1.0
    codes = np.rint(weights / steps.reshape(-1, *[1] * (weights.ndim - 1)))
    return codes.astype(np.int8), steps.astype(np.float32)


def run_layers(layers: Sequence[DenseLayer], x: Floats) -> Floats:
    """All layers on (steps, channels): the reference."""
    for layer in layers:
        codes, steps = _codes(np.maximum(x * layer.factors + layer.shifts, 0), each=True)
        y = (codes @ layer.weights.T.astype(np.int64)).astype(np.float32) * steps * layer.scales + layer.bias
        y = np.maximum(y, 0) if layer.rectify else y
        x = y if layer.masked is None else np.concatenate([x, _masked(layer.masked, y)], axis=1)
    return np.asarray(x, np.float32)


def _masked(layer: Masked, y: Floats) -> Floats:
    hidden = np.maximum(layer.narrow @ y.mean(axis=0) + layer.narrow_bias, 0)
    mask = 0.5 + 0.5 * np.tanh(0.5 * (layer.wide @ hidden + layer.wide_bias))  # the sigmoid, without an overflow
    codes, step = _codes(y, each=False)
    padded = np.pad(codes, ((layer.dilation, layer.dilation), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * layer.dilation + 1, axis=0)[:, :, :: layer.dilation]
    total = np.einsum("twk,owk->to", windows, layer.weights.astype(np.int64))
    return np.asarray(total.astype(np.float32) * step * layer.scales * mask, np.float32)


def _codes(values: Floats, each: bool) -> tuple[NDArray[np.int64], Floats]:
    """Codes of values that are not negative, and their step: for each row, or one for all."""
    most = values.max(axis=1, keepdims=True) if each else values.max(keepdims=True)
    inverse = np.divide(_LARGEST, most, out=np.zeros_like(most), where=most > 0)
    return np.rint(values * inverse).astype(np.int64), most / _LARGEST


class DenseKernel:
    """The kernel of `edgellm.kernels.dense` with all layers; may be called from several threads at once.

    Args:
        address: of the kernel.
        keep_alive: what must live as long as the address is valid.
        layers: to run, of the network's shapes.
        most_steps: that there may be.
    """

    def __init__(self, address: int, keep_alive: object, layers: Sequence[DenseLayer], most_steps: int) -> None:
        self._function = kernel_function(address)
        self._kept: list[Any] = [keep_alive]
        self._most = most_steps
        self._plan = _Plan(layers, most_steps)
        self._channels, self._outputs = len(layers[0].factors), self._plan.channels
        self._table = np.zeros((len(layers), len(DENSE_LAYER)), np.int64)
        for row, layer in zip(self._table, layers, strict=True):
            arrays = _packed(layer)
            self._kept.append(arrays)
            self._plan.fill(row, layer, arrays)

    def __call__(self, x: Floats) -> Floats:
        """(steps, channels) through all layers."""
        steps, channels = x.shape
        if not 1 <= steps <= self._most or channels != self._channels:
            raise ValueError(f"{steps} steps of {channels} channels, expected up to {self._most} of {self._channels}")
        scratch = np.empty(self._plan.size + _LINE, np.uint8)
        scratch = scratch[-scratch.ctypes.data % _LINE :]
        self._plan.buffer(scratch, 0)[:steps, :channels] = x
        arrays: dict[str, NDArray[Any]] = {"table": self._table, "scratch": scratch}
        call_kernel(
            self._function, DENSE, arrays, steps=steps, layers=len(self._table), layer_bytes=self._table.strides[0]
        )
        return self._plan.buffer(scratch, -1)[:steps].copy()


def _packed(layer: DenseLayer) -> dict[str, NDArray[Any]]:
    """What a layer's record points to."""
    outputs, channels = layer.weights.shape
    if outputs % GROUP or channels % LANES:
        raise ValueError(f"{outputs} outputs of {channels} channels are not multiples of {GROUP} and {LANES}")
    weights = layer.weights.reshape(-1, GROUP, channels // 4, 4).transpose(0, 2, 1, 3)
    arrays: dict[str, NDArray[Any]] = {
        "factors": layer.factors,
        "shifts": layer.shifts,
        "weights": weights,
        "scales": layer.scales,
        "bias": layer.bias,
    }
    if layer.masked is not None:
        half = layer.masked
        if half.weights.shape != (GROWTH, outputs, 3) or half.narrow.shape != (HIDDEN, outputs):
            raise ValueError(f"weights {half.weights.shape} and {half.narrow.shape} of a mask of {outputs} channels")
        arrays |= {
            "local": half.weights.reshape(GROWTH, outputs // 4, 4, 3).transpose(3, 1, 0, 2),
            "local_scales": half.scales,
            "narrow": half.narrow.T,
            "narrow_bias": half.narrow_bias,
            "wide": half.wide.T,
            "wide_bias": half.wide_bias,
        }
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


@dataclass
class _Plan:
    """Where in the scratch memory everything is."""

    layers: Sequence[DenseLayer]
    most: int
    buffers: list[tuple[int, int]] = field(default_factory=list)  # offset and channels of each
    size: int = 0

    def __post_init__(self) -> None:
        widest = max(layer.weights.shape[1] for layer in self.layers)
        outputs = max(layer.weights.shape[0] for layer in self.layers if layer.masked is not None)
        dilation = max(layer.masked.dilation for layer in self.layers if layer.masked is not None)
        self._values, self._mask = self._take(_VALUES_BYTES), self._take(4 * GROWTH)
        self._codes, self._steps = self._take(self.most * widest), self._take(4 * self.most)
        self._padded, self._inner = (
            self._take((self.most + 2 * dilation) * outputs),
            self._take(4 * self.most * outputs),
        )
        self._inner_stride = 4 * outputs
        for layer in self.layers:
            if layer.masked is None:
                self._add(layer.weights.shape[1])
        self.channels = self.layers[-1].weights.shape[0]
        self._add(self.channels)
        self._current = 0

    def _take(self, count: int) -> int:
        offset, self.size = self.size, self.size + -(-count // _LINE) * _LINE
        return offset

    def _add(self, channels: int) -> None:
        self.buffers.append((self._take(4 * self.most * channels), channels))

    def buffer(self, scratch: NDArray[np.uint8], number: int) -> Floats:
        """A buffer as (most steps, channels)."""
        offset, channels = self.buffers[number]
        return scratch[offset : offset + 4 * self.most * channels].view(np.float32).reshape(self.most, channels)

    def fill(self, row: NDArray[np.int64], layer: DenseLayer, arrays: dict[str, NDArray[Any]]) -> None:
        """The record of the next layer."""
        numbers = {name: array.ctypes.data for name, array in arrays.items()}
        offset, width = self.buffers[self._current]
        numbers |= {"input": offset, "input_stride": 4 * width, "channels": layer.weights.shape[1]}
        numbers |= {"groups": layer.weights.shape[0] // GROUP, "rectify": int(layer.rectify)}
        numbers |= {"values": self._values, "codes": self._codes, "steps": self._steps, "mask": self._mask}
        if layer.masked is not None:
            numbers |= {"output": self._inner, "output_stride": self._inner_stride, "padded": self._padded}
            numbers["dilation"] = layer.masked.dilation
        else:
            self._current += 1
            offset, width = self.buffers[self._current]
            numbers |= {"output": offset, "output_stride": 4 * width}
        for name, number in numbers.items():
            row[getattr(DENSE_LAYER, name) // 8] = number
