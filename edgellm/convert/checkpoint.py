"""A checkpoint's folder: which files hold its weights, and all tensors by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellm.convert.config import Config
from edgellm.convert.safetensors import SafetensorsFile, StoredTensor, open_safetensors, parse_json, shown
from edgellm.convert.tensors import LazyTensor
from edgellm.errors import CorruptFileError, ModelNotFoundError, UnsupportedModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_JSON_BYTES = 64 << 20
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_PICKLED = (".bin", ".pth", ".pt", ".ckpt")


@dataclass
class Checkpoint:
    """An open checkpoint.

    Attributes:
        folder: where it lies.
        config: its config.json.
        tensors: name to tensor.
        notices: what the user should know.
    """

    folder: Path
    config: Config
    tensors: dict[str, LazyTensor]
    notices: list[str] = field(default_factory=list)

    @property
    def architecture(self) -> str:
        """The class of the model, as config.json names it."""
        names = self.config.get("architectures")
        if isinstance(names, list) and names and isinstance(names[0], str):
            return names[0]
        kind = self.config.get("model_type")
        hint = f"its model_type is {shown(str(kind))}" if kind else "this may be no model's folder"
        raise UnsupportedModelError("config.json names no architectures", hint)


@contextmanager
def open_checkpoint(folder: Path) -> Iterator[Checkpoint]:
    """Open a folder in Hugging Face's format and check the headers of its files.

    Raises:
        ModelNotFoundError: there is no such folder, or it holds no checkpoint.
        CorruptFileError: a file breaks the rules of its format, or a shard is missing.
        UnsupportedModelError: the weights are pickled, or the model is quantized in a way that is not known.
    """
    if not folder.is_dir():
        hint = "name the folder with config.json and the .safetensors files"
        raise ModelNotFoundError(f"{folder} is a file" if folder.is_file() else f"there is no folder {folder}", hint)
    config = Config(read_json(folder, "config.json"))
    index, paths = _weight_files(folder)
    with open_safetensors(paths) as files:
        yield Checkpoint(folder, config, _all_tensors(files, index))


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of the folder.

    Raises:
        ModelNotFoundError: it is missing.
        CorruptFileError: it is not valid.
    """
    path = folder / name
    if not path.is_file():
        gguf = next(iter(sorted(folder.glob("*.gguf"))), None)
        hint = f"{gguf.name} is a GGUF file already" if gguf else "name the folder of a model from Hugging Face"
        raise ModelNotFoundError(f"{folder} has no {name}", hint)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CorruptFileError(f"{name} has {path.stat().st_size} bytes, {MAX_JSON_BYTES} are allowed")
    return parse_json(path.read_bytes(), name)


def _weight_files(folder: Path) -> tuple[dict[str, str] | None, list[Path]]:
    """Tensor to file, if there is an index, and the files."""
    if (folder / INDEX).is_file():
        index = _read_index(folder)
        names = sorted(set(index.values()))
        _require(folder, names, INDEX)
        return index, [folder / name for name in names]
    if (folder / SINGLE).is_file():
        return None, [folder / SINGLE]
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    shards = [match for match in map(_SHARD.fullmatch, found) if match]
    if shards:
        stem, count = shards[0]["stem"], int(shards[0]["count"])
        names = [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, min(count, 10000) + 1)]
        _require(folder, names, shards[0].group())
        return None, [folder / name for name in names]
    if len(found) == 1:
        return None, [folder / found[0]]
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
    if pickled:
        raise UnsupportedModelError(
            f"the weights in {pickled[0]} are pickled, and reading a pickle can run any program",
            "save the model as safetensors: save_pretrained(folder, safe_serialization=True)",
        )
    raise ModelNotFoundError(f"{folder} has no {SINGLE} and no {INDEX}", "fetch the .safetensors files too")


def _read_index(folder: Path) -> dict[str, str]:
    mapping = read_json(folder, INDEX).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise CorruptFileError(f"{INDEX} has no weight_map", "fetch it again")
    for name, file in mapping.items():
        if not isinstance(file, str) or Path(file).name != file or "\\" in file or not file.endswith(".safetensors"):
            raise CorruptFileError(
                f"{INDEX}: tensor {shown(name)} lies in {shown(str(file))}, which is no valid file name"
            )
    return mapping


def _require(folder: Path, names: list[str], by: str) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CorruptFileError(f"{shown(missing[0])}{more} is missing, of which {by} speaks", "fetch it too")


def _all_tensors(files: list[SafetensorsFile], index: dict[str, str] | None) -> dict[str, LazyTensor]:
    tensors: dict[str, LazyTensor] = {}
    homes: dict[str, str] = {}
    for file in files:
        for name, tensor in file.tensors.items():
            if index is not None and index.get(name) != file.path.name:
                if name in index:
                    raise CorruptFileError(f"{file.path.name}: tensor {shown(name)} should be in {shown(index[name])}")
                continue
            if name in homes:
                raise CorruptFileError(f"{file.path.name}: tensor {shown(name)} is also in {homes[name]}")
            homes[name] = file.path.name
            tensors[name] = _lazy(file, tensor)
    for name in index or ():
        if name not in homes:
            raise CorruptFileError(f"{index[name] if index else ''}: tensor {shown(name)} is missing", "fetch it again")
    return tensors


def _lazy(file: SafetensorsFile, tensor: StoredTensor) -> LazyTensor:
    shape = tensor.shape or (1,)
    return LazyTensor(shape, tensor.kind, lambda start, stop: file.read(tensor, start, stop).reshape(-1, *shape[1:]))
