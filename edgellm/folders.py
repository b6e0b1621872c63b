"""Where edgellm keeps its files. ``EDGELLM_HOME`` moves all of it to one folder."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def home_folder() -> Path:
    """The root of everything edgellm writes: the user's cache folder, or ``$EDGELLM_HOME``."""
    override = os.environ.get("EDGELLM_HOME")
    return Path(override) if override else Path(platformdirs.user_cache_dir("edgellm", appauthor=False))


def models_folder() -> Path:
    """Downloaded models."""
    return home_folder() / "models"


def kernels_folder() -> Path:
    """Compiled kernels, one object file each."""
    return home_folder() / "kernels"


def history_file() -> Path:
    """Lines typed into the chat."""
    return home_folder() / "chat_history"


def voices_folder() -> Path:
    """Profiles of known voices, one file each."""
    return home_folder() / "voices"
