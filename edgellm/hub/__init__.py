"""Finding models by name and fetching them: ``resolve``, ``pull``, ``installed``, ``remove``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.hub.aliases import ALIASES, Alias
from edgellm.hub.locate import pull, resolve

if TYPE_CHECKING:
    from edgellm.hub.store import InstalledModel, installed, remove

__all__ = ["ALIASES", "Alias", "InstalledModel", "installed", "pull", "remove", "resolve"]


def __getattr__(name: str) -> object:
    """What the store offers is imported when it is used: running a model file does not need it."""
    if name in ("InstalledModel", "installed", "remove"):
        from edgellm.hub import store

        return getattr(store, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
