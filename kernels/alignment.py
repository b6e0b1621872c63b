"""Which frame of sound each token belongs to: smoothing of attention and dynamic time warping.

Variants: ``smooth``, the mean over heads of the median of seven neighbouring frames; ``warp``, the monotone path
through (rows, frames) of the largest sum (Sakoe and Chiba 1978), with steps of one row, one frame, or both.
"""

from __future__ import annotations

import numpy as np

from edgellm.kernels.memory import (
    byte_at,
    float_at,
    get,
    load_floats,
    set_float,
    set_int32,
    set_int64,
    set_raw_byte,
    store_floats,
)
from edgellm.kernels.simd import helper, maximum, minimum, share, splat_float
from edgellm.kernels.sound_records import SMOOTH, WARP

VARIANTS = ("smooth", "warp")
_BOTH, _ROW, _FRAME = 0, 1, 2


@helper
def _sort(a, b):
    return minimum(a, b), maximum(a, b)


@helper
def _median(a, b, c, d, e, f, g):
    """Of seven: a network of exchanges (Devillard 1998)."""
    a, f = _sort(a, f)
    a, d = _sort(a, d)
    b, g = _sort(b, g)
    c, e = _sort(c, e)
    a, b = _sort(a, b)
    d, f = _sort(d, f)
    c, g = _sort(c, g)
    c, d = _sort(c, d)
    d, g = _sort(d, g)
    e, f = _sort(e, f)
    b, e = _sort(b, e)
    b, d = _sort(b, d)
    d, e = _sort(d, e)
    return d


def _smooth():
    def smooth(record, thread, threads):
        frames, heads, stride = get(record, SMOOTH.frames), get(record, SMOOTH.heads), get(record, SMOOTH.stride)
        first, end = share(get(record, SMOOTH.rows), thread, threads)
        scale = splat_float(np.float32(1.0) / np.float32(heads))
        for row in range(first, end):
            output = get(record, SMOOTH.output) + row * stride
            for frame in range(0, frames, 16):
                total = splat_float(0.0)
                for head in range(heads):
                    x = get(record, SMOOTH.input) + head * get(record, SMOOTH.head_bytes) + row * stride + 4 * frame
                    total = total + _median(
                        load_floats(x - 12), load_floats(x - 8), load_floats(x - 4), load_floats(x),
                        load_floats(x + 4), load_floats(x + 8), load_floats(x + 12),
                    )  # fmt: skip
                store_floats(output + 4 * frame, total * scale)

    return smooth


def _warp():
    def warp(record, thread, threads):
        if thread > 0:
            return
        rows, frames = get(record, WARP.rows), get(record, WARP.frames)
        width = frames + 1
        for column in range(width):
            set_float(get(record, WARP.costs) + 4 * column, np.float32(np.inf))
        set_float(get(record, WARP.costs), np.float32(0.0))
        for row in range(rows):
            above = get(record, WARP.costs) + 4 * width * (row % 2)
            below = get(record, WARP.costs) + 4 * width * ((row + 1) % 2)
            gains = get(record, WARP.gains) + row * get(record, WARP.stride)
            steps = get(record, WARP.steps) + (row + 1) * width
            left = np.float32(np.inf)
            diagonal = float_at(above)
            set_float(below, left)
            for frame in range(frames):
                up = float_at(above + 4 * (frame + 1))
                best, step = left, _FRAME
                if up < left and up < diagonal:
                    best, step = up, _ROW
                if diagonal < up and diagonal < left:
                    best, step = diagonal, _BOTH
                left = best - float_at(gains + 4 * frame)
                set_float(below + 4 * (frame + 1), left)
                set_raw_byte(steps + frame + 1, step)
                diagonal = up
        row, frame, count = rows, frames, 0
        while row > 0 or frame > 0:
            place = get(record, WARP.path) + 8 * count
            set_int32(place, row - 1)
            set_int32(place + 4, frame - 1)
            count += 1
            step = (
                _FRAME if row == 0 else _ROW if frame == 0 else byte_at(get(record, WARP.steps) + row * width + frame)
            )
            if step != _FRAME:
                row -= 1
            if step != _ROW:
                frame -= 1
        set_int64(get(record, WARP.length), count)

    return warp


def kernel(variant):
    """The kernel of one step."""
    return _smooth() if variant == "smooth" else _warp()
