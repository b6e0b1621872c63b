"""Long short-term memory on codes of 8 bits: in plain NumPy, the reference, and by the kernel.

A state lies between -1 and 1, and its code is 128 + round(127 state). Weights are int8 with a scale for each gate of
each unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.diarization.kernel_calls import call_kernel, kernel_function
from edgellm.kernels.sound_records import LSTM

ZERO = 128
"""The code of zero."""
FULL = 127
"""From the code of zero to that of one."""
LANES, GATES, TOGETHER = 16, 4, 4
Codes = NDArray[np.uint8]


@dataclass(frozen=True)
class Direction:
    """One direction of one layer.

    Attributes:
        weights: int8 (4 * units, width + units): of the input, then of the state before; gates are the input's, the
            forgetting one, the cell's and the output's.
        scales: of each row of weights, times the codes' own; float32 (4 * units).
        bias: of each row, float32 (4 * units).
        backward: begins with the last step.
    """

    weights: NDArray[np.int8]
    scales: NDArray[np.float32]
    bias: NDArray[np.float32]
    backward: bool

    @property
    def units(self) -> int:
        return len(self.weights) // GATES

    @property
    def width(self) -> int:
        """Codes of input in each step; 0 if the input comes multiplied."""
        return int(self.weights.shape[1] - self.units)

    def start(self, bias: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """What the kernel adds to the products of each step, in its order: the bias (..., 4 * units), by default its
        own, less what the code of zero has added to them.
        """
        excess = ZERO * self.scales * self.weights.sum(axis=1, dtype=np.int64).astype(np.float32)
        return by_units((self.bias if bias is None else bias) - excess)


def quantized_direction(
    of_input: NDArray[np.float32], of_state: NDArray[np.float32], bias: NDArray[np.float32], backward: bool
) -> Direction:
    """Weights (4 * units, width) and (4 * units, units), each row rounded to 255 steps, and the bias (4 * units)."""
    weights = np.concatenate([of_input, of_state], axis=1).astype(np.float64)
    steps = np.abs(weights).max(axis=1, keepdims=True) / FULL
    steps[steps == 0] = 1.0
    codes = np.rint(weights / steps).astype(np.int8)
    scales = (steps[:, 0] / FULL).astype(np.float32)
    return Direction(codes, scales, bias.astype(np.float32), backward)


def run_direction(layer: Direction, inputs: Codes, starts: NDArray[np.float32] | None = None) -> Codes:
    """The states of all steps: the reference.

    Args:
        layer: what to run.
        inputs: (steps, rows, width).
        starts: (steps, rows, 4 * units), added to each gate in place of the bias.

    Returns:
        codes of the states, (steps, rows, units).
    """
    steps, rows, _ = inputs.shape
    added = np.broadcast_to(layer.bias, (steps, rows, GATES * layer.units)) if starts is None else starts
    state = np.full((rows, layer.units), ZERO, np.uint8)
    cell = np.zeros((rows, layer.units), np.float32)
    states = np.empty((steps, rows, layer.units), np.uint8)
    weights = layer.weights.astype(np.int32)
    for step in reversed(range(steps)) if layer.backward else range(steps):
        codes = np.concatenate([inputs[step], state], axis=1).astype(np.int32) - ZERO
        gates = (codes @ weights.T) * layer.scales + added[step]
        entering, kept, new, leaving = np.split(gates.astype(np.float32), GATES, axis=1)
        cell = _sigmoid(kept) * cell + _sigmoid(entering) * np.tanh(new)
        state = (ZERO + np.rint(FULL * _sigmoid(leaving) * np.tanh(cell))).astype(np.uint8)
        states[step] = state
    return states


def _sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * x), np.float32)


def by_units(gates: NDArray[Any]) -> NDArray[Any]:
    """The last axis, (4 gates, units), in the order of the kernel: (units / 16, 4 gates, 16)."""
    split = gates.reshape(*gates.shape[:-1], GATES, gates.shape[-1] // (GATES * LANES), LANES)
    return np.ascontiguousarray(np.moveaxis(split, -3, -2)).reshape(gates.shape)


class LSTMKernel:
    """The kernel of `edgellm.kernels.lstm` with the weights of one direction; may be called from several threads.

    Args:
        address: of the kernel.
        keep_alive: what must live as long as the address is valid.
        layer: what to run; its numbers of units and of inputs are multiples of 16 and 4.
    """

    def __init__(self, address: int, keep_alive: object, layer: Direction) -> None:
        if layer.units % LANES or layer.width % 4:
            raise ValueError(f"{layer.units} units of {layer.width} inputs are not multiples of {LANES} and 4")
        self._function, self._keep_alive, self._layer = kernel_function(address), keep_alive, layer
        rows = by_units(layer.weights.T).reshape(
            -1, 4, layer.units // LANES, GATES * LANES
        )  # (codes / 4, 4, groups, lanes)
        self._weights = np.ascontiguousarray(rows.transpose(2, 0, 3, 1))
        self._scales, self._bias = by_units(layer.scales), layer.start()
        self._nothing = np.full(layer.units, ZERO, np.uint8)

    def __call__(self, inputs: Codes, output: Codes, starts: NDArray[np.float32] | None = None) -> None:
        """Compute the states of all steps.

        Args:
            inputs: (steps, rows, width).
            output: (steps, rows, units), is filled; it may be part of a wider array.
            starts: (steps, rows, 4 * units), of `Direction.start`, in place of the bias.
        """
        units = self._layer.units
        steps, rows = output.shape[:2]
        if output.shape[2] != units or inputs.shape != (steps, rows, self._layer.width):
            raise ValueError(f"inputs {inputs.shape} and output {output.shape} of {units} units")
        if steps == 0 or rows == 0:
            return
        added = np.broadcast_to(self._bias, (steps, rows, GATES * units)) if starts is None else starts
        if added.shape != (steps, rows, GATES * units) or added.dtype != np.float32:
            raise ValueError(f"starts {added.dtype} {added.shape} for {output.shape}")
        if (
            any(a.dtype != np.uint8 or (a.size and a.strides[2] != 1) for a in (inputs, output))
            or added.strides[2] != 4
        ):
            raise ValueError("values of a step must lie side by side")
        if self._layer.backward:
            inputs, output, added = inputs[::-1], output[::-1], added[::-1]
        arrays: dict[str, NDArray[Any]] = {
            "rows": np.array([rows], np.int64),
            "input": inputs,
            "starts": added,
            "weights": self._weights,
            "scales": self._scales,
            "output": output,
            "nothing": self._nothing,
            "cells": np.empty((TOGETHER, units), np.float32),
        }
        strides = {"input_step": inputs.strides[0], "input_row": inputs.strides[1]}
        strides |= {"starts_step": added.strides[0], "starts_row": added.strides[1]}
        strides |= {"output_step": output.strides[0], "output_row": output.strides[1]}
        call_kernel(self._function, LSTM, arrays, steps=steps, units=units, width=self._layer.width, **strides)
