"""The folder of downloaded models: one sub-folder a model, with a note of what it is."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import DownloadError, ModelNotFoundError
from edgellm.folders import models_folder
from edgellm.hub.files import quantization_of, safe_filename, write_atomically

_NOTE = "edgellm-model.json"
_LOCKS = ".locks"


@dataclass(frozen=True)
class InstalledModel:
    """A model on this machine.

    Attributes:
        name: what to call it on the command line.
        names: every name it answers to.
        files: first shard first; empty while a download is unfinished.
        size_bytes: of all its files on disk.
        source: where it came from.
    """

    name: str
    names: tuple[str, ...]
    folder: Path
    files: tuple[Path, ...]
    size_bytes: int
    source: str

    @property
    def path(self) -> Path | None:
        """The file to open; None while the download is unfinished."""
        return self.files[0] if self.files else None

    @property
    def quantization(self) -> str | None:
        """As the file's name tells it."""
        return quantization_of(self.files[0].name) if self.files else None


def model_folder(name: str) -> Path:
    """The folder for a model of this name."""
    return models_folder() / re.sub(r"[^A-Za-z0-9._+=-]+", "--", name).lstrip(".")


def lock_path(folder: Path) -> Path:
    """The lock file that whoever writes into ``folder`` holds."""
    locks = models_folder() / _LOCKS
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(
            f"cannot create {locks}: {error.strerror}", "set EDGELLM_HOME to a folder you can write to"
        ) from error
    return locks / f"{folder.name}.lock"


def installed() -> list[InstalledModel]:
    """Every model in the models folder, unfinished downloads and files put there by hand included."""
    try:
        entries = sorted(models_folder().iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    models = []
    for entry in entries:
        if entry.is_dir() and entry.name != _LOCKS:
            models.append(_read(entry) or _unfinished(entry))
        elif entry.is_file() and entry.suffix.lower() == ".gguf":
            names = (entry.stem, entry.name)
            models.append(InstalledModel(entry.stem, names, entry.parent, (entry,), entry.stat().st_size, "put there"))
    return models


def find(name: str) -> InstalledModel | None:
    """The whole model that answers to ``name``, if it is there."""
    return next((model for model in installed() if name in model.names and model.files), None)


def record(folder: Path, names: Sequence[str], files: Sequence[Path], source: str) -> InstalledModel:
    """Note that ``folder`` now holds a whole model."""
    note = {
        "names": list(names),
        "source": source,
        "files": [{"name": file.name, "size": file.stat().st_size} for file in files],
    }
    write_atomically(folder / _NOTE, json.dumps(note, indent=2) + "\n")
    model = _read(folder)
    if model is None:
        raise DownloadError(f"{folder} changed while it was being written", "run the same command again")
    return model


def add_name(model: InstalledModel, name: str) -> None:
    """Let a model answer to one more name."""
    if name not in model.names:
        record(model.folder, [*model.names, name], model.files, model.source)


def remove(name: str) -> InstalledModel:
    """Delete a downloaded model, or what there is of it, and return what was deleted.

    Raises:
        ModelNotFoundError: there is none of this name in the models folder.
    """
    model = next((model for model in installed() if name in model.names), None)
    if model is None:
        listed = ", ".join(model.name for model in installed()) or "none"
        raise ModelNotFoundError(f"no downloaded model is called {name!r}", f"downloaded: {listed}")
    if model.folder == models_folder():
        model.files[0].unlink()
    else:
        shutil.rmtree(model.folder)
    return model


def clear_leftovers(folder: Path, keep: Sequence[Path]) -> None:
    """Delete what a finished download no longer needs: wheels, parts, older files."""
    for entry in folder.iterdir():
        if entry not in keep and entry.name != _NOTE and entry.is_file():
            entry.unlink(missing_ok=True)


def _read(folder: Path) -> InstalledModel | None:
    """The model that the note in a folder speaks of; None if there is no note or it does not hold."""
    try:
        note = json.loads((folder / _NOTE).read_text("utf-8"))
        names = tuple(str(name) for name in note["names"])
        files = tuple(folder / safe_filename(str(file["name"])) for file in note["files"])
        whole = all(path.stat().st_size == file["size"] for path, file in zip(files, note["files"], strict=True))
        source = str(note.get("source", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not names or not files or not whole:
        return None
    return InstalledModel(names[0], names, folder, files, sum(path.stat().st_size for path in files), source)


def _unfinished(folder: Path) -> InstalledModel:
    return InstalledModel(folder.name, (folder.name,), folder, (), sum(_sizes(folder)), "unfinished")


def _sizes(folder: Path) -> Iterator[int]:
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                yield (Path(root) / name).stat().st_size
            except OSError:
                continue
