"""What a user can set about sampling: names, ranges and defaults, in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import index
from types import MappingProxyType
from typing import Any

import numpy as np

from edgellm.errors import InvalidSettingError

DEFAULT_SAMPLERS = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")

_SAMPLER_ALIASES = {
    "typical_p": "typ_p",
    "typical": "typ_p",
    "typ": "typ_p",
    "nucleus": "top_p",
    "temp": "temperature",
}
_SAMPLER_LETTERS = dict(zip("edskypmxt", DEFAULT_SAMPLERS, strict=True))
_LARGEST_COUNT = 2**31 - 1
_LARGEST_BIAS = 1e30


@dataclass(frozen=True)
class Setting:
    """One number a user can set: its kind, its range (both ends included) and its meaning in one line."""

    kind: type[int] | type[float]
    low: float
    high: float
    meaning: str


# Order, names and meaning as in llama.cpp, so that advice found elsewhere holds here.
NUMBERS: Mapping[str, Setting] = MappingProxyType(
    {
        "temperature": Setting(float, -100, 100, "flattens (> 1) or sharpens (< 1) the choice; 0 or less = greedy"),
        "dynatemp_range": Setting(float, 0, 100, "temperature varies by this much with the entropy; 0 = off"),
        "dynatemp_exponent": Setting(float, 0, 100, "how the entropy maps to the temperature"),
        "top_k": Setting(int, -1, _LARGEST_COUNT, "keep the k most likely tokens; 0 or less = off"),
        "top_p": Setting(float, 0, 1, "keep the most likely tokens that sum to p; 1 = off"),
        "min_p": Setting(float, 0, 1, "keep tokens at least p times as likely as the best; 0 = off"),
        "typical_p": Setting(float, 0, 1, "keep tokens of typical surprise that sum to p; 1 = off"),
        "top_n_sigma": Setting(float, -1, 1000, "keep logits within n deviations of the best; 0 or less = off"),
        "xtc_probability": Setting(float, 0, 1, "chance to leave out the top choices; 0 = off"),
        "xtc_threshold": Setting(float, 0, 1, "how likely a top choice is at least; over 0.5 = off"),
        "min_keep": Setting(int, 0, _LARGEST_COUNT, "top_p, min_p, typical_p and xtc leave at least so many tokens"),
        "mirostat": Setting(int, 0, 2, "Mirostat version 1 or 2 instead of the truncating samplers; 0 = off"),
        "mirostat_tau": Setting(float, 0, 100, "Mirostat's target surprise, bits"),
        "mirostat_eta": Setting(float, 0, 100, "Mirostat's learning rate"),
        "repeat_penalty": Setting(float, 1e-3, 1000, "divides the logits of recent tokens; 1 = off"),
        "repeat_last_n": Setting(int, -1, _LARGEST_COUNT, "tokens the penalties look back on; -1 = all, 0 = off"),
        "presence_penalty": Setting(float, -1000, 1000, "subtracted from the logits of recent tokens; 0 = off"),
        "frequency_penalty": Setting(float, -1000, 1000, "subtracted per occurrence of a recent token; 0 = off"),
        "dry_multiplier": Setting(float, 0, 1000, "strength of the DRY repetition penalty; 0 = off"),
        "dry_base": Setting(float, 0, 1000, "growth of the DRY penalty per repeated token; under 1 = off"),
        "dry_allowed_length": Setting(int, 0, _LARGEST_COUNT, "repeats shorter than this go unpunished"),
        "dry_penalty_last_n": Setting(int, -1, _LARGEST_COUNT, "tokens DRY looks back on; -1 = all, 0 = off"),
        "seed": Setting(int, -1, 2**64 - 1, "same seed, same text; -1 or none = random"),
    }
)

# The general.sampling.* keys of GGUF files (gguf-py's constants.py) and the settings they stand for.
_METADATA_KEYS = {
    "temp": "temperature",
    "penalty_last_n": "repeat_last_n",
    "penalty_repeat": "repeat_penalty",
    "sequence": "samplers",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Names and defaults are llama.cpp's; ``NUMBERS`` holds ranges and meanings.

    Args:
        dry_sequence_breakers: strings over which DRY follows no repetition.
        logit_bias: token id, or text, to a number added to the logit, or to False: never chosen. A text biases each
            token it consists of.
        ignore_eos: never choose a token that ends the generation.
        seed: None or -1 draws a new one for each sampler.
        samplers: names in the order in which they are applied; those left out are not. Also accepted: one string,
            "top_k;top_p" or llama.cpp's letters, "kp".

    Raises:
        InvalidSettingError: a value is of the wrong kind or out of range.
    """

    temperature: float = 0.8
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    min_keep: int = 0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    logit_bias: Mapping[int | str, float | bool] = field(default_factory=dict, hash=False)
    ignore_eos: bool = False
    seed: int | None = None
    samplers: tuple[str, ...] = DEFAULT_SAMPLERS

    def __post_init__(self) -> None:
        for setting in NUMBERS:
            value = getattr(self, setting)
            if not (setting == "seed" and value is None):
                object.__setattr__(self, setting, checked_number(setting, value))
        if not isinstance(self.ignore_eos, bool | np.bool_):
            raise InvalidSettingError(f"ignore_eos = {self.ignore_eos!r}: expected true or false")
        object.__setattr__(self, "dry_sequence_breakers", _checked_breakers(self.dry_sequence_breakers))
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))
        object.__setattr__(self, "samplers", _checked_samplers(self.samplers))

    @staticmethod
    def from_metadata(metadata: Mapping[str, Any]) -> Sampling:
        """The defaults, with those a model file recommends (``general.sampling.*``) in their place.

        Raises:
            InvalidSettingError: the file recommends something that makes no sense.
        """
        found: dict[str, Any] = {}
        for key, name in _METADATA_KEYS.items():
            value = metadata.get(f"general.sampling.{key}")
            if value is None or value == "":
                continue
            # Files hold float32; 0.95 is meant, not 0.949999988079071.
            found[name] = float(str(np.float32(value))) if isinstance(value, float | np.floating) else value
        try:
            return Sampling(**found)
        except InvalidSettingError as error:
            hint = "give sampling settings of your own, or correct general.sampling.* in the file"
            raise InvalidSettingError(f"the model file recommends {error.message}", hint) from None

    @staticmethod
    def parse(name: str, text: str) -> int | float | bool | tuple[str, ...] | None:
        """The value that ``text``, as typed by a user, means for the setting ``name``.

        Raises:
            InvalidSettingError: no such setting, or no such value.
        """
        text = text.strip()
        if name in NUMBERS:
            if name == "seed" and text.lower() in ("", "none", "random"):
                return None
            try:
                return checked_number(name, float(text) if NUMBERS[name].kind is float else int(text))
            except ValueError:
                raise _invalid(name, text) from None
        if name == "ignore_eos" and text.lower() in ("true", "on", "yes", "1", "false", "off", "no", "0"):
            return text.lower() in ("true", "on", "yes", "1")
        if name == "samplers":
            return _checked_samplers(text)
        known = ", ".join(f.name for f in fields(Sampling))
        raise InvalidSettingError(f"{name} = {text!r} cannot be set", f"settings: {known}")


def checked_number(name: str, value: object) -> int | float:
    """``value`` as the int or float the setting ``name`` wants.

    Raises:
        InvalidSettingError: it is not a number, or out of range.
    """
    setting = NUMBERS[name]
    if isinstance(value, bool | np.bool_ | str):
        raise _invalid(name, value)
    try:
        number: int | float = float(value) if setting.kind is float else _whole(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise _invalid(name, value) from None
    if not setting.low <= number <= setting.high:
        raise _invalid(name, value)
    return number


def _whole(value: object) -> int:
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return int(value)
    return index(value)  # type: ignore[arg-type]


def _invalid(name: str, value: object) -> InvalidSettingError:
    setting = NUMBERS[name]
    kind = "a whole number" if setting.kind is int else "a number"
    shown = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a huge number"
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    return InvalidSettingError(f"{name} = {shown}: expected {kind} from {setting.low} to {setting.high}")


def _checked_breakers(breakers: object) -> tuple[str, ...]:
    if isinstance(breakers, str) or not isinstance(breakers, Sequence):
        raise InvalidSettingError(f"dry_sequence_breakers = {breakers!r}: expected a list of strings")
    for breaker in breakers:
        if not isinstance(breaker, str) or not breaker:
            raise InvalidSettingError(f"dry_sequence_breakers: {breaker!r} is not a string of one character or more")
    return tuple(breakers)


def _checked_bias(bias: object) -> dict[int | str, float]:
    if not isinstance(bias, Mapping):
        raise InvalidSettingError(f"logit_bias = {bias!r}: expected a mapping of token id or text to a number or false")
    checked: dict[int | str, float] = {}
    for token, value in bias.items():
        if isinstance(token, bool) or not isinstance(token, int | np.integer | str) or token == "":
            raise InvalidSettingError(f"logit_bias: {token!r} is neither a token id nor a text")
        number = -math.inf if value is False else value
        is_number = isinstance(number, int | float | np.number) and not isinstance(number, bool)
        if not is_number or not (-_LARGEST_BIAS <= number <= _LARGEST_BIAS or number == -math.inf):
            expected = f"a number from {-_LARGEST_BIAS:g} to {_LARGEST_BIAS:g}, or false for never"
            raise InvalidSettingError(f"logit_bias[{token!r}] = {value!r}: expected {expected}")
        checked[token if isinstance(token, str) else int(token)] = float(number)
    return checked


def _checked_samplers(samplers: object) -> tuple[str, ...]:
    if isinstance(samplers, str):
        letters = samplers and all(letter in _SAMPLER_LETTERS for letter in samplers)
        samplers = [_SAMPLER_LETTERS[letter] for letter in samplers] if letters else samplers.split(";")
    if not isinstance(samplers, Sequence):
        raise InvalidSettingError(f"samplers = {samplers!r}: expected a list of names")
    names = []
    for given in samplers:
        name = str(given).strip().lower().replace("-", "_")
        if not name:
            continue
        name = _SAMPLER_ALIASES.get(name, name)
        if name not in DEFAULT_SAMPLERS:
            raise InvalidSettingError(f"samplers: {given!r} is unknown, expected some of {', '.join(DEFAULT_SAMPLERS)}")
        names.append(name)
    return tuple(names)
