"""What diarization gives: turns of speakers, in seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Times = list[tuple[float, float]]
"""Starts and ends of the turns of one speaker, in seconds."""


@dataclass(frozen=True, order=True)
class Turn:
    """A stretch in which one speaker speaks, in seconds."""

    start: float
    end: float
    speaker: str

    @property
    def duration(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Diarization:
    """Who spoke when.

    Attributes:
        turns: by start; those of different speakers may overlap.
        exclusive: the same with one speaker at a time, the louder evidence winning: what words are joined with.
        speakers: names in the order in which they first speak.
        duration: of the sound, in seconds.
        embeddings: how each speaker sounds, a unit vector (192,); none where too little was heard.
    """

    turns: tuple[Turn, ...]
    exclusive: tuple[Turn, ...]
    speakers: tuple[str, ...]
    duration: float
    embeddings: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def build(
        cls,
        turns: Sequence[Times],
        exclusive: Sequence[Times],
        names: Sequence[str],
        duration: float,
        embeddings: NDArray[np.float32],
    ) -> Diarization:
        """From the turns, names and embeddings of each speaker; those who never speak are left out."""
        overlapping = _turns(turns, names, duration)
        speakers = speakers_of(overlapping)
        return cls(
            overlapping,
            tuple(turn for turn in _turns(exclusive, names, duration) if turn.speaker in speakers),
            speakers,
            duration,
            {name: embedding for name, embedding in zip(names, embeddings, strict=False) if name in speakers},
        )


def _turns(times: Sequence[Times], names: Sequence[str], duration: float) -> tuple[Turn, ...]:
    return tuple(
        sorted(
            Turn(start, min(end, duration), name)
            for name, own in zip(names, times, strict=True)
            for start, end in own
            if start < duration
        )
    )


def speakers_of(turns: Iterable[Turn]) -> tuple[str, ...]:
    """Names in the order of first appearance."""
    return tuple(dict.fromkeys(turn.speaker for turn in sorted(turns)))
