"""Tensors of a PyTorch file (``torch.save``) without PyTorch, and without running what is in it.

Such a file is a zip archive with a pickle, which builds the nested structure, and one member for each tensor's
numbers. A pickle can call any function it names; this reader knows three names, which do nothing but note what was
there, and refuses every other.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.convert.safetensors import KINDS, shown
from edgellm.convert.tensors import LazyTensor
from edgellm.errors import CorruptFileError, ModelNotFoundError, UnsupportedModelError

MAX_PICKLE_BYTES = 16 << 20
_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}  # fmt: skip
_HINT = "the file is damaged: fetch it again"


@dataclass(frozen=True)
class _Storage:
    """The numbers that tensors are views of."""

    member: str
    kind: str
    count: int


@contextmanager
def open_torch_file(path: Path) -> Iterator[Any]:
    """What a file holds: dictionaries, lists, numbers and text as they are, tensors as `LazyTensor`.

    Raises:
        ModelNotFoundError: it cannot be read.
        CorruptFileError: it breaks the rules of its format.
        UnsupportedModelError: it holds something else than tensors and plain values, or is of PyTorch before 1.6.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield _Reader(archive, path.name).load()
    except OSError as error:
        raise ModelNotFoundError(f"cannot read {path}: {error.strerror or error}") from error
    except zipfile.BadZipFile as error:
        raise UnsupportedModelError(
            f"{path.name} is not a file of PyTorch 1.6 or later", "save it again with a newer PyTorch"
        ) from error


class _Reader:
    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._archive, self._name = archive, name
        pickles = [entry for entry in archive.namelist() if entry.endswith("/data.pkl") and entry.count("/") == 1]
        if len(pickles) != 1:
            raise CorruptFileError(f"{name} holds {len(pickles)} pickles where one is expected", _HINT)
        self._pickle = pickles[0]
        self._folder = self._pickle.removesuffix("data.pkl") + "data/"

    def load(self) -> Any:
        size = self._archive.getinfo(self._pickle).file_size
        if size > MAX_PICKLE_BYTES:
            raise CorruptFileError(f"{self._name}: its pickle has {size} bytes, {MAX_PICKLE_BYTES} are allowed")
        with self._archive.open(self._pickle) as file:
            data = file.read(MAX_PICKLE_BYTES + 1)
        try:
            return _Unpickler(data, self).load()
        except (UnsupportedModelError, CorruptFileError):
            raise
        except Exception as error:  # a damaged pickle raises nearly anything
            raise CorruptFileError(f"{self._name}: its pickle is damaged ({type(error).__name__})", _HINT) from error

    def storage(self, identity: Any) -> _Storage:
        """What a persistent id stands for: ("storage", type, key, device, count)."""
        if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
            raise CorruptFileError(f"{self._name}: its pickle refers to something unknown", _HINT)
        _, kind, key, _, count = identity
        if not isinstance(kind, str) or not isinstance(key, str) or type(count) is not int:
            raise CorruptFileError(f"{self._name}: its pickle refers to something unknown", _HINT)
        member = self._folder + key
        try:
            size = self._archive.getinfo(member).file_size
        except KeyError:
            raise CorruptFileError(f"{self._name} lacks the numbers {shown(key)}", _HINT) from None
        if count < 0 or size != count * KINDS[kind].itemsize:
            raise CorruptFileError(f"{self._name}: {shown(key)} has {size} bytes, expected {count} {kind}", _HINT)
        return _Storage(member, kind, count)

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_others: Any) -> LazyTensor:
        """A view of a storage, which must be without gaps and in order."""
        numbers = (offset, *shape, *strides) if isinstance(shape, tuple) and isinstance(strides, tuple) else (None,)
        if not isinstance(storage, _Storage) or not all(type(number) is int and number >= 0 for number in numbers):
            raise CorruptFileError(f"{self._name}: a tensor is not described as tensors are", _HINT)
        if len(shape) != len(strides) or offset + math.prod(shape) > storage.count:
            raise CorruptFileError(f"{self._name}: a tensor lies outside its numbers", _HINT)
        expected = 1
        for length, stride in zip(reversed(shape), reversed(strides), strict=True):
            if length > 1 and stride != expected:
                raise UnsupportedModelError(f"{self._name} holds a tensor that is a view with gaps", "save a copy")
            expected *= length
        return self._lazy(storage, offset, shape)

    def _lazy(self, storage: _Storage, offset: int, shape: tuple[int, ...]) -> LazyTensor:
        dtype = KINDS[storage.kind]
        row_shape = shape[1:]
        row = math.prod(row_shape)

        def load(start: int, stop: int) -> NDArray[Any]:
            count = (stop - start) * row
            with self._archive.open(storage.member) as file:
                file.seek((offset + start * row) * dtype.itemsize)
                data = file.read(count * dtype.itemsize)
            if len(data) != count * dtype.itemsize:
                raise CorruptFileError(f"{self._name} became shorter while it was read", "fetch it again")
            return np.frombuffer(data, dtype).reshape((stop - start, *row_shape) if shape else ())

        return LazyTensor(shape, storage.kind, load)


class _Unpickler(pickle.Unpickler):
    """Builds plain values alone: every name but those of tensors is refused, and nothing of the pickle's is called."""

    def __init__(self, data: bytes, reader: _Reader) -> None:
        super().__init__(io.BytesIO(data))
        self._reader = reader

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._reader.tensor
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise UnsupportedModelError(
            f"the pickle asks for {shown(f'{module}.{name}')}, which is not run", "only files of plain tensors are read"
        )

    def persistent_load(self, identity: Any) -> Any:
        return self._reader.storage(identity)
