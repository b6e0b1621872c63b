"""How a model is named: alias, path, ``hf:owner/repo[:quant]``, ``pypi:package[==version]``, ``ollama:name[:tag]``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import ModelNotFoundError
from edgellm.hub.aliases import ALIASES, Alias, Wheel

FORMS = "an alias, a .gguf path, hf:owner/repo[:quant], pypi:package[==version] or ollama:name[:tag]"

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_PACKAGE = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==([A-Za-z0-9][A-Za-z0-9.!+_-]*))?\Z")
_OLLAMA = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*/)*[A-Za-z0-9][A-Za-z0-9._-]*(?::[A-Za-z0-9][A-Za-z0-9._-]*)?\Z")


@dataclass(frozen=True)
class AliasName:
    """A name from the alias table."""

    alias: Alias

    def __str__(self) -> str:
        return self.alias.name


@dataclass(frozen=True)
class PathName:
    """A file or folder on this machine, used in place."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class HuggingFaceName:
    """A repository on Hugging Face; ``choice`` is a quantization such as Q4_K_M, or a file's name."""

    repository: str
    choice: str | None

    def __str__(self) -> str:
        return f"hf:{self.repository}:{self.choice}" if self.choice else f"hf:{self.repository}"


@dataclass(frozen=True)
class PackageName:
    """One wheel, or several that each hold a part: ``pypi:model-part1==1.0,model-part2==1.0``."""

    wheels: tuple[Wheel, ...]

    def __str__(self) -> str:
        return "pypi:" + ",".join(str(wheel) for wheel in self.wheels)


@dataclass(frozen=True)
class OllamaName:
    """A model that Ollama has already downloaded, read where it lies."""

    name: str
    tag: str

    def __str__(self) -> str:
        return f"ollama:{self.name}:{self.tag}"


@dataclass(frozen=True)
class OtherName:
    """Neither an alias nor of a known form: perhaps a file put into the models folder by hand."""

    name: str

    def __str__(self) -> str:
        return self.name


ModelName = AliasName | PathName | HuggingFaceName | PackageName | OllamaName | OtherName


def parse_name(text: str) -> ModelName:
    """Understand a model's name.

    Raises:
        ModelNotFoundError: the name has a known prefix but not its form.
    """
    prefix, colon, rest = text.partition(":")
    if colon and prefix in _PREFIXES:
        return _PREFIXES[prefix](rest)
    if text in ALIASES:
        return AliasName(ALIASES[text])
    if _looks_like_path(text):
        return PathName(Path(text).expanduser())
    return OtherName(text)


def unknown_model(name: str, others: Iterable[str]) -> ModelNotFoundError:
    """The error for a name nothing answers to, with the nearest of those that exist."""
    known = sorted({*ALIASES, *others})
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return ModelNotFoundError(f"{name!r} is not a known model", f"{hint}known: {', '.join(known)}; or give {FORMS}")


def _looks_like_path(text: str) -> bool:
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    return any(separator in text for separator in separators) or text.endswith(".gguf") or Path(text).exists()


def _parse_hugging_face(text: str) -> ModelName:
    repository, _, choice = text.partition(":")
    if not _REPOSITORY.match(repository) or any(part in ("", ".", "..") for part in choice.split("/") if choice):
        raise ModelNotFoundError(f"'hf:{text}' is not of the form hf:owner/repo[:quant]", "for example hf:owner/repo")
    return HuggingFaceName(repository, choice or None)


def _parse_package(text: str) -> ModelName:
    wheels = []
    for piece in text.split(","):
        match = _PACKAGE.match(piece.strip())
        if not match:
            raise ModelNotFoundError(
                f"'pypi:{text}' is not of the form pypi:package[==version]",
                "a model cut into several packages is named pypi:part1==1.0,part2==1.0",
            )
        wheels.append(Wheel(match[1], match[2]))
    return PackageName(tuple(wheels))


def _parse_ollama(text: str) -> ModelName:
    if not _OLLAMA.match(text):
        raise ModelNotFoundError(f"'ollama:{text}' is not of the form ollama:name[:tag]", "see `ollama list`")
    name, _, tag = text.partition(":")
    return OllamaName(name, tag or "latest")


_PREFIXES = {"hf": _parse_hugging_face, "pypi": _parse_package, "ollama": _parse_ollama}
