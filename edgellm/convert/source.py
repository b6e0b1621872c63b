"""Where a checkpoint is: a folder as it stands, or a repository of Hugging Face's, fetched if need be."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from edgellm.convert.checkpoint import INDEX
from edgellm.errors import DownloadError, ModelNotFoundError
from edgellm.folders import home_folder
from edgellm.hub import store
from edgellm.hub.aliases import HuggingFaceFile
from edgellm.hub.elsewhere import hugging_face_cache
from edgellm.hub.files import require_space
from edgellm.hub.huggingface import HubFile, list_repository, remote_file
from edgellm.hub.names import HuggingFaceName, parse_name
from edgellm.hub.transfer import Patience, download

Progress = Callable[[str, int, int], None]

_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_OTHERS = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.json|tokenizer\.model|tokenizer_config\.json|added_tokens\.json"
    r"|chat_template\.(jinja|json)|model\.safetensors\.index\.json|README\.md|tiktoken\.model"
)
_LOOK_UP = Patience(attempts=3)
_DOWNLOAD = Patience()


def find_checkpoint(source: str | os.PathLike[str], progress: Progress | None = None, offline: bool = False) -> Path:
    """The folder of a checkpoint.

    Args:
        source: a folder, or ``hf:owner/repo``; what Hugging Face's own client has fetched already is taken from there.
        progress: told how far a download is, by file.
        offline: never use the network.

    Raises:
        ModelNotFoundError: there is no such repository, or it has no checkpoint that can be converted.
        DownloadError: it cannot be fetched.
    """
    text = os.fspath(source)
    if not text.startswith("hf:"):
        return Path(text)
    name = parse_name(text)
    assert isinstance(name, HuggingFaceName)
    if name.choice is not None:
        raise ModelNotFoundError(
            f"{text} names one of several GGUF files", f"name the repository: hf:{name.repository}"
        )
    for folder in _present(name.repository):
        return folder
    if offline:
        raise ModelNotFoundError(f"{text} is not on this machine", "fetch it without --offline")
    return _fetch(name.repository, progress)


def _folder(repository: str) -> Path:
    return home_folder() / "checkpoints" / repository


def _present(repository: str) -> Iterator[Path]:
    """Folders with all the files: ours, then the newest. Ours is whole when it has its config, which comes last."""
    snapshots = hugging_face_cache() / f"models--{repository.replace('/', '--')}" / "snapshots"
    found = sorted(snapshots.iterdir(), key=lambda path: path.stat().st_mtime) if snapshots.is_dir() else []
    for folder in [_folder(repository), *reversed(found)]:
        if (folder / "config.json").is_file() and any(_WEIGHTS.fullmatch(path.name) for path in folder.iterdir()):
            yield folder


def _fetch(repository: str, progress: Progress | None) -> Path:
    folder = _folder(repository)
    listing = list_repository(repository, _LOOK_UP)
    files = _wanted(repository, listing.files)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(store.lock_path(folder.with_name(f"checkpoint-{repository.replace('/', '--')}"))):
            missing = [file for file in files if not _is_here(folder / file.path, file)]
            require_space(folder, sum(file.size or 0 for file in missing))
            for file in missing:
                remote = remote_file(HuggingFaceFile(repository, file.path, listing.revision), file.size, file.sha256)
                download(remote, folder / file.path, progress, _DOWNLOAD)
    except OSError as error:
        raise DownloadError(
            f"cannot write to {error.filename or folder}: {error.strerror}",
            "set EDGELLM_HOME to a folder you can write to",
        ) from error
    return folder


def _is_here(path: Path, file: HubFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def _wanted(repository: str, files: tuple[HubFile, ...]) -> list[HubFile]:
    """The files that a conversion reads, the config last."""
    weights = [file for file in files if _WEIGHTS.fullmatch(file.path)]
    if any(file.path == INDEX for file in files):
        weights = [file for file in weights if file.path != "model.safetensors"]
    if not weights:
        has_gguf = any(file.path.lower().endswith(".gguf") for file in files)
        hint = f"it has GGUF files: edgellm pull hf:{repository}" if has_gguf else "look for another repository of it"
        raise ModelNotFoundError(f"{repository} has no weights in safetensors files", hint)
    others = [file for file in files if _OTHERS.fullmatch(file.path)]
    return sorted([*others, *weights], key=lambda file: file.path == "config.json")
