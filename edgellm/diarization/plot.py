"""A picture of who spoke when: a row for each speaker under the waveform, as SVG, or as PNG by way of matplotlib."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.diarization.results import Diarization
from edgellm.errors import EdgeLLMError, InvalidSettingError
from edgellm.hub.files import write_atomically

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#000000")
"""Paul Tol's bright scheme, which people who see colours differently can tell apart."""
_WIDTH, _LEFT, _RIGHT = 1200, 130, 15
_WAVE, _ROW, _AXIS = 90, 26, 34
_POINTS = 1000


class Envelope:
    """The loudest sample of each hundredth of a second, gathered while a sound is read."""

    def __init__(self, per_point: int = 160) -> None:
        self._per_point = per_point
        self._rest = np.zeros(0, np.float32)
        self._peaks: list[NDArray[np.float32]] = []

    def push(self, block: NDArray[np.float32]) -> None:
        """Take more samples."""
        samples = np.concatenate([self._rest, np.abs(block)])
        whole = len(samples) // self._per_point * self._per_point
        self._peaks.append(samples[:whole].reshape(-1, self._per_point).max(axis=1))
        self._rest = samples[whole:]

    def points(self, count: int = _POINTS) -> NDArray[np.float32]:
        """The loudest of each of at most ``count`` equal parts."""
        peaks = np.concatenate([*self._peaks, self._rest[:0]]) if self._peaks else np.zeros(0, np.float32)
        if len(peaks) <= count:
            return peaks
        return np.maximum.reduceat(peaks, np.linspace(0, len(peaks), count, endpoint=False).astype(int))


def plot(diarization: Diarization, envelope: NDArray[np.float32], path: str | os.PathLike[str]) -> None:
    """Write the picture; the file's ending says which format.

    Args:
        diarization: who spoke when.
        envelope: loudness over the whole time, of any number of points.
        path: ends in .svg or .png.

    Raises:
        InvalidSettingError: the ending is another.
        EdgeLLMError: matplotlib, which PNG needs, is not installed.
    """
    target = Path(path)
    kind = target.suffix.lower()
    if kind == ".svg":
        write_atomically(target, svg(diarization, envelope))
    elif kind == ".png":
        _write_png(diarization, envelope, target)
    else:
        raise InvalidSettingError(f"{target.name} is neither .svg nor .png", "name the picture so")


def svg(diarization: Diarization, envelope: NDArray[np.float32]) -> str:
    """The picture as SVG."""
    speakers = diarization.speakers
    height = _WAVE + _ROW * max(1, len(speakers)) + _AXIS
    scale = (_WIDTH - _LEFT - _RIGHT) / max(diarization.duration, 1e-3)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        _wave(envelope),
    ]
    for row, speaker in enumerate(speakers):
        top = _WAVE + _ROW * row
        parts.append(f'<text x="{_LEFT - 8}" y="{top + 17}" text-anchor="end">{html.escape(speaker)}</text>')
        parts += [
            f'<rect x="{_LEFT + turn.start * scale:.2f}" y="{top + 3}" width="{turn.duration * scale:.2f}" '
            f'height="{_ROW - 6}" fill="{COLOURS[row % len(COLOURS)]}"/>'
            for turn in diarization.turns
            if turn.speaker == speaker
        ]
    bottom = height - _AXIS
    parts.append(f'<path d="M{_LEFT} {bottom}H{_WIDTH - _RIGHT}" stroke="black" fill="none"/>')
    for time in ticks(diarization.duration):
        x = _LEFT + time * scale
        parts.append(f'<path d="M{x:.2f} {bottom}v5" stroke="black"/>')
        parts.append(f'<text x="{x:.2f}" y="{bottom + 19}" text-anchor="middle">{clock(time)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _wave(envelope: NDArray[np.float32]) -> str:
    peak = float(envelope.max()) if len(envelope) else 0.0
    if peak <= 0:
        return ""
    step = (_WIDTH - _LEFT - _RIGHT) / len(envelope)
    middle, reach = _WAVE / 2, _WAVE / 2 - 6
    up = [(_LEFT + (n + 0.5) * step, middle - reach * float(value) / peak) for n, value in enumerate(envelope)]
    outline = [*up, *((x, 2 * middle - y) for x, y in reversed(up))]
    return f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in outline)}" fill="#999999"/>'


def ticks(duration: float) -> Sequence[float]:
    """Times to mark, at most a dozen and evenly spaced."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 36000)
    step = next((step for step in steps if duration / step <= 12), steps[-1] * (1 + int(duration / steps[-1] / 12)))
    return [float(step * number) for number in range(int(duration / step) + 1)]


def clock(seconds: float) -> str:
    """A time as people read it: 1:05, 1:00:05."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _write_png(diarization: Diarization, envelope: NDArray[np.float32], target: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EdgeLLMError(
            "a PNG picture needs the package matplotlib", "pip install 'edgellm[plot]', or name the picture .svg"
        ) from error
    rows = max(1, len(diarization.speakers))
    figure = Figure(figsize=(12, 1.4 + 0.35 * rows), layout="constrained")
    axes: Any = figure.subplots(2, 1, sharex=True, height_ratios=(1.0, 0.35 * rows))
    times = np.linspace(0, diarization.duration, max(2, len(envelope)))
    values = envelope if len(envelope) > 1 else np.zeros(2)
    axes[0].fill_between(times, -values, values, color="#999999", linewidth=0)
    axes[0].set_axis_off()
    for row, speaker in enumerate(diarization.speakers):
        bars = [(turn.start, turn.duration) for turn in diarization.turns if turn.speaker == speaker]
        axes[1].broken_barh(bars, (row - 0.4, 0.8), color=COLOURS[row % len(COLOURS)])
    axes[1].set_yticks(range(len(diarization.speakers)), [name.replace("$", r"\$") for name in diarization.speakers])
    axes[1].invert_yaxis()
    axes[1].set_xlim(0, max(diarization.duration, 1e-3))
    marks = ticks(diarization.duration)
    axes[1].set_xticks(marks, [clock(time) for time in marks])
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            figure.savefig(file, format="png", dpi=100)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
