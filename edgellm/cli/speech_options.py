"""The settings of a transcription as flags: one for each field, named and explained as the field is."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Union

import click

from edgellm.cli.options import Function, collect_into, collected, offline_option
from edgellm.errors import InvalidSettingError
from edgellm.speech.formats.lines import LineShape
from edgellm.speech.settings import TranscriptionSettings
from edgellm.speech.voice_activity import VoiceActivitySettings

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:  # generic only in the newer versions of click
    _ParamType = click.ParamType

COMMAND_SETTINGS = {"token_normalize_func": lambda name: name.replace("_", "-")}
"""For commands with these flags: --beam_size, as OpenAI's Whisper writes it, is --beam-size."""

DEFAULT_MODEL = "tiny.en"
_VAD = "vad_"


class _NotGiven:
    """What a flag that says none collects: None itself would mean that it was not given."""


_NONE = _NotGiven()


class _Value(_ParamType):
    """A value of a field's type; ``none`` where the field may be None; several separated by commas for a tuple."""

    def __init__(self, kind: Any) -> None:
        members = typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)
        self._optional = type(None) in members
        (inner,) = (member for member in members if member is not type(None))
        self._many = typing.get_origin(inner) is tuple
        self._single: Callable[[str], Any] = typing.get_args(inner)[0] if self._many else inner
        name = {"str": "text", "int": "integer"}.get(self._single.__name__, self._single.__name__)
        self.name = f"{name},{name},..." if self._many else name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if self._optional and str(value).lower() == "none":
            return _NONE
        try:
            if self._many:
                return tuple(self._single(part) for part in str(value).split(",") if part.strip())
            return self._single(value)
        except ValueError:
            self.fail(f"{value!r} is not of the form {self.name}", param, ctx)


def speech_model_options(function: Function) -> Function:
    """Add --model, --threads and --offline."""
    collect = collect_into("model")
    options = (
        click.option(
            "-m", "--model", default=DEFAULT_MODEL, show_default=True, help="A Whisper model: alias, path or hf:..."
        ),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            help="Threads to compute with; by default one for each core.",
            expose_value=False,
            callback=collect,
        ),
        offline_option(collect),
    )
    for option in reversed(options):
        function = option(function)
    return function


def transcription_options(function: Function) -> Function:
    """Add one flag for every field of the settings, of voice activity (--vad-...) and of the shape of lines."""
    for kind, group, prefix in reversed(_GROUPS):
        meanings, hints = explained(kind), typing.get_type_hints(kind)
        for field in reversed(dataclasses.fields(kind)):
            if field.name != "vad_parameters":
                function = _option(field, hints[field.name], meanings.get(field.name, ""), group, prefix)(function)
    return click.option(
        "--temperature-increment-on-fallback",
        type=_Value(float | None),
        default=0.2,
        show_default=True,
        expose_value=False,
        callback=collect_into("fallback"),
        help="Where --temperature is one number: how much is added when decoding fails; none: it is tried once.",
    )(function)


_GROUPS: tuple[tuple[type, str, str], ...] = (
    (TranscriptionSettings, "transcription", ""),
    (VoiceActivitySettings, "voice_activity", _VAD),
    (LineShape, "line_shape", ""),
)


def given_transcription(
    defaults: Mapping[str, Any] | None = None, activity: VoiceActivitySettings | None = None
) -> TranscriptionSettings:
    """The settings given on the command line, over ``defaults`` and those of voice activity, over the usual ones."""
    values = _given("transcription")
    if len(values.get("temperature", ())) == 1:
        values["temperature"] = _temperatures(values["temperature"][0], _given("fallback"))
    if given_shape().needs_words:
        values.setdefault("word_timestamps", True)
    parameters = dataclasses.replace(activity or VoiceActivitySettings(), **_given("voice_activity"))
    return TranscriptionSettings(**{**(defaults or {}), **values, "vad_parameters": parameters})


def given_shape() -> LineShape:
    """How lines are to be broken, as given on the command line."""
    return LineShape(**_given("line_shape"))


def _given(group: str) -> dict[str, Any]:
    return {
        name.removeprefix(_VAD) if group == "voice_activity" else name: None if value is _NONE else value
        for name, value in collected(group).items()
    }


def _temperatures(first: float, fallback: dict[str, Any]) -> tuple[float, ...]:
    """From the first temperature up to 1 in steps, as OpenAI's Whisper tries them."""
    step = fallback.get("temperature_increment_on_fallback")
    if step is None or not 0 <= first <= 1:  # none above 1; what is no temperature is refused with all settings
        return (first,)
    if not 0.01 <= step <= 10:
        raise InvalidSettingError(f"temperature_increment_on_fallback is {step}", "use 0.01 to 10, or none")
    count = max(0, int((1.0 + 1e-6 - first) / step)) + 1
    return tuple(round(first + step * index, 6) for index in range(count))


def _option(
    field: dataclasses.Field[Any], kind: Any, meaning: str, group: str, prefix: str
) -> Callable[[Function], Function]:
    flag = "--" + (prefix + field.name).replace("_", "-")
    if kind in (bool, bool | None):
        default = "" if field.default is None else f" Default: {'yes' if field.default else 'no'}."
        return click.option(
            f"{flag}/--no-{flag[2:]}", prefix + field.name, default=None, expose_value=False,
            callback=collect_into(group), help=f"{meaning}{default}",
        )  # fmt: skip
    choice = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    return click.option(
        flag, prefix + field.name, type=click.Choice(list(choice)) if choice else _Value(kind), expose_value=False,
        callback=collect_into(group), help=f"{meaning}{_default(field.default)}",
    )  # fmt: skip


def _default(value: Any) -> str:
    if value is None or value == () or isinstance(value, str):
        return ""
    shown = ",".join(f"{item:g}" for item in value) if isinstance(value, tuple) else f"{value:g}"
    return f" Default: {shown}."


def explained(kind: type) -> dict[str, str]:
    """The meaning of each field, from the list of attributes in the class's docstring."""
    lines = (kind.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^        (\w[\w, ]*): ((?:.*\n?)(?: {9,}.*\n?)*)", lines + "\n", re.MULTILINE)
    sentences = ((names, " ".join(text.split())) for names, text in entries)
    return {
        name: text[:1].upper() + text[1:].replace("``", "") for names, text in sentences for name in names.split(", ")
    }
