"""Finding models by name and fetching them: ``resolve``, ``pull``, ``installed``, ``remove``."""

from __future__ import annotations

from edgellm.hub.aliases import ALIASES, Alias
from edgellm.hub.locate import pull, resolve
from edgellm.hub.store import InstalledModel, installed, remove

__all__ = ["ALIASES", "Alias", "InstalledModel", "installed", "pull", "remove", "resolve"]
