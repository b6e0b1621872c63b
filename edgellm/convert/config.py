"""Reading config.json: every value is checked, since checkpoints come from anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.convert.safetensors import shown
from edgellm.errors import CorruptFileError, UnsupportedModelError

MAX_LAYERS = 1024
_HINT = "the checkpoint is damaged or of a kind this version does not know"


@dataclass(frozen=True)
class Config:
    """A JSON object with typed look-ups; the first of several names that is there and not null counts.

    All methods raise CorruptFileError for a value of the wrong type or out of range, and for a missing one where no
    default is given.
    """

    values: Mapping[str, Any]
    name: str = "config.json"

    def get(self, *names: str) -> Any:
        """The value as it is; None where there is none."""
        return next((self.values[name] for name in names if self.values.get(name) is not None), None)

    def has(self, *names: str) -> bool:
        """Whether one of the names has a value."""
        return self.get(*names) is not None

    def integer(self, *names: str, default: int | None = None, minimum: int = 1, maximum: int = 1 << 31) -> int:
        """A whole number."""
        value = self._or_default(names, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise self._wrong(names, value, f"a whole number from {minimum} to {maximum}")
        return value

    def real(self, *names: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._or_default(names, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(names, value, "a number")
        return float(value)

    def text(self, *names: str, default: str | None = None) -> str:
        """A string."""
        value = self._or_default(names, default)
        if not isinstance(value, str):
            raise self._wrong(names, value, "a string")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._or_default((name,), default)
        if not isinstance(value, bool):
            raise self._wrong((name,), value, "true or false")
        return value

    def numbers(self, *names: str) -> list[float]:
        """A list of finite numbers."""
        value = self._or_default(names, None)
        if not isinstance(value, list) or not all(
            isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item) for item in value
        ):
            raise self._wrong(names, value, "a list of numbers")
        return [float(item) for item in value]

    def part(self, name: str) -> Config:
        """An object within; empty where there is none."""
        value = self.values.get(name)
        if value is None:
            return Config({}, f"{self.name}: {name}")
        if not isinstance(value, dict):
            raise self._wrong((name,), value, "an object")
        return Config(value, f"{self.name}: {name}")

    def require(self, name: str, *allowed: object) -> None:
        """Raise UnsupportedModelError unless the value is missing, null or one of these."""
        value = self.get(name)
        if value is not None and value not in allowed:
            known = ", ".join(map(repr, allowed)) or "none"
            raise UnsupportedModelError(
                f"{self.name} has {name} = {shown(str(value))}, which is not known", f"known: {known}"
            )

    def merged(self, other: Mapping[str, Any]) -> Config:
        """These values with others over them."""
        return Config({**self.values, **other}, self.name)

    def _or_default(self, names: tuple[str, ...], default: object) -> Any:
        value = self.get(*names)
        if value is None and default is None:
            raise CorruptFileError(f"{self.name} has no {' or '.join(names)}", _HINT)
        return default if value is None else value

    def _wrong(self, names: tuple[str, ...], value: object, expected: str) -> CorruptFileError:
        name = next((name for name in names if self.values.get(name) is not None), names[0])
        return CorruptFileError(f"{self.name}: {name} is {shown(str(value))}, expected {expected}", _HINT)


def rope_parameters(config: Config) -> Config:
    """How rotary positions are scaled, whichever way it is written down: ``rope_parameters``, or ``rope_scaling``
    beside ``rope_theta``. Where local and global layers differ this is what holds for the global ones.
    """
    values: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        values.update({key: value for key, value in config.part(name).values.items() if value is not None})
    for key in ("full_attention",):
        if isinstance(values.get(key), dict):
            values.update({name: value for name, value in values[key].items() if value is not None})
    values = {key: value for key, value in values.items() if not isinstance(value, dict)}
    values.setdefault("rope_type", values.get("type", "default"))
    for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        if config.has(key):
            values.setdefault(key, config.get(key))
    return Config(values, f"{config.name}: rope_parameters")
