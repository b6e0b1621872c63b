"""Which frame of sound each token belongs to, from how tokens attend to frames: in NumPy and by kernels.

Source: openai-whisper (``timing.py``): attention is normalized over tokens, smoothed over frames, averaged over heads;
dynamic time warping then finds the path.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.sound_records import SMOOTH, WARP
from edgellm.platforms.batch import Float32Array, Int32Array
from edgellm.platforms.cpu_parts import make_record, padded
from edgellm.platforms.threads import ThreadTeam

KERNELS = frozenset({"alignment.smooth", "alignment.warp"})
FILTER = 7
"""Frames of the median filter."""
_MARGIN = 16


def normalized(weights: Float32Array) -> Float32Array:
    """Attention (heads, rows, frames) with mean 0 and standard deviation 1 over the rows of each frame."""
    mean = weights.mean(axis=1, keepdims=True)
    deviation = weights.std(axis=1, keepdims=True)
    result: Float32Array = (weights - mean) / np.maximum(deviation, np.float32(1e-12))
    return result


def _mirrored(weights: Float32Array) -> Float32Array:
    """Frames continued beyond both ends as a mirror does."""
    half = min(FILTER // 2, weights.shape[-1] - 1)
    return np.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(half, half)], mode="reflect")


def smooth_reference(weights: Float32Array) -> Float32Array:
    """(rows, frames): the mean over heads of the median of FILTER frames; fewer frames are left as they are."""
    if weights.shape[-1] < FILTER:
        plain: Float32Array = weights.mean(axis=0)
        return plain
    windows = np.lib.stride_tricks.sliding_window_view(_mirrored(weights), FILTER, axis=-1)
    result: Float32Array = np.median(windows, axis=-1).mean(axis=0).astype(np.float32)
    return result


def warp_reference(gains: Float32Array) -> tuple[Int32Array, Int32Array]:
    """Rows and frames of the monotone path from corner to corner of which the sum is largest."""
    rows, frames = gains.shape
    cost = np.full((rows + 1, frames + 1), np.inf, np.float32)
    cost[0, 0] = 0
    step = np.zeros((rows + 1, frames + 1), np.int8)
    for row in range(1, rows + 1):
        for frame in range(1, frames + 1):
            both, up, left = cost[row - 1, frame - 1], cost[row - 1, frame], cost[row, frame - 1]
            best, step[row, frame] = left, 2
            if up < left and up < both:
                best, step[row, frame] = up, 1
            if both < up and both < left:
                best, step[row, frame] = both, 0
            cost[row, frame] = best - gains[row - 1, frame - 1]
    path = []
    row, frame = rows, frames
    while row > 0 or frame > 0:
        path.append((row - 1, frame - 1))
        kind = 2 if row == 0 else 1 if frame == 0 else step[row, frame]
        row -= kind != 2
        frame -= kind != 1
    found = np.array(path[::-1], np.int32)
    return found[:, 0], found[:, 1]


class AlignmentPlan:
    """The same on a team of threads, by the kernels named in `KERNELS`."""

    def __init__(self, team: ThreadTeam, addresses: Mapping[str, int]) -> None:
        self._team, self._addresses = team, addresses

    def smooth(self, weights: Float32Array) -> Float32Array:
        """See `smooth_reference`."""
        heads, rows, frames = weights.shape
        if frames < FILTER:
            return smooth_reference(weights)
        half = FILTER // 2
        stride = padded(frames) + 2 * _MARGIN
        wide = np.zeros((heads, rows, stride), np.float32)
        wide[..., _MARGIN - half : _MARGIN + frames + half] = _mirrored(weights)
        output = np.zeros((rows, stride), np.float32)
        record = make_record(
            SMOOTH, rows=rows, frames=frames, heads=heads, input=wide.ctypes.data + 4 * _MARGIN, stride=4 * stride,
            head_bytes=4 * stride * rows, output=output.ctypes.data,
        )  # fmt: skip
        self._run("alignment.smooth", record)
        return output[:, :frames]

    def warp(self, gains: Float32Array) -> tuple[Int32Array, Int32Array]:
        """See `warp_reference`."""
        gains = np.ascontiguousarray(gains, np.float32)
        rows, frames = gains.shape
        costs = np.zeros((2, frames + 1), np.float32)
        steps = np.zeros((rows + 1, frames + 1), np.uint8)
        path = np.zeros((rows + frames + 2, 2), np.int32)
        length = np.zeros(1, np.int64)
        record = make_record(
            WARP, rows=rows, frames=frames, gains=gains.ctypes.data, stride=gains.strides[0], costs=costs.ctypes.data,
            steps=steps.ctypes.data, path=path.ctypes.data, length=length.ctypes.data,
        )  # fmt: skip
        self._run("alignment.warp", record)
        found = path[: int(length[0])][::-1]
        return found[:, 0].copy(), found[:, 1].copy()

    def _run(self, kernel: str, record: NDArray[np.int64]) -> None:
        self._team.run(np.array([[self._addresses[kernel], record.ctypes.data, 0, 0]], np.int64))
