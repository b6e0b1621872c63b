"""Importance matrices: how much the errors of a weight matrix's columns matter, by what it is multiplied with.

For each matrix the squares of its inputs are summed over a text, column by column. Files are those of llama.cpp's
``llama-imatrix``: GGUF with the tensors ``NAME.in_sum2`` and ``NAME.counts``; its older format is read as well.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import CorruptFileError, EdgeLLMError, InvalidSettingError, ModelNotFoundError
from edgellm.gguf import GGUFFile, TensorInfo, TensorType, open_gguf
from edgellm.quantize.activations import chunks_of, read_text, watch
from edgellm.splitting import Shard, padded, published, refuse_existing

Progress = Callable[[str, int, int], None]
CONTEXT = 512
_SUMS, _COUNTS = ".in_sum2", ".counts"
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_MOST_ENTRIES = 1 << 16
_LONGEST_NAME = 1024


@dataclass(frozen=True)
class Entry:
    """Of one weight: sums of squared inputs (matrices, columns), and how many rows each matrix saw (matrices,)."""

    sums: NDArray[np.float32]
    counts: NDArray[np.float32]

    def mean(self) -> NDArray[np.float32]:
        """Mean squared input, (matrices, columns); 1 for a matrix that saw nothing.

        No column counts for nothing: one that was never used gets a small share of the mean.
        """
        counts = self.counts[:, None]
        means = np.where(counts > 0, self.sums / np.maximum(counts, 1), 1).astype(np.float32)
        overall = means.mean(axis=1, keepdims=True)
        result: NDArray[np.float32] = np.where(overall > 0, np.maximum(means, 1e-4 * overall), 1).astype(np.float32)
        return result


@dataclass(frozen=True)
class ImportanceMatrix:
    """Entries by the name of the weight, and where they come from.

    Attributes:
        entries: by name.
        datasets: names of the texts.
        chunk_count: how many chunks of text were read.
        chunk_size: tokens in each.
    """

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int

    def importance(self) -> dict[str, NDArray[np.float32]]:
        """What the columns of each weight count, (matrices, columns)."""
        return {name: entry.mean() for name, entry in self.entries.items()}


# -- making ------------------------------------------------------------------------------------------------------


class _Sums:
    """Adds up squares in float64."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.counts: dict[str, NDArray[np.int64]] = {}
        self._last: tuple[int, NDArray[np.float64]] | None = None

    def observe(self, weight: str, value: str, matrix: int | None, rows: NDArray[np.float32]) -> None:
        if not weight.startswith("blk."):
            return  # embeddings and the output matrix are left out, as in llama.cpp
        if weight not in self.sums:
            shape = self._file.tensors[weight].shape
            matrices = shape[0] if matrix is not None and len(shape) == 3 else 1
            self.sums[weight] = np.zeros((matrices, shape[-1]))
            self.counts[weight] = np.zeros(matrices, np.int64)
        number = matrix or 0
        squares = np.einsum("ij,ij->j", rows, rows, dtype=np.float64, casting="same_kind")
        if not np.isfinite(squares).all():
            raise EdgeLLMError(f"the inputs of {weight} are not finite numbers", "the model is damaged")
        self.sums[weight][number] += squares
        self.counts[weight][number] += len(rows)


def collect(
    model: str | os.PathLike[str],
    text: str | os.PathLike[str],
    context: int = CONTEXT,
    chunks: int | None = None,
    progress: Progress | None = None,
) -> ImportanceMatrix:
    """Run a model over a text and sum up what its matrices are multiplied by.

    Args:
        model: a GGUF file.
        text: a file of UTF-8 text.
        context: tokens in a chunk.
        chunks: at most so many; all by default.
        progress: told how far it is.

    Raises:
        ModelNotFoundError, CorruptFileError, UnsupportedModelError: the model cannot be used.
        EdgeLLMError: the text cannot be read or is too short.
    """
    if context < 16 or (chunks is not None and chunks < 1):
        raise InvalidSettingError("a chunk has at least 16 tokens, and at least one chunk is needed")
    content = read_text(text)
    with open_gguf(model) as file:
        cut = chunks_of(file, content, context, chunks)
        sums = _Sums(file)
        watch(file, cut, sums.observe, progress)
    entries = {
        name: Entry(total.astype(np.float32), sums.counts[name].astype(np.float32)) for name, total in sums.sums.items()
    }
    return ImportanceMatrix(entries, (str(text),), len(cut), context)


def merged(matrices: Sequence[ImportanceMatrix]) -> ImportanceMatrix:
    """The sums of several, as if one run had seen all texts.

    Raises:
        EdgeLLMError: they are of different models.
    """
    entries: dict[str, Entry] = {}
    for matrix in matrices:
        for name, entry in matrix.entries.items():
            before = entries.get(name)
            if before is None:
                entries[name] = entry
            elif before.sums.shape != entry.sums.shape:
                raise EdgeLLMError(f"the importance matrices differ in the shape of {name}", "merge those of one model")
            else:
                entries[name] = Entry(before.sums + entry.sums, before.counts + entry.counts)
    datasets = tuple(dict.fromkeys(name for matrix in matrices for name in matrix.datasets))
    return ImportanceMatrix(entries, datasets, sum(matrix.chunk_count for matrix in matrices), matrices[0].chunk_size)


# -- writing -----------------------------------------------------------------------------------------------------


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8", "replace")
    return struct.pack("<Q", len(encoded)) + encoded


def _keys(matrix: ImportanceMatrix) -> tuple[bytes, ...]:
    datasets = struct.pack("<IIQ", _ARRAY, _STRING, len(matrix.datasets)) + b"".join(map(_text, matrix.datasets))
    return (
        _text("general.type") + struct.pack("<I", _STRING) + _text("imatrix"),
        _text("imatrix.datasets") + datasets,
        _text("imatrix.chunk_count") + struct.pack("<II", _UINT32, matrix.chunk_count),
        _text("imatrix.chunk_size") + struct.pack("<II", _UINT32, matrix.chunk_size),
    )


def write(matrix: ImportanceMatrix, output: str | os.PathLike[str], force: bool = False) -> int:
    """Write a GGUF file as llama.cpp's ``llama-imatrix`` does; return its size.

    Raises:
        EdgeLLMError: the file exists, or cannot be written.
    """
    arrays = [
        (f"{name}{suffix}", np.ascontiguousarray(values, "<f4").reshape(len(entry.counts), -1))
        for name, entry in sorted(matrix.entries.items())
        for suffix, values in ((_SUMS, entry.sums), (_COUNTS, entry.counts))
    ]
    tensors = tuple(
        TensorInfo(name, TensorType.F32, values.shape, 4 * values.shape[1], values.nbytes, 0) for name, values in arrays
    )
    shard = Shard(3, 32, _keys(matrix), tensors)
    path = Path(output)
    with published([path], shard.size, force) as temporary, temporary[0].open("xb") as out:
        header = b"".join(shard.header())
        out.write(header + bytes(shard.data_offset - len(header)))
        for _, values in arrays:
            out.write(values.tobytes() + bytes(padded(values.nbytes, 32) - values.nbytes))
        out.flush()
        os.fsync(out.fileno())
    return shard.size


# -- reading -----------------------------------------------------------------------------------------------------


def is_matrix(path: str | os.PathLike[str]) -> bool:
    """Whether a file looks like an importance matrix, and not like a text.

    Raises:
        ModelNotFoundError: it is not there or cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise ModelNotFoundError(f"cannot read {path}: {error.strerror}") from None
    if start[:4] == b"GGUF":
        return True
    # The older format begins with two small numbers: entries, and bytes of the first name.
    return len(start) == 8 and all(0 < number <= _MOST_ENTRIES for number in struct.unpack("<ii", start))


def read(path: str | os.PathLike[str]) -> ImportanceMatrix:
    """Read an importance matrix in either format.

    Raises:
        ModelNotFoundError: there is no such file.
        CorruptFileError: it breaks the rules of its format.
    """
    with Path(path).open("rb") as file:
        start = file.read(4)
    if start != b"GGUF":
        return _read_legacy(Path(path))
    with open_gguf(path) as file_:
        if file_.metadata.get("general.type") != "imatrix":
            raise CorruptFileError(f"{Path(path).name} is a GGUF file, but no importance matrix")
        names = [name.removesuffix(_SUMS) for name in file_.tensors if name.endswith(_SUMS)]
        entries = {name: _entry(file_, name) for name in names}
        datasets = tuple(_dataset_names(file_))
        chunk_count, chunk_size = (_number(file_, f"imatrix.{key}") for key in ("chunk_count", "chunk_size"))
    if not entries:
        raise CorruptFileError(f"{Path(path).name} has no entries")
    return ImportanceMatrix(entries, datasets, chunk_count, chunk_size)


def _entry(file: GGUFFile, name: str) -> Entry:
    own = [file.tensors.get(name + suffix) for suffix in (_SUMS, _COUNTS)]
    if any(tensor is None or tensor.type is not TensorType.F32 for tensor in own):
        raise CorruptFileError(f"{file.path.name}: {name} lacks its sums or its counts, or they are not float32")
    sums, counts = file.decode(name + _SUMS), file.decode(name + _COUNTS).reshape(-1)
    sums = sums.reshape(-1, sums.shape[-1])
    if len(counts) == 1 and len(sums) > 1:  # a dense stack is counted once
        counts = np.repeat(counts, len(sums))
    return _checked(Entry(sums, counts), name, file.path.name)


def _checked(entry: Entry, name: str, where: str) -> Entry:
    if len(entry.counts) != len(entry.sums) or not entry.sums.size:
        raise CorruptFileError(f"{where}: the sums and counts of {name!r} do not go together")
    if not (np.isfinite(entry.sums).all() and np.isfinite(entry.counts).all() and (entry.sums >= 0).all()):
        raise CorruptFileError(f"{where}: {name!r} holds negative numbers or such that are not finite")
    return entry


def _dataset_names(file: GGUFFile) -> Iterable[str]:
    value = file.metadata.get("imatrix.datasets", ())
    for item in value if isinstance(value, Sequence) else ():
        if isinstance(item, bytes):
            yield item.decode("utf-8", "replace")


def _number(file: GGUFFile, key: str) -> int:
    value = file.metadata.get(key, 0)
    return value if isinstance(value, int) and value >= 0 else 0


class _Bytes:
    """Reads numbers one after the other."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data, self._place, self._where = data, 0, where

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self._data) - self._place:
            raise CorruptFileError(f"{self._where}: ends too early for an importance matrix", "fetch or make it again")
        self._place += count
        return self._data[self._place - count : self._place]

    def number(self, most: int) -> int:
        value = int.from_bytes(self.take(4), "little", signed=True)
        if not 0 <= value <= most:
            raise CorruptFileError(f"{self._where}: is no importance matrix: it has a number of {value} where at most "
                                   f"{most} is possible")  # fmt: skip
        return value

    @property
    def left(self) -> int:
        return len(self._data) - self._place


def _read_legacy(path: Path) -> ImportanceMatrix:
    """The older format: the number of entries; of each its name, calls and means times calls; calls, a text's name."""
    data = _Bytes(path.read_bytes(), path.name)
    entries: dict[str, Entry] = {}
    for _ in range(data.number(_MOST_ENTRIES)):
        name = data.take(data.number(_LONGEST_NAME)).decode("utf-8", "replace")
        calls = max(1, data.number(1 << 30))
        values = np.frombuffer(data.take(4 * data.number(1 << 28)), "<f4")
        # How many matrices the values are of is not said: whoever uses them knows.
        entries[name] = _checked(Entry(values[None], np.array([calls], np.float32)), name, path.name)
    chunks, datasets = 0, []
    if data.left >= 8:
        chunks = data.number(1 << 30)
        datasets = [data.take(data.number(1 << 16)).decode("utf-8", "replace")]
    return ImportanceMatrix(entries, tuple(datasets), chunks, 0)


# -- the command's work ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collected:
    """What ``edgellm imatrix`` did: the file, its size, how many entries and chunks are in it, and seconds taken."""

    path: Path
    size_bytes: int
    entries: int
    chunks: int
    seconds: float


def make_file(
    output: str | os.PathLike[str],
    model: str | os.PathLike[str] | None,
    text: str | os.PathLike[str] | None,
    others: Sequence[str] = (),
    context: int = CONTEXT,
    chunks: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Collected:
    """Make an importance matrix from a text, merge others into it, and write it.

    Raises:
        EdgeLLMError: as `collect`, `read`, `merged` and `write`.
    """
    began = time.monotonic()
    path = Path(output)
    refuse_existing([path], force)
    found = [read(other) for other in others]
    if model is not None and text is not None:
        found.append(collect(model, text, context, chunks, progress))
    if not found:
        raise InvalidSettingError("nothing to make an importance matrix of", "give a text, or matrices to merge")
    matrix = merged(found)
    size = write(matrix, path, force)
    return Collected(path, size, len(matrix.entries), matrix.chunk_count, time.monotonic() - began)
