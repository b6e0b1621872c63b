"""Filter-bank features as Kaldi computes them, in plain NumPy: the reference of the kernel.

Frames of 25 ms every 10 ms that lie wholly in the sound; the mean taken off; pre-emphasis; Povey's window; the power
spectrum of 512 points; 80 triangular filters, equally wide on the mel scale between 20 and 8000 Hz; the logarithm
(D. Povey et al., "The Kaldi speech recognition toolkit", ASRU 2011).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
FRAME = 400
HOP = 160
FFT = 512
FILTERS = 80
LOWEST_HZ = 20.0
PREEMPHASIS = 0.97
FLOOR = float(np.finfo(np.float32).eps)


def frames_in(samples: int) -> int:
    """How many frames fit into so many samples."""
    return 0 if samples < FRAME else 1 + (samples - FRAME) // HOP


@cache
def povey_window() -> NDArray[np.float32]:
    """A Hann window to the power of 0.85, (400,)."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / (FRAME - 1))
    return np.asarray(hann**0.85, np.float32)


def _mel(hertz: NDArray[np.float64] | float) -> NDArray[np.float64]:
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
    return weights.astype(np.float32)


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
    return np.log(np.maximum(energies, FLOOR)).astype(np.float32)
