"""Reading the tensors of a ``.pt`` file without torch and without running what the file says.

Such a file is a zip archive: a pickle that describes a dictionary of tensors, and one member of raw numbers for each
storage. The pickle may name only the three things that describe tensors; anything else is refused before it is looked
up, so no code of the file's choosing ever runs.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import CorruptFileError

_LARGEST_PICKLE = 4 << 20
_LARGEST_STORAGE = 1 << 30
_ELEMENTS = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8"), "HalfStorage": np.dtype("<f2")}

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class _Storage:
    """The numbers one or several tensors look at."""

    values: NDArray[Any]


def read_checkpoint(path: Path) -> Tensors:
    """The tensors of a ``.pt`` file by name: of a state dictionary, or of one under the key ``state_dict``.

    Raises:
        CorruptFileError: it is no such file, is damaged, or its pickle names anything but tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            content = _Reader(archive, path).load()
    except CorruptFileError:
        raise
    except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise _corrupt(path, f"is not a whole zip archive ({error})") from error
    except Exception as error:  # a damaged pickle raises whatever the step it breaks in raises
        raise _corrupt(path, f"has a damaged index ({type(error).__name__}: {error})") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise _corrupt(path, "holds no dictionary of tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            raise _corrupt(path, f"holds something under {name!r} that is not a tensor")
    return dict(content)


class _Reader(pickle.Unpickler):
    """An unpickler that knows tensors and nothing else."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive, self._path = archive, path
        indexes = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
        if len(indexes) != 1:
            raise _corrupt(path, f"has {len(indexes)} members data.pkl, not one")
        if indexes[0].file_size > _LARGEST_PICKLE:
            raise _corrupt(path, f"has an index of {indexes[0].file_size} bytes")
        self._folder = indexes[0].filename.removesuffix("data.pkl")
        self._storages: dict[str, _Storage] = {}
        super().__init__(io.BytesIO(archive.read(indexes[0])))

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle may name; never imports anything."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if module == "torch" and name in _ELEMENTS:
            return name
        raise _corrupt(self._path, f"names {module}.{name}, which tensors do not need", "it may be malicious")

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage, by ("storage", kind, key, device, number of elements)."""
        _, kind, key, _, count = pid
        if kind not in _ELEMENTS:
            self._refuse(f"has a storage of the kind {kind!r}")
        if key not in self._storages:
            element = _ELEMENTS[kind]
            member = self._archive.getinfo(f"{self._folder}data/{key}")
            if member.file_size > _LARGEST_STORAGE or member.file_size != count * element.itemsize:
                self._refuse(f"has a storage of {member.file_size} bytes for {count} numbers")
            self._storages[key] = _Storage(np.frombuffer(self._archive.read(member), element))
        return self._storages[key]

    def _tensor(self, storage: _Storage, offset: int, shape: Any, stride: Any, *_: object) -> NDArray[Any]:
        """A copy of what a tensor sees of its storage; it must lie within."""
        numbers = [offset, *shape, *stride]
        if len(shape) != len(stride) or any(not isinstance(number, int) or number < 0 for number in numbers):
            self._refuse("has a tensor of impossible shape")
        if 0 in shape:
            self._refuse("has an empty tensor")
        last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
        count = 1
        for length in shape:
            count *= length
        if last >= storage.values.size or count > storage.values.size:
            self._refuse("has a tensor beyond its storage")
        bytes_apart = [step * storage.values.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(storage.values[offset:], tuple(shape), bytes_apart).copy()

    def _refuse(self, what: str) -> NoReturn:
        raise _corrupt(self._path, what)


def _corrupt(path: Path, what: str, hint: str = "fetch it again: edgellm pull diarization --force") -> CorruptFileError:
    return CorruptFileError(f"{path.name} {what}", hint)
