"""Log-mel spectrograms as Whisper reads them: in NumPy, and planned for the kernels of `edgellm.kernels.mel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import InvalidSettingError
from edgellm.kernels.packing import aligned_zeros
from edgellm.kernels.sound_records import MEL
from edgellm.platforms.batch import Float32Array
from edgellm.platforms.cpu_parts import make_record, padded
from edgellm.platforms.threads import ThreadTeam

RATE = 16000
FRAME, HOP = 400, 160
"""Samples of a frame, and from one frame to the next."""
KERNELS = frozenset({"mel.logarithms", "mel.scale"})
_TERMS, _BINS = 101, 112  # those of the kernel: terms of a folded sum, and even or odd frequencies padded to vectors
_SCRATCH = 8 * (4 * 104 + 2 * _BINS) * 4
_LINEAR_LIMIT, _LINEAR_STEP, _LOG_STEP = 1000.0, 200.0 / 3, np.log(6.4) / 27


def mel_filters(bins: int) -> NDArray[np.float64]:
    """Triangular filters (bins, 201) on Slaney's mel scale (1998) from 0 to 8000 Hz, each of unit area.

    The scale is linear below 1000 Hz, with a step of 200/3 Hz, and logarithmic above.
    """
    top = _LINEAR_LIMIT / _LINEAR_STEP + np.log(RATE / 2 / _LINEAR_LIMIT) / _LOG_STEP
    mels = np.linspace(0, top, bins + 2)
    knee = _LINEAR_LIMIT / _LINEAR_STEP
    edges = np.where(mels < knee, mels * _LINEAR_STEP, _LINEAR_LIMIT * np.exp(_LOG_STEP * (mels - knee)))
    frequencies = np.arange(FRAME // 2 + 1) * (RATE / FRAME)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    areas: NDArray[np.float64] = 2 / (edges[2:] - edges[:-2])
    filters: NDArray[np.float64] = np.maximum(0, np.minimum(rising, falling)) * areas[:, None]
    return filters


def window() -> NDArray[np.float64]:
    """The Hann window (400,), periodic."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)


def around(samples: Float32Array, frames: int) -> Float32Array:
    """Samples, and zeros up to ``160 * frames`` of them, with what the first and last frames reach beyond: mirrored.

    Frame f is centred on sample ``160 * f`` and takes 200 samples on each side.
    """
    whole = np.zeros(HOP * (frames - 1) + FRAME, np.float32)
    half = FRAME // 2
    kept = samples[: HOP * frames]
    whole[half : half + len(kept)] = kept
    mirrored = samples[1 : half + 1][::-1]
    whole[half - len(mirrored) : half] = mirrored
    end = half + HOP * frames
    whole[end:] = whole[: end - 1][: -(len(whole) - end) - 1 : -1]
    return whole


def log_mel_reference(samples: Float32Array, bins: int, frames: int) -> NDArray[np.float64]:
    """The spectrogram (frames, bins) in double precision, by NumPy's Fourier transform.

    Logarithms (base 10) of the mel powers, at least 1e-10 and within 8 of the largest, mapped by ``(x + 4) / 4``.
    """
    cut = np.lib.stride_tricks.sliding_window_view(around(samples, frames), FRAME)[::HOP]
    powers = np.abs(np.fft.rfft(cut * window(), axis=1)) ** 2
    logarithms = np.log10(np.maximum(powers @ mel_filters(bins).T, 1e-10))
    scaled: NDArray[np.float64] = (np.maximum(logarithms, logarithms.max() - 8) + 4) / 4
    return scaled


def _waves() -> Float32Array:
    """Cosines and sines (2, 7, 101, 2, 16): of even and odd frequencies, 16 at a time, by term."""
    angles = 2 * np.pi / FRAME * np.arange(_TERMS)
    tables = np.zeros((2, _BINS, _TERMS, 2))
    for parity in range(2):
        numbers = np.arange(parity, FRAME // 2 + 1, 2)
        turns = numbers[:, None] * angles
        tables[parity, : len(numbers)] = np.stack([np.cos(turns), np.sin(turns)], axis=-1)
    return np.ascontiguousarray(
        tables.reshape(2, _BINS // 16, 16, _TERMS, 2).transpose(0, 1, 3, 4, 2), np.float32
    )  # fmt: skip


class MelPlan:
    """Computes spectrograms on a team of threads.

    Args:
        bins: mel bands of a frame.
        frames: most frames of a spectrogram.
        team: runs the kernels.
        addresses: of the kernels named in `KERNELS`.
    """

    def __init__(self, bins: int, frames: int, team: ThreadTeam, addresses: Mapping[str, int]) -> None:
        self._team, self._frames, self._bins = team, frames, bins
        groups = -(-bins // 16)
        filters = np.zeros((2 * _BINS, 16 * groups), np.float32)
        for parity in range(2):
            part = mel_filters(bins)[:, parity::2].T
            filters[parity * _BINS : parity * _BINS + len(part), :bins] = part
        by_group = np.ascontiguousarray(filters.reshape(2 * _BINS, groups, 16).transpose(1, 0, 2))
        self._samples = np.zeros(HOP * frames + FRAME, np.float32)
        self._count = np.zeros(1, np.int64)
        scratch = -(-_SCRATCH // 64) * 64
        self._stride = 4 * padded(bins)
        self._output = aligned_zeros(frames * self._stride)
        self._keep: dict[str, NDArray[Any]] = {
            "window": window()[: FRAME // 2 + 1].astype(np.float32),
            "waves": _waves(),
            "filters": by_group,
            "ranges": _ranges(by_group),
            "peaks": aligned_zeros(64 * team.threads),
            "scratch": aligned_zeros(scratch * team.threads),
        }
        self._record = make_record(
            MEL, frames=self._count.ctypes.data, samples=self._samples.ctypes.data, groups=groups,
            output=self._output.ctypes.data, output_stride=self._stride, scratch_stride=scratch,
            **{name: array.ctypes.data for name, array in self._keep.items()},
        )  # fmt: skip
        kernels = ("mel.logarithms", "mel.scale")
        rows = [(addresses[name], self._record.ctypes.data, number, 0) for number, name in enumerate(kernels)]
        self._plan = np.array(rows, np.int64)

    def run(self, samples: Float32Array, threads: int | None = None) -> Float32Array:
        """The spectrogram (frames, bins padded to 16); valid until the next call. Beyond the samples there is silence.

        Raises:
            InvalidSettingError: there are more samples than frames.
        """
        if samples.ndim != 1 or len(samples) > HOP * self._frames:
            raise InvalidSettingError(
                f"sound of the shape {samples.shape} was given, expected at most {HOP * self._frames} samples"
            )
        heard = min(self._frames, (len(samples) + FRAME // 2) // HOP + 1)  # frames beyond are all zero
        whole = around(samples, heard)
        self._samples[: len(whole)] = whole
        self._count[0] = heard
        self._team.run(self._plan, threads)
        result = self._output.view(np.float32).reshape(self._frames, -1)
        if heard < self._frames:
            # Silence is -10 before the mapping, or what the loudest leaves of it.
            peak = max(-10.0, float(self._peaks(threads).max()))
            result[heard:, : self._bins] = (max(-10.0, peak - 8) + 4) / 4
        return result

    def _peaks(self, threads: int | None) -> Float32Array:
        peaks: Float32Array = self._keep["peaks"].view(np.float32)
        return peaks[::16][: threads or self._team.threads]


def _ranges(filters: Float32Array) -> NDArray[np.int32]:
    """Which even and which odd powers each group of 16 bands reads: (groups, 4)."""
    found = np.zeros((len(filters), 4), np.int32)
    for group, weights in enumerate(filters):
        for parity in range(2):
            used = np.flatnonzero(weights[parity * _BINS : (parity + 1) * _BINS].any(axis=1)) + parity * _BINS
            if len(used):
                found[group, 2 * parity : 2 * parity + 2] = used[0], used[-1] + 1
    return found
