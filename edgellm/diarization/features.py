"""Filter-bank features as Kaldi computes them: in plain NumPy, the reference, and by the kernel.

Frames of 25 ms every 10 ms that lie wholly in the sound; the mean taken off; pre-emphasis; Povey's window; the power
spectrum of 512 points; 80 triangular filters, equally wide on the mel scale between 20 and 8000 Hz; the logarithm
(D. Povey et al., "The Kaldi speech recognition toolkit", ASRU 2011).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.diarization.kernel_calls import call_kernel, kernel_function
from edgellm.kernels.sound_records import FBANK

SAMPLE_RATE = 16_000
FRAME = 400
HOP = 160
FFT = 512
FILTERS = 80
LOWEST_HZ = 20.0
PREEMPHASIS = 0.97
SCRATCH_BYTES = 4 * 16 * (FFT + FRAME)
"""Of the kernel, for 16 frames at a time: the points of the transform, and the samples."""
FLOOR = float(np.finfo(np.float32).eps)


def frames_in(samples: int) -> int:
    """How many frames fit into so many samples."""
    return 0 if samples < FRAME else 1 + (samples - FRAME) // HOP


@cache
def povey_window() -> NDArray[np.float32]:
    """A Hann window to the power of 0.85, (400,)."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / (FRAME - 1))
    return np.asarray(hann**0.85, np.float32)


def _mel(hertz: NDArray[np.floating] | float) -> NDArray[np.float64]:
    return np.asarray(1127.0 * np.log1p(np.asarray(hertz, np.float64) / 700.0))


@cache
def mel_filters() -> NDArray[np.float32]:
    """Weights of the 80 filters for each of the 257 points of the spectrum, (80, 257)."""
    low, high = _mel(LOWEST_HZ), _mel(SAMPLE_RATE / 2)
    step = (high - low) / (FILTERS + 1)
    points = _mel(np.arange(FFT // 2 + 1) * (SAMPLE_RATE / FFT))
    left = (low + step * np.arange(FILTERS))[:, None]
    rising, falling = (points - left) / step, (left + 2 * step - points) / step
    weights = np.maximum(np.minimum(rising, falling), 0.0)
    weights[:, -1] = 0.0  # Kaldi leaves the highest point out
    return np.asarray(weights, np.float32)


def fbank(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log mel energies of mono sound at 16 kHz in [-1, 1]: (frames, 80), of a sound too short (0, 80)."""
    count = frames_in(len(samples))
    if count == 0:
        return np.zeros((0, FILTERS), np.float32)
    view = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[::HOP][:count]
    frames = view.astype(np.float64)
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    frames = (frames - PREEMPHASIS * before) * povey_window()
    power = np.abs(np.fft.rfft(frames, FFT, axis=1)) ** 2
    energies = power @ mel_filters().T.astype(np.float64)
    return np.asarray(np.log(np.maximum(energies, FLOOR)), np.float32)


class Fbank:
    """The kernel of `edgellm.kernels.fbank`; may be called from several threads at once.

    Args:
        address: of the kernel.
        keep_alive: what must live as long as the address is valid.
    """

    def __init__(self, address: int, keep_alive: object) -> None:
        self._function, self._keep_alive = kernel_function(address), keep_alive
        filters = np.ascontiguousarray(mel_filters()[:, : FFT // 2])
        used = [np.flatnonzero(weights) for weights in filters]
        self._tables: dict[str, NDArray[Any]] = {
            "window": povey_window(),
            "order": _reversed_digits(),
            "factors": _factors(),
            "halves": _pairs(np.arange(FFT // 2) / FFT),
            "filters": filters,
            "ranges": np.array([(bins[0], bins[-1] + 1) for bins in used], np.int32),
        }

    def __call__(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """As `fbank`."""
        count = frames_in(len(samples))
        output = np.empty((count, FILTERS), np.float32)
        if count:
            sound = np.ascontiguousarray(samples, np.float32)
            scratch, frames = np.empty(SCRATCH_BYTES, np.uint8), np.array([count], np.int64)
            arrays = {**self._tables, "frames": frames, "samples": sound, "output": output, "scratch": scratch}
            call_kernel(self._function, FBANK, arrays, bands=FILTERS, output_stride=output.strides[0])
        return output


def _reversed_digits() -> NDArray[np.int32]:
    """Of the numbers below 256, their four digits to base 4 in reverse."""
    numbers = np.arange(FFT // 2)
    result = np.zeros_like(numbers)
    for _ in range(4):
        result, numbers = 4 * result + numbers % 4, numbers // 4
    return result.astype(np.int32)


def _pairs(turns: NDArray[np.float64]) -> NDArray[np.float32]:
    """Cosines and sines of so many turns clockwise, (..., 2)."""
    angles = -2 * np.pi * turns
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def _factors() -> NDArray[np.float32]:
    """What the second to fourth point of each butterfly is multiplied by, pass after pass, (85, 3, 2)."""
    passes = [np.arange(span)[:, None] * np.arange(1, 4) / (4 * span) for span in (1, 4, 16, 64)]
    return _pairs(np.concatenate(passes))
