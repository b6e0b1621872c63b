"""The table of families, filled by the files of ``edgellm.convert.families``."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgellm.convert.safetensors import shown
from edgellm.errors import UnsupportedModelError

if TYPE_CHECKING:
    from edgellm.convert.builder import Builder

Describe = Callable[["Builder"], None]
"""Writes down the keys and tensors of a model."""

_TABLE: dict[str, Describe] = {}


def family(*names: str) -> Callable[[Describe], Describe]:
    """Register the decorated function for these ``architectures`` of config.json."""

    def register(describe: Describe) -> Describe:
        for name in names:
            if name in _TABLE:
                raise ValueError(f"architecture {name} is registered twice")
            _TABLE[name] = describe
        return describe

    return register


@functools.cache
def _import_all() -> None:
    package = importlib.import_module("edgellm.convert.families")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def known_families() -> list[str]:
    """All architectures that can be converted, sorted."""
    _import_all()
    return sorted(_TABLE)


def find_family(name: str) -> Describe:
    """The function that converts an architecture; UnsupportedModelError tells the nearest names if there is none."""
    known = known_families()
    if name in _TABLE:
        return _TABLE[name]
    lowered = {item.lower(): item for item in known}
    near = [lowered[item] for item in difflib.get_close_matches(name[:60].lower(), lowered, n=2, cutoff=0.5)]
    hint = f"nearest: {', '.join(near)}; " if near else ""
    raise UnsupportedModelError(f"architecture {shown(name)} cannot be converted", f"{hint}known: {', '.join(known)}")
