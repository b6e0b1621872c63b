"""A file of stored numbers that are read some rows at a time: what the formats of Whisper's weights have in common."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.convert.encode import to_float32
from edgellm.convert.safetensors import KINDS
from edgellm.convert.tensors import LazyTensor
from edgellm.errors import CorruptFileError, ModelNotFoundError
from edgellm.gguf import TensorType, decode
from edgellm.gguf.cursor import Cursor

MAX_DIMENSIONS = 4
MAX_LENGTH = 1 << 24
MAX_NAME_BYTES = 512


class ArrayFile:
    """An open file with a checked size. Reading is safe from several threads.

    Attributes:
        cursor: reads the header, with every length checked.
    """

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path = path
        self.cursor = Cursor(file, path, path.stat().st_size)
        self._file = file
        self._lock = threading.Lock()

    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes from ``offset`` on."""
        with self._lock:
            self._file.seek(offset)
            data = self._file.read(count)
        if len(data) != count:
            raise CorruptFileError(f"{self.path.name} became shorter while it was read", "fetch it again")
        return data

    def plain(self, offset: int, shape: tuple[int, ...], kind: str) -> LazyTensor:
        """Numbers of a kind in ``KINDS`` that lie at ``offset``, the slowest dimension first."""
        dtype = KINDS[kind]
        row_shape = shape[1:]
        row = int(np.prod(row_shape, dtype=np.int64)) * dtype.itemsize

        def load(start: int, stop: int) -> NDArray[Any]:
            data = self.read(offset + start * row, (stop - start) * row)
            return np.frombuffer(data, dtype).reshape(stop - start, *row_shape)

        return LazyTensor(shape, kind, load)

    def blocks(self, offset: int, shape: tuple[int, ...], kind: TensorType) -> LazyTensor:
        """Rows of ggml blocks, which are decoded to float32."""
        rows, width = shape
        row = width // kind.block_size * kind.block_bytes

        def load(start: int, stop: int) -> NDArray[Any]:
            data = np.frombuffer(self.read(offset + start * row, (stop - start) * row), np.uint8)
            return decode(data.reshape(stop - start, row), kind).reshape(stop - start, width)

        return LazyTensor((rows, width), "F32", load)


@contextmanager
def open_array_file(path: Path) -> Iterator[ArrayFile]:
    """Open a file for reading.

    Raises:
        ModelNotFoundError: it cannot be read.
    """
    try:
        with FileIO(path) as file:
            yield ArrayFile(path, file)
    except OSError as error:
        raise ModelNotFoundError(f"cannot read {path}: {error.strerror}") from error


def check_shape(cursor: Cursor, name: str, shape: tuple[int, ...]) -> None:
    """Raise CorruptFileError for lengths that no model has."""
    if len(shape) > MAX_DIMENSIONS or any(not 1 <= length <= MAX_LENGTH for length in shape):
        raise cursor.error(f"tensor {name[:80]!r}", f"has the shape {shape}")


def scaled_rows(tensor: LazyTensor, scales: LazyTensor) -> LazyTensor:
    """Whole numbers of which each row is divided by its scale (CTranslate2's int8): float32."""

    def load(start: int, stop: int) -> NDArray[Any]:
        divisors = to_float32(scales.load(start, stop), scales.kind).reshape(-1, *[1] * (len(tensor.shape) - 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            return tensor.load(start, stop).astype(np.float32) / divisors

    return LazyTensor(tensor.shape, "F32", load)
