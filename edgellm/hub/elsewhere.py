"""Models other programs have already downloaded, read where they lie: Hugging Face's cache, LM Studio, Ollama."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from edgellm.errors import CorruptFileError, ModelNotFoundError
from edgellm.hub.choosing import DEFAULT_QUANTIZATION, choose_group
from edgellm.hub.files import group_model_files
from edgellm.hub.names import HuggingFaceName, OllamaName

_OLLAMA_MODEL = "application/vnd.ollama.image.model"


def find_hugging_face(name: HuggingFaceName) -> Path | None:
    """A file of the repository in the cache of the hub's own client, or in LM Studio's folder."""
    for folder in _repository_folders(name.repository):
        paths = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.gguf")) if path.is_file()]
        try:
            group = choose_group(name, paths)
            group.require_complete()
        except (ModelNotFoundError, CorruptFileError):
            continue
        if name.choice is None and group.quantization != DEFAULT_QUANTIZATION:
            continue  # what lies here may be one of several: only the hub knows what the default is
        return folder / group.members[0]
    return None


def _repository_folders(repository: str) -> Iterator[Path]:
    snapshots = hugging_face_cache() / f"models--{repository.replace('/', '--')}" / "snapshots"
    if snapshots.is_dir():
        yield from sorted(snapshots.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for root in lm_studio_folders():
        if (root / repository).is_dir():
            yield root / repository


def hugging_face_cache() -> Path:
    """Where the hub's own client keeps its downloads (HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME)."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    cache_home = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache_home) if cache_home else _home() / ".cache") / "huggingface" / "hub"


def lm_studio_folders() -> list[Path]:
    """LM Studio's model folders, of its present and earlier versions."""
    return [_home() / ".lmstudio" / "models", _home() / ".cache" / "lm-studio" / "models"]


def ollama_folder() -> Path:
    """Ollama's model folder (OLLAMA_MODELS)."""
    folder = os.environ.get("OLLAMA_MODELS")
    return Path(folder).expanduser() if folder else _home() / ".ollama" / "models"


def find_ollama(name: OllamaName) -> Path:
    """The GGUF file of a model that Ollama has.

    Raises:
        ModelNotFoundError: Ollama does not have it on this machine.
        CorruptFileError: its manifest cannot be understood.
    """
    pieces = name.name.split("/")
    prefix = ["registry.ollama.ai", "library"][: max(0, 3 - len(pieces))]
    manifest = ollama_folder().joinpath("manifests", *prefix, *pieces, name.tag)
    try:
        layers = json.loads(manifest.read_text("utf-8"))["layers"]
        digests = [str(layer["digest"]) for layer in layers if layer["mediaType"] == _OLLAMA_MODEL]
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFoundError(
            f"Ollama has no model {name.name}:{name.tag} in {ollama_folder()}", "`ollama list` shows what it has"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"the manifest {manifest} cannot be understood", "pull the model again") from error
    blobs = [ollama_folder() / "blobs" / digest.replace(":", "-") for digest in digests if "/" not in digest]
    if not blobs or not blobs[0].is_file():
        raise ModelNotFoundError(f"Ollama's file of {name.name}:{name.tag} is missing", "pull the model again")
    return blobs[0]


def others_on_this_machine() -> list[tuple[str, Path]]:
    """Models of other programs: the name to use, and the file."""
    found: list[tuple[str, Path]] = []
    for folder in _glob(hugging_face_cache(), "models--*--*/snapshots/*"):
        _, owner, repository = folder.parent.parent.name.split("--", 2)
        found += _named(folder, f"{owner}/{repository}")
    for root in lm_studio_folders():
        for folder in _glob(root, "*/*"):
            found += _named(folder, folder.relative_to(root).as_posix())
    library = ollama_folder() / "manifests" / "registry.ollama.ai" / "library"
    for manifest in _glob(library, "*/*"):
        name = OllamaName(manifest.parent.name, manifest.name)
        try:
            found.append((str(name), find_ollama(name)))
        except (ModelNotFoundError, CorruptFileError):
            continue
    return found


def _named(folder: Path, repository: str) -> Iterator[tuple[str, Path]]:
    try:
        groups = group_model_files(path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.gguf")))
    except CorruptFileError:
        return
    for group in groups:
        yield f"hf:{repository}:{group.quantization or group.name}", folder / group.members[0]


def _glob(root: Path, pattern: str) -> list[Path]:
    return sorted(root.glob(pattern)) if root.is_dir() else []


def _home() -> Path:
    return Path.home()
