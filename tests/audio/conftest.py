"""Sounds made on the spot, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

Samples = np.ndarray


def tone(seconds: float, rate: int, frequency: float = 440.0, level: float = 0.5) -> Samples:
    """A sine, float64."""
    return level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write samples to a sound file and return its path."""

    def write_sound(name: str, samples: Samples, rate: int, **kind: str) -> Path:
        path = tmp_path / name
        soundfile.write(path, samples, rate, **kind)
        return path

    return write_sound
