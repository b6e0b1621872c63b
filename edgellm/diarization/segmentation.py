"""Who of at most three local speakers speaks in each frame of ten seconds, for windows that overlap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.diarization.segmentation_network import (
    CLASSES,
    FIRST_FRAME_CENTRE,
    FRAME_SAMPLES,
    FRAMES,
    SAMPLE_RATE,
    WINDOW_SAMPLES,
)

LOCAL_SPEAKERS = 3
FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE
FRAMES_PER_SECOND = SAMPLE_RATE / FRAME_SAMPLES
_MEMBERS = np.array([[speaker in members for speaker in range(LOCAL_SPEAKERS)] for members in CLASSES], np.float32)
_SIZES = np.array([[len(members) == count for count in range(3)] for members in CLASSES], np.float32)


def frame_time(frame: float) -> float:
    """Where a frame begins, in seconds: half a step before its centre."""
    return (FIRST_FRAME_CENTRE - FRAME_SAMPLES / 2 + frame * FRAME_SAMPLES) / SAMPLE_RATE


def time_frame(seconds: float) -> int:
    """The frame in which a time lies."""
    return int(np.floor((seconds * SAMPLE_RATE - FIRST_FRAME_CENTRE + FRAME_SAMPLES / 2) / FRAME_SAMPLES))


@dataclass(frozen=True)
class LocalActivity:
    """What the network says about one window.

    Attributes:
        first: the frame of the whole sound with which it begins.
        speakers: probability that each local speaker speaks, float16 (589, 3).
        counts: probability that nobody, one or two speak, float16 (589, 3).
    """

    first: int
    speakers: NDArray[np.float16]
    counts: NDArray[np.float16]

    @property
    def end(self) -> int:
        return self.first + FRAMES


def local_activity(first: int, log_probabilities: NDArray[np.float32]) -> LocalActivity:
    """Read the network's output, (589, 7)."""
    probabilities = np.exp(log_probabilities)
    return LocalActivity(
        first, (probabilities @ _MEMBERS).astype(np.float16), (probabilities @ _SIZES).astype(np.float16)
    )


def last_window_start(samples: int) -> int:
    """The first frame of the window that reaches the end of a sound of so many samples."""
    return max(0, -(-(samples - WINDOW_SAMPLES) // FRAME_SAMPLES))


def window_starts(samples: int, step: int) -> Iterator[int]:
    """First frames of the windows that cover a sound: every ``step`` frames, and one that reaches the end."""
    last = last_window_start(samples)
    yield from range(0, last, step)
    yield last
