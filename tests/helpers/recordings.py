"""Sounds whose speakers are known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from edgellm.diarization import Turn


@dataclass(frozen=True)
class Recording:
    """A sound with its truth."""

    path: Path
    turns: list[Turn]

    @property
    def speakers(self) -> int:
        return len({turn.speaker for turn in self.turns})

    @property
    def utterances(self) -> list[dict[str, object]]:
        """Of a made conversation: who says which utterance when."""
        return list(json.loads(self.path.with_suffix(".json").read_text())["turns"])
