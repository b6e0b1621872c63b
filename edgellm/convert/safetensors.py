"""The safetensors format: a header that trusts nothing, and reading some rows of a tensor at a time.

Source: the format's description in the safetensors project: eight bytes with the header's length, the header as a JSON
object from names to type, shape and place, then the data without gaps.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import CorruptFileError

MAX_HEADER_BYTES = 32 << 20
MAX_DIMENSIONS = 8
MAX_LENGTH = 1 << 48

# Bytes a value, and the NumPy type its bytes are loaded as: there is none for bfloat16 and the 8-bit floats.
KINDS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
    "F8_E8M0": np.dtype("u1"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("u1"),
}

_HINT = "the file is damaged: fetch it again"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
        name: its name in the checkpoint.
        kind: a key of ``KINDS``.
        shape: slowest dimension first.
        offset: of its first byte in the file.
        size_bytes: of all its values.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


class SafetensorsFile:
    """An open file with its checked header. Reading is safe from several threads."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self._file = file
        self._lock = threading.Lock()
        self.tensors: Mapping[str, StoredTensor] = _read_header(path, file)

    def read(self, tensor: StoredTensor, start: int, stop: int) -> NDArray[Any]:
        """Elements ``start`` to ``stop`` of the first dimension, freshly allocated, in the type of ``KINDS``."""
        dtype = KINDS[tensor.kind]
        shape: tuple[int, ...] = (stop - start, *tensor.shape[1:])
        if not tensor.shape:  # a single number
            start, shape = 0, ()
        item_bytes = math.prod(tensor.shape[1:]) * dtype.itemsize
        out = np.empty(shape, dtype)
        view = out.reshape(-1).view(np.uint8).data
        done = 0
        with self._lock:
            self._file.seek(tensor.offset + start * item_bytes)
            while done < len(view):
                count = self._file.readinto(view[done:])  # type: ignore[attr-defined]
                if not count:
                    raise CorruptFileError(f"{self.path.name}: ends within tensor {shown(tensor.name)}", _HINT)
                done += count
        return out


@contextmanager
def open_safetensors(paths: list[Path]) -> Iterator[list[SafetensorsFile]]:
    """Open files and check their headers.

    Raises:
        CorruptFileError: one breaks a rule of the format.
    """
    with ExitStack() as stack:
        files = []
        for path in paths:
            if not path.is_file():
                raise CorruptFileError(f"{path} is not a regular file")
            files.append(SafetensorsFile(path, stack.enter_context(path.open("rb", buffering=0))))
        yield files


def shown(name: str) -> str:
    """A name from a file as it may stand in a message."""
    text = ascii(name)[1:-1]
    return text if len(text) <= 100 else text[:97] + "..."


def _read_header(path: Path, file: IO[bytes]) -> dict[str, StoredTensor]:
    size = os.fstat(file.fileno()).st_size
    if size < 8:
        raise CorruptFileError(f"{path.name}: {size} bytes are too few for a safetensors file", _HINT)
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES or length > size - 8:
        raise CorruptFileError(
            f"{path.name}: says that its header takes {length} bytes, it has {size} and {MAX_HEADER_BYTES} are allowed",
            "this is no safetensors file, or a damaged one: fetch it again",
        )
    text = bytearray()
    while len(text) < length:
        piece = file.read(length - len(text))
        if not piece:
            raise CorruptFileError(f"{path.name}: ends within its header", _HINT)
        text += piece
    return _check_header(path, parse_json(bytes(text), f"{path.name}: its header"), size - 8 - length, 8 + length)


def parse_json(text: bytes, what: str) -> dict[str, Any]:
    """A JSON object none of whose names is given twice.

    Raises:
        CorruptFileError: it is none.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise CorruptFileError(f"{what} has {shown(twice)} twice", _HINT)
        return result

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise CorruptFileError(f"{what} is not valid JSON ({reason[:120]})", _HINT) from None
    if not isinstance(value, dict):
        raise CorruptFileError(f"{what} is a JSON {type(value).__name__}, expected an object", _HINT)
    return value


def _check_header(path: Path, header: dict[str, Any], data_bytes: int, start: int) -> dict[str, StoredTensor]:
    header.pop("__metadata__", None)
    tensors = [_check_tensor(path, name, entry, data_bytes, start) for name, entry in header.items()]
    end = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size_bytes)):
        if tensor.offset != end:
            what = "overlaps another" if tensor.offset < end else f"leaves {tensor.offset - end} bytes before it unused"
            raise CorruptFileError(f"{path.name}: tensor {shown(tensor.name)} {what}", _HINT)
        end += tensor.size_bytes
    if end != start + data_bytes:
        raise CorruptFileError(
            f"{path.name}: its tensors take {end - start} bytes, but {data_bytes} follow the header", _HINT
        )
    return {tensor.name: tensor for tensor in tensors}


def _check_tensor(path: Path, name: str, entry: Any, data_bytes: int, start: int) -> StoredTensor:
    what = f"{path.name}: tensor {shown(name)}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CorruptFileError(f"{what} lacks dtype, shape or data_offsets", _HINT)
    kind, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise CorruptFileError(f"{what} has the unknown type {shown(str(kind))}", f"known: {', '.join(KINDS)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_is_count, shape)):
        raise CorruptFileError(f"{what} has no valid shape: {shown(str(shape))}", _HINT)
    if not isinstance(place, list) or len(place) != 2 or not all(map(_is_count, place)):
        raise CorruptFileError(f"{what} has no valid place: {shown(str(place))}", _HINT)
    begin, end = place
    size = math.prod(shape) * KINDS[kind].itemsize
    if not begin <= end <= data_bytes:
        raise CorruptFileError(f"{what} lies at {begin} to {end}, but the data has {data_bytes} bytes", _HINT)
    if end - begin != size:
        raise CorruptFileError(f"{what} of type {kind} and shape {shape} takes {size} bytes, not {end - begin}", _HINT)
    return StoredTensor(name, kind, tuple(shape), start + begin, size)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_LENGTH
