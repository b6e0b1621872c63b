"""The table of known architectures, filled by the files of this package."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgellm.errors import UnsupportedModelError

if TYPE_CHECKING:
    from edgellm.graph import Value
    from edgellm.models.blocks import GraphBuilder

Describe = Callable[["GraphBuilder"], "Value"]
"""Describes a model on the builder and returns its logits."""

_TABLE: dict[str, Describe] = {}


def architecture(*names: str) -> Callable[[Describe], Describe]:
    """Register the decorated function for these values of ``general.architecture``."""

    def register(describe: Describe) -> Describe:
        for name in names:
            if name in _TABLE:
                raise ValueError(f"architecture {name} is registered twice")
            _TABLE[name] = describe
        return describe

    return register


@functools.cache
def _import_all() -> None:
    """Import every file beside this one, so that each registers what it describes."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")


def known_architectures() -> list[str]:
    """Names of all architectures that can be run, sorted."""
    _import_all()
    return sorted(_TABLE)


def find_architecture(name: str) -> Describe:
    """The function that describes ``name``; UnsupportedModelError tells the nearest names if there is none."""
    known = known_architectures()
    if name in _TABLE:
        return _TABLE[name]
    shown = name if len(name) <= 40 else name[:40] + "…"
    nearest = difflib.get_close_matches(name[:40].lower(), known, n=2, cutoff=0.5)
    hint = f"nearest: {', '.join(nearest)}; " if nearest else ""
    raise UnsupportedModelError(f"architecture {shown!r} is not known", f"{hint}known: {', '.join(known)}")
