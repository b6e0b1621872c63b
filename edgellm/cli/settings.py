"""The settings of a generation: as flags, as /set in the chat, and as the Python API takes them; one set of names."""

from __future__ import annotations

import dataclasses
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.options import Function, collect_into, collected
from edgellm.errors import InvalidSettingError
from edgellm.sampling import NUMBERS, Sampling

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:  # generic only in the newer versions of click
    _ParamType = click.ParamType

_MEANINGS = {
    "dry_sequence_breakers": "a string over which DRY follows no repetition; may be given several times",
    "logit_bias": "TOKEN=NUMBER, or TOKEN=false for never; TOKEN is an id or a text; may be given several times",
    "ignore_eos": "never choose a token that ends the text",
    "samplers": "which samplers, in which order, such as 'top_k;top_p;temperature'",
}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


@dataclass(frozen=True)
class GenerationSettings:
    """Everything that shapes an answer. The names are those of the flags, of /set and of the Python API."""

    sampling: Sampling
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()

    def changed(self, name: str, text: str) -> GenerationSettings:
        """The same settings but for one, given as a user types it.

        Raises:
            InvalidSettingError: no such setting, or no such value.
        """
        name = name.replace("-", "_").removeprefix("__")
        if name == "max_tokens":
            return dataclasses.replace(self, max_tokens=parse_max_tokens(text))
        if name == "stop":
            return dataclasses.replace(self, stop=parse_strings(text))
        return dataclasses.replace(self, sampling=changed_sampling(self.sampling, {name: parse_setting(name, text)}))

    def shown(self) -> dict[str, str]:
        """Every setting by name, as a user would type it."""
        values = {name: _shown(getattr(self.sampling, name)) for name in setting_names()[2:]}
        values["samplers"] = ";".join(self.sampling.samplers) or ";"
        return {"max_tokens": _shown(self.max_tokens), "stop": _shown(self.stop), **values}


def setting_names() -> list[str]:
    """The names that GenerationSettings knows."""
    return ["max_tokens", "stop", *(field.name for field in dataclasses.fields(Sampling))]


def parse_setting(name: str, text: str) -> Any:
    """The value of a sampling setting as a user types it; several strings are separated as in a shell."""
    if name == "dry_sequence_breakers":
        return parse_strings(text)
    if name == "logit_bias":
        return {} if text == "none" else dict(map(parse_bias, split_words(text)))
    if name not in _MEANINGS and name not in NUMBERS:
        raise InvalidSettingError(f"there is no setting {name!r}", f"there are: {', '.join(setting_names())}")
    return Sampling.parse(name, text)


def parse_max_tokens(text: str) -> int | None:
    """A count, or None for as many as the context holds."""
    if text.lower() in ("none", "-1"):
        return None
    if not text.isdecimal():
        raise InvalidSettingError(f"max_tokens = {text!r}: expected a whole number of at least 0, or none")
    return int(text)


def parse_strings(text: str) -> tuple[str, ...]:
    """Strings as a user types them, or none."""
    strings = () if text == "none" else tuple(map(unescape, split_words(text)))
    if "" in strings:
        raise InvalidSettingError(f"{text}: one of the strings is empty", "write none for no strings")
    return strings


def parse_bias(text: str) -> tuple[int | str, float | bool]:
    """One TOKEN=VALUE."""
    token, equals, value = text.rpartition("=")
    try:
        bias: float | bool = False if value.lower() == "false" else float(value)
    except ValueError:
        bias = True
    if not equals or not token or bias is True:
        raise InvalidSettingError(f"logit_bias {text!r} is not of the form TOKEN=NUMBER or TOKEN=false")
    return int(token) if token.isdecimal() else unescape(token), bias


def unescape(text: str) -> str:
    r"""Text in which \n, \t, \r and \\ stand for what they do in most languages."""
    return re.sub(r"\\([ntr\\])", lambda match: _ESCAPES[match[1]], text)


def escape(text: str) -> str:
    """The inverse of ``unescape``."""
    for letter, character in reversed(_ESCAPES.items()):
        text = text.replace(character, "\\" + letter)
    return text


def split_words(text: str) -> list[str]:
    """Words as in a shell: quotes hold together, backslashes stay."""
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""
    try:
        return list(lexer)
    except ValueError as error:
        raise InvalidSettingError(f"{text!r} has a quotation mark too few") from error


def changed_sampling(sampling: Sampling, changes: dict[str, Any]) -> Sampling:
    return dataclasses.replace(sampling, **changes)


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return " ".join(shlex.quote(f"{escape(str(token))}={bias:.12g}") for token, bias in value.items()) or "none"
    if isinstance(value, tuple):
        return " ".join(shlex.quote(escape(str(item))) for item in value) or "none"
    return f"{value:.12g}" if isinstance(value, float) else str(value)


class _SettingType(_ParamType):
    """A sampling setting on the command line, checked as everywhere else."""

    def __init__(self, name: str) -> None:
        self.setting = name
        self.name = NUMBERS[name].kind.__name__ if name in NUMBERS else "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            if self.setting == "logit_bias":
                return parse_bias(value)
            if self.setting == "dry_sequence_breakers":
                return unescape(value)
            checked = Sampling.parse(self.setting, value)
            return "none" if checked is None else checked  # None would mean: not given
        except InvalidSettingError as error:
            self.fail(error.message, param, ctx)


def generation_options(function: Function) -> Function:
    """Add --max-tokens, --stop and one flag for every field of Sampling."""
    for field in reversed(dataclasses.fields(Sampling)):
        flag = f"--{field.name.replace('_', '-')}"
        if field.name == "ignore_eos":
            option = click.option(
                f"{flag}/--no-ignore-eos",
                default=None,
                expose_value=False,
                callback=collect_into("sampling"),
                help=_MEANINGS[field.name],
            )
        else:
            option = click.option(
                flag,
                field.name,
                type=_SettingType(field.name),
                multiple=field.name in ("logit_bias", "dry_sequence_breakers"),
                expose_value=False,
                callback=collect_into("sampling"),
                help=_help(field),
            )
        function = option(function)
    function = click.option(
        "--stop",
        multiple=True,
        expose_value=False,
        callback=collect_into("generation"),
        help="Stop before this string; may be given several times; \\n and \\t are understood.",
    )(function)
    return click.option(
        "--max-tokens",
        type=click.IntRange(min=0),
        expose_value=False,
        callback=collect_into("generation"),
        help="Most tokens to generate; by default as many as the context holds.",
    )(function)


def _help(field: dataclasses.Field[Any]) -> str:
    meaning = NUMBERS[field.name].meaning if field.name in NUMBERS else _MEANINGS[field.name]
    default = field.default if isinstance(field.default, int | float) else None
    if "_" not in meaning.partition(" ")[0]:
        meaning = meaning[0].upper() + meaning[1:]
    return f"{meaning}." + ("" if default is None else f" Default: {default:g}.")


def given_settings(base: Sampling) -> GenerationSettings:
    """The settings given on the command line, on top of those the model comes with."""
    changes = dict(collected("sampling"))
    if "logit_bias" in changes:
        changes["logit_bias"] = dict(changes["logit_bias"])
    if changes.get("seed") == "none":
        changes["seed"] = None
    generation = collected("generation")
    return GenerationSettings(
        changed_sampling(base, changes), generation.get("max_tokens"), tuple(map(unescape, generation.get("stop", ())))
    )
