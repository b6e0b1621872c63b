"""Hyper-parameters of a model, read from its file's metadata and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from edgellm.errors import CorruptFileError

LARGEST_WIDTH = 1 << 20
"""No published model has a row near this wide; a larger number is a damaged file."""


class Parameters:
    """Reads ``{architecture}.{key}``; a missing, ill-typed or absurd value is a CorruptFileError that names the key."""

    def __init__(self, metadata: Mapping[str, object], architecture: str) -> None:
        self._metadata = metadata
        self._architecture = architecture

    def _read(self, key: str) -> tuple[str, object]:
        name = f"{self._architecture}.{key}"
        return name, self._metadata.get(name)

    def has(self, key: str) -> bool:
        """Whether the file has the key."""
        return self._read(key)[1] is not None

    def integer(self, key: str, default: int | None = None, minimum: int = 1, maximum: int = LARGEST_WIDTH) -> int:
        """A whole number from ``minimum`` to ``maximum``; ``default`` where the file has none."""
        name, value = self._read(key)
        if value is None:
            if default is None:
                raise _missing(name)
            return default
        return _checked_integer(name, value, minimum, maximum)

    def real(self, key: str, default: float | None = None, minimum: float = 0.0, maximum: float = 1e30) -> float:
        """A finite number from ``minimum`` to ``maximum``; ``default`` where the file has none."""
        name, value = self._read(key)
        if value is None:
            if default is None:
                raise _missing(name)
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CorruptFileError(f"{name} must be a number, not {_kind(value)}")
        if not (math.isfinite(value) and minimum <= value <= maximum):
            raise CorruptFileError(f"{name} is {value:g}, expected {minimum:g} to {maximum:g}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """Yes or no; ``default`` where the file has none."""
        name, value = self._read(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise CorruptFileError(f"{name} must be true or false, not {_kind(value)}")
        return value

    def text(self, key: str, default: str) -> str:
        """A string; ``default`` where the file has none."""
        name, value = self._read(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise CorruptFileError(f"{name} must be a string, not {_kind(value)}")
        return value

    def per_layer(
        self, key: str, layers: int, default: tuple[int, ...] | None = None, minimum: int = 1
    ) -> tuple[int, ...]:
        """One whole number per layer; the file holds either an array of them or one number for all layers."""
        name, value = self._read(key)
        if value is None:
            if default is None:
                raise _missing(name)
            return default
        if not isinstance(value, np.ndarray):
            return (_checked_integer(name, value, minimum, LARGEST_WIDTH),) * layers
        if value.size != layers:
            raise CorruptFileError(f"{name} has {value.size} entries, expected one for each of {layers} layers")
        return tuple(_checked_integer(name, entry, minimum, LARGEST_WIDTH) for entry in value.tolist())

    def flags(self, key: str, layers: int) -> tuple[bool, ...] | None:
        """One yes or no per layer; None where the file has no array under this key."""
        name, value = self._read(key)
        if not isinstance(value, np.ndarray):
            return None
        if value.size != layers:
            raise CorruptFileError(f"{name} has {value.size} entries, expected one for each of {layers} layers")
        return tuple(bool(entry) for entry in value.tolist())


def _missing(name: str) -> CorruptFileError:
    return CorruptFileError(f"the file lacks the key {name}", "convert the model again, or fetch another copy")


def _kind(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else f"a {type(value).__name__}"


def _checked_integer(name: str, value: object, minimum: int, maximum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise CorruptFileError(f"{name} must be a whole number, not {_kind(value)}")
    if not minimum <= value <= maximum:
        raise CorruptFileError(f"{name} is {value}, expected {minimum} to {maximum}")
    return value
