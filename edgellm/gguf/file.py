"""Opening GGUF files, whole or split into parts, and reading their tensors through a memory mapping."""

from __future__ import annotations

import math
import mmap
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, TracebackType

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import CorruptFileError, ModelNotFoundError, OutOfMemoryError
from edgellm.gguf.codecs import Bytes, Float32, decode
from edgellm.gguf.cursor import TRUNCATED_HINT, Cursor, printable
from edgellm.gguf.header import Header, TensorInfo, read_header
from edgellm.gguf.values import Metadata, MetadataValue

_SMALLEST_FILE = 4 + 4 + 8 + 8
_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


class GGUFFile:
    """An open GGUF file. Its data stays on disk: pages are read when they are touched.

    Open one with :func:`open_gguf`; use it in a ``with`` statement or call :meth:`close`.

    Attributes:
        path: the file, or the first part of a split file.
        paths: all parts, in order.
        size_bytes: length of the file, of all parts together.
        metadata: the keys and their values; arrays are decoded when they are first looked up.
        tensors: name to description, in the order of the file.
        version: of the format, in the first part.
        alignment: every tensor begins at a multiple of so many bytes, in the first part.
    """

    def __init__(self, parts: list[_Part]) -> None:
        self.path: Path = parts[0].path
        self.paths: tuple[Path, ...] = tuple(part.path for part in parts)
        self.size_bytes: int = sum(part.size for part in parts)
        self.metadata: Mapping[str, MetadataValue] = Metadata(parts[0].header.values, parts[0].mapping)
        tensors = {
            tensor.name: replace(tensor, part=index) if index else tensor
            for index, part in enumerate(parts)
            for tensor in part.header.tensors
        }
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)
        self.version: int = parts[0].header.version
        self.alignment: int = parts[0].header.alignment
        self._key_spans = parts[0].header.key_spans
        self._mappings: list[mmap.mmap] = [part.mapping for part in parts]
        self._bytes: list[Bytes] = [np.frombuffer(mapping, np.uint8) for mapping in self._mappings]

    def stored_key(self, name: str) -> bytes:
        """A key as it stands in the file: the length of its name (uint64), name, type (uint32), value.

        Raises:
            KeyError: no such key.
            ValueError: the file is closed.
        """
        self._open_parts()
        start, end = self._key_spans[name]
        return self._mappings[0][start:end]

    def raw(self, name: str) -> Bytes:
        """The stored bytes of a tensor: uint8, (rows, row_bytes), a read-only view of the mapping.

        The view stays valid after :meth:`close`. It begins at a multiple of the file's alignment (32 bytes unless the
        file says otherwise).

        Raises:
            KeyError: no such tensor.
            ValueError: the file is closed.
        """
        tensor = self.tensors[name]
        data = self._open_parts()[tensor.part]
        length = tensor.size_bytes - tensor.type.tail_bytes
        return data[tensor.offset : tensor.offset + length].reshape(tensor.rows, tensor.row_bytes)

    def scale(self, name: str) -> float:
        """The number that all values of a tensor are multiplied by, which :meth:`raw` leaves out: of I2_S; else 1.

        Raises:
            KeyError: no such tensor.
            CorruptFileError: it is not a finite number.
            ValueError: the file is closed.
        """
        tensor = self.tensors[name]
        data = self._open_parts()[tensor.part]
        if not tensor.type.tail_bytes:
            return 1.0
        end = tensor.offset + tensor.size_bytes - tensor.type.tail_bytes
        scale = float(data[end : end + 4].view("<f4")[0])
        if not math.isfinite(scale):
            raise CorruptFileError(f"tensor {printable(name)} has the scale {scale}", "fetch the model again")
        return scale

    def decode(self, name: str, rows: slice | NDArray[np.integer] | None = None) -> Float32:
        """The values of a tensor as float32.

        Args:
            name: the tensor.
            rows: which rows, counted over all leading dimensions together; all of them by default.

        Returns:
            float32 in the tensor's shape, or (chosen rows, columns) if ``rows`` is given; freshly allocated.

        Raises:
            KeyError: no such tensor.
            IndexError: a row outside the tensor.
        """
        tensor = self.tensors[name]
        values = decode(self.raw(name) if rows is None else self.raw(name)[rows], tensor.type)
        if tensor.type.tail_bytes:
            values *= np.float32(self.scale(name))
        return values.reshape(tensor.shape) if rows is None else values

    def release(self, name: str | None = None) -> None:
        """Give the memory of a tensor's pages, or of all pages, back to the system; later reads fetch them again."""
        self._open_parts()
        if name is None:
            for mapping in self._mappings:
                _release(mapping, 0, len(mapping))
        else:
            tensor = self.tensors[name]
            _release(self._mappings[tensor.part], tensor.offset, tensor.size_bytes)

    def release_header(self) -> None:
        """The same for what stands before the tensors: mostly the vocabulary, once it was read."""
        self._open_parts()
        for part, mapping in enumerate(self._mappings):
            offsets = [tensor.offset for tensor in self.tensors.values() if tensor.part == part]
            _release(mapping, 0, min(offsets, default=0))

    def close(self) -> None:
        """Close the file. Views handed out by :meth:`raw` stay valid and keep the mapping until they are gone."""
        mappings, self._mappings, self._bytes = self._mappings, [], []
        for mapping in mappings:
            _release(mapping, 0, len(mapping))
            try:
                mapping.close()
            except BufferError:
                continue

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"GGUFFile({str(self.path)!r}, {len(self.tensors)} tensors)"

    def _open_parts(self) -> list[Bytes]:
        if not self._bytes:
            raise ValueError(f"{self.path.name} is closed")
        return self._bytes


@dataclass(frozen=True, slots=True)
class _Part:
    path: Path
    size: int
    header: Header
    mapping: mmap.mmap


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Open a GGUF file and check all of its header.

    Any part of a split file (``name-00001-of-00003.gguf``) opens all of it.

    Raises:
        ModelNotFoundError: there is no such file.
        CorruptFileError: the file breaks a rule of the format, or a part is missing.
        UnsupportedModelError: GGUF version 1, big-endian data, or a tensor type of another program.
    """
    first = _open_part(Path(path))
    parts = [first]
    try:
        count = _split_number(first, "split.count", 1)
        if count > 1:
            parts = _open_split(first, count)
        return GGUFFile(parts)
    except BaseException:
        for part in parts:
            part.mapping.close()
        raise


def _open_part(path: Path) -> _Part:
    try:
        # Looked at before it is opened: opening a named pipe would wait.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CorruptFileError(f"{str(path)!r} is not a regular file", "name a .gguf file")
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        raise ModelNotFoundError(f"there is no file {str(path)!r}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelNotFoundError(f"{str(path)!r} cannot be read: {reason}") from None
    with file:
        size = os.fstat(file.fileno()).st_size
        if size < _SMALLEST_FILE:
            raise CorruptFileError(f"{path.name}: {size} bytes are too few for a GGUF file", TRUNCATED_HINT)
        header = read_header(Cursor(file, path, size))
        try:
            mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise OutOfMemoryError(f"{path.name}: its {size} bytes cannot be mapped: {error.strerror}") from None
        except ValueError:
            raise CorruptFileError(f"{path.name}: became shorter while it was opened", TRUNCATED_HINT) from None
    return _Part(path, size, header, mapping)


def _open_split(opened: _Part, count: int) -> list[_Part]:
    """All parts of a split file in order, of which one is open already."""
    match = _PART_NAME.fullmatch(opened.path.name)
    if match is None or int(match["count"]) != count:
        raise CorruptFileError(
            f"{opened.path.name}: is one of {count} parts, but its name does not end in -0000N-of-{count:05d}.gguf",
            "give all parts the names that they were published under",
        )
    own = int(match["number"]) - 1
    paths = [opened.path.with_name(f"{match['stem']}-{index + 1:05d}-of-{count:05d}.gguf") for index in range(count)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise CorruptFileError(f"{opened.path.name}: of its {count} parts these are missing: {names}", "fetch them too")
    parts: list[_Part] = []
    try:
        for index, path in enumerate(paths):
            part = opened if index == own else _open_part(path)
            parts.append(part)
            _check_part(part, index, count)
        _check_together(parts)
    except BaseException:
        for part in parts:
            part.mapping.close()
        raise
    return parts


def _check_part(part: _Part, index: int, count: int) -> None:
    """Raise unless a part says of itself what its name and the other parts say."""
    own_count, own_index = _split_number(part, "split.count", 1), _split_number(part, "split.no", 0)
    if (own_count, own_index) != (count, index):
        said, expected = f"part {own_index + 1} of {own_count}", f"part {index + 1} of {count}"
        raise CorruptFileError(f"{part.path.name}: says that it is {said}, expected {expected}")


def _check_together(parts: list[_Part]) -> None:
    """Raise where parts contradict each other: a tensor in two of them, or a total that does not come out."""
    seen: dict[str, _Part] = {}
    for part in parts:
        for tensor in part.header.tensors:
            if tensor.name in seen:
                other = seen[tensor.name].path.name
                raise CorruptFileError(f"{part.path.name}: tensor {printable(tensor.name)} is also in {other}")
            seen[tensor.name] = part
    total = _split_number(parts[0], "split.tensors.count", len(seen))
    if total != len(seen):
        raise CorruptFileError(f"{parts[0].path.name}: its parts hold {len(seen)} tensors, expected {total}")


def _split_number(part: _Part, key: str, default: int) -> int:
    value = part.header.values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise CorruptFileError(f"{part.path.name}: key {key!r} is not a count")
    return value


def _release(mapping: mmap.mmap, offset: int, length: int) -> None:
    """Let go of the pages of a range; they are files' pages, so that the next access reads them again."""
    if hasattr(mapping, "madvise") and length:
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        mapping.madvise(mmap.MADV_DONTNEED, start, offset + length - start)
