"""Known voices: a profile of each, which holds an embedding and nothing of what was said."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm.diarization.assignment import best_pairs
from edgellm.diarization.embedding_network import EMBEDDING
from edgellm.errors import CorruptFileError, EdgeLLMError, InvalidSettingError
from edgellm.folders import voices_folder
from edgellm.hub.files import write_atomically

SIMILAR = 0.52
"""Cosine from which on a voice is the known one."""
_NAME = re.compile(r"[^\W_][\w .'-]{0,63}\Z")
_MODEL = "CAM++ zh-en common advanced"
_LARGEST_PROFILE = 1 << 20


@dataclass(frozen=True)
class Voice:
    """A known voice: its name and a unit vector (192,)."""

    name: str
    embedding: NDArray[np.float32]


class Voices:
    """The profiles in a folder, one file each.

    Args:
        folder: where they are; the user's own by default.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or voices_folder()

    def add(self, name: str, embedding: NDArray[np.float32]) -> Path:
        """Keep a profile; one of the same name is replaced.

        Raises:
            InvalidSettingError: the name cannot be a file's.
            EdgeLLMError: the folder cannot be written.
        """
        path = self._path(name)
        profile = {"name": name, "model": _MODEL, "embedding": [round(float(value), 6) for value in embedding]}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(profile) + "\n")
        except OSError as error:
            raise EdgeLLMError(f"cannot write {path}: {error.strerror}") from error
        return path

    def remove(self, name: str) -> None:
        """Forget a voice.

        Raises:
            InvalidSettingError: there is none of this name.
        """
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            known = ", ".join(voice.name for voice in self.all()) or "none"
            raise InvalidSettingError(f"there is no voice called {name!r}", f"known: {known}") from None

    def all(self) -> list[Voice]:
        """Every profile, by name.

        Raises:
            CorruptFileError: one of them is damaged; says which.
        """
        return [_read(path) for path in sorted(self.folder.glob("*.json"))] if self.folder.is_dir() else []

    def _path(self, name: str) -> Path:
        check_name(name)
        return self.folder / f"{name}.json"


def check_name(name: str) -> None:
    """Whether a voice may be called so; InvalidSettingError if not."""
    if not _NAME.match(name):
        raise InvalidSettingError(
            f"{name!r} cannot be the name of a voice", "use letters, digits, spaces and . ' - up to 64 characters"
        )


def recognize(centres: NDArray[np.float32], voices: Sequence[Voice], threshold: float = SIMILAR) -> Mapping[int, str]:
    """Names of those speakers (unit vectors, (speakers, 192)) that are known; each name is given once at most."""
    if not len(voices) or not len(centres):
        return {}
    similarities = centres.astype(np.float64) @ np.stack([voice.embedding for voice in voices]).T.astype(np.float64)
    gains = np.where(similarities >= threshold, similarities, 0.0)
    return {row: voices[column].name for row, column in best_pairs(gains) if similarities[row, column] >= threshold}


def _read(path: Path) -> Voice:
    try:
        if path.stat().st_size > _LARGEST_PROFILE:
            raise ValueError("too large")
        profile = json.loads(path.read_text("utf-8"))
        if not isinstance(profile, dict):
            raise ValueError("it holds no profile")
        values = [float(value) for value in profile["embedding"]]
        name, model = str(profile["name"]), profile.get("model")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFileError(
            f"the voice profile {path} is damaged ({error})", "delete it and add it again"
        ) from error
    if model != _MODEL or len(values) != EMBEDDING or not all(math.isfinite(value) for value in values):
        raise CorruptFileError(f"the voice profile {path} was made with another model", "delete it and add it again")
    embedding = np.array(values, np.float32)
    length = float(np.linalg.norm(embedding))
    if not math.isfinite(length) or length < 1e-6:
        raise CorruptFileError(f"the voice profile {path} holds no voice", "delete it and add it again")
    return Voice(name, embedding / length)
