"""What diarization gives: turns of speakers, in seconds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


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
    """

    turns: tuple[Turn, ...]
    exclusive: tuple[Turn, ...]
    speakers: tuple[str, ...]
    duration: float


def speakers_of(turns: Iterable[Turn]) -> tuple[str, ...]:
    """Names in the order of first appearance."""
    return tuple(dict.fromkeys(turn.speaker for turn in sorted(turns)))
