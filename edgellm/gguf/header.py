"""The header of a GGUF file: keys, tensor descriptions and their layout, checked in full before anything is mapped.

Source: the GGUF specification in ggml's documentation (``docs/gguf.md``), versions 2 and 3.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from edgellm.errors import UnsupportedModelError
from edgellm.gguf.cursor import TRUNCATED_HINT, Cursor, printable, scan_strings
from edgellm.gguf.types import FOREIGN_TYPES, TensorType
from edgellm.gguf.values import LazyNested, LazyNumbers, LazyStrings, LazyValue, StoredValue

# Limits that no real model comes near. They keep the memory and time that a
# hostile header can cost within reach of the size of the file.
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_STRINGS = 1 << 22
MAX_KEY_BYTES = (1 << 16) - 1
MAX_TENSOR_NAME_BYTES = 1024
MAX_TEXT_BYTES = 1 << 24
MAX_NESTED_ARRAYS = 1 << 16
MAX_NESTING = 8
MAX_ALIGNMENT = 1 << 30
MAX_DIMENSIONS = 4

_DEFAULT_ALIGNMENT = 32
_ARRAY, _STRING, _BOOL = 9, 8, 7
# Value type ids of the format and the NumPy name of each.
_NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    _BOOL: "|b1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        name: its name in the file.
        type: how its values are stored.
        shape: NumPy order, slowest dimension first (ggml's dimensions reversed); the last is the length of a row.
        row_bytes: bytes of one row (a whole number of blocks).
        size_bytes: bytes of all rows, and of what follows the last one.
        offset: where its data begins in its file.
        part: which part of a split file holds it, 0 for the first.
    """

    name: str
    type: TensorType
    shape: tuple[int, ...]
    row_bytes: int
    size_bytes: int
    offset: int
    part: int = 0

    @property
    def columns(self) -> int:
        """Values in a row."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Rows, all leading dimensions multiplied."""
        return math.prod(self.shape[:-1])


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says before its data begins; ``key_spans`` tells from which byte to which each key lies."""

    version: int
    values: dict[str, StoredValue]
    key_spans: dict[str, tuple[int, int]]
    tensors: list[TensorInfo]
    alignment: int
    data_offset: int


class _Budget:
    """What one header has used up of the limits that hold for all its keys together."""

    def __init__(self) -> None:
        self.text_bytes = 0
        self.strings = 0
        self.nested_arrays = 0


def read_header(cursor: Cursor) -> Header:
    """Read and check everything before the tensor data.

    Raises:
        CorruptFileError: the file breaks a rule of the format; the message names the thing and its offset.
        UnsupportedModelError: an old version, big-endian data, or a tensor type of another program.
    """
    version = _read_version(cursor)
    tensor_count = _read_count(cursor, "the number of tensors", MAX_TENSORS, 8 + 1 + 4 + 4 + 8)
    key_count = _read_count(cursor, "the number of keys", MAX_KEYS, 8 + 1 + 4 + 1)
    values, spans = _read_values(cursor, key_count)
    alignment = _alignment(cursor, values)
    tensors = _read_tensors(cursor, tensor_count, alignment)
    data_offset = -(-cursor.position // alignment) * alignment
    tensors = _place(cursor, tensors, data_offset)
    return Header(version, values, spans, tensors, alignment, data_offset)


def _read_version(cursor: Cursor) -> int:
    magic = cursor.peek(4)
    if magic != b"GGUF":
        raise cursor.error(
            "the signature", f"is {magic!r} where a GGUF file has b'GGUF'", hint="this is another format"
        )
    cursor.take(4, "the signature")
    start = cursor.position
    version = cursor.u32("the version")
    if version in (2, 3):
        return version
    if version & 0xFFFF == 0 and version:
        problem, hint = (
            "the file is big-endian",
            "convert it to little-endian with gguf_convert_endian of the gguf package",
        )
    elif version == 1:
        problem, hint = "the file has GGUF version 1", "convert the original model again"
    else:
        problem, hint = f"the file has GGUF version {version}", "versions 2 and 3 are read"
    error = cursor.error("the version", problem, start)
    raise UnsupportedModelError(error.message, hint)


def _read_count(cursor: Cursor, what: str, limit: int, item_bytes: int) -> int:
    start = cursor.position
    count = cursor.u64(what)
    if count > limit:
        raise cursor.error(what, f"is {count}, more than the {limit} that are allowed", start)
    if count * item_bytes > cursor.remaining:
        problem = f"is {count}, which the {cursor.remaining} bytes that follow cannot hold"
        raise cursor.error(what, problem, start, TRUNCATED_HINT)
    return count


def _read_values(cursor: Cursor, count: int) -> tuple[dict[str, StoredValue], dict[str, tuple[int, int]]]:
    values: dict[str, StoredValue] = {}
    spans: dict[str, tuple[int, int]] = {}
    budget = _Budget()
    for index in range(count):
        start = cursor.position
        key = cursor.text(MAX_KEY_BYTES, f"the name of key {index}")
        what = f"key {printable(key)}"
        if key in values:
            raise cursor.error(what, "appears twice", start)
        value_type = cursor.u32(what)
        values[key] = _read_value(cursor, value_type, what, budget)
        spans[key] = start, cursor.position
    return values, spans


def _read_value(cursor: Cursor, value_type: int, what: str, budget: _Budget) -> StoredValue:
    if value_type == _ARRAY:
        return _read_array(cursor, what, budget, 0)
    if value_type == _STRING:
        return _read_string(cursor, what, budget)
    if value_type == _BOOL:
        byte = cursor.take(1, what)[0]
        if byte > 1:
            raise cursor.error(what, f"is the truth value {byte}, expected 0 or 1", cursor.position - 1)
        return byte == 1
    scalar = _SCALARS.get(value_type)
    if scalar is None:
        raise cursor.error(what, f"has the unknown value type {value_type}", cursor.position - 4)
    number: int | float = scalar.unpack(cursor.take(scalar.size, what))[0]
    return number


def _read_string(cursor: Cursor, what: str, budget: _Budget) -> str:
    start = cursor.position
    length = cursor.u64(what)
    cursor.require(length, what)
    budget.text_bytes += length
    if budget.text_bytes > MAX_TEXT_BYTES:
        raise cursor.error(what, f"brings the text of all keys above {MAX_TEXT_BYTES} bytes", start)
    return cursor.take(length, what).decode("utf-8", errors="replace")


def _read_array(cursor: Cursor, what: str, budget: _Budget, depth: int) -> LazyValue:
    start = cursor.position
    item_type = cursor.u32(what)
    count = cursor.u64(what)
    if item_type == _STRING:
        cursor.require(8 * count, what)
        budget.strings += count
        if budget.strings > MAX_STRINGS:
            raise cursor.error(what, f"brings the strings of all keys above {MAX_STRINGS}", start)
        starts = scan_strings(cursor, count, what)
        return LazyStrings(starts, cursor.position)
    if item_type == _ARRAY:
        return _read_nested(cursor, what, budget, depth, count)
    dtype = _NUMBERS.get(item_type)
    if dtype is None:
        raise cursor.error(what, f"is an array of the unknown value type {item_type}", start)
    offset = cursor.position
    if item_type == _BOOL:
        _check_booleans(cursor, count, what)
    else:
        cursor.skip(count * np.dtype(dtype).itemsize, what)
    return LazyNumbers(dtype, offset, count)


def _read_nested(cursor: Cursor, what: str, budget: _Budget, depth: int, count: int) -> LazyNested:
    if depth + 1 >= MAX_NESTING:
        raise cursor.error(what, f"has arrays nested more than {MAX_NESTING} deep")
    # The smallest array is its type and its length.
    if count * 12 > cursor.remaining:
        problem = f"claims {count} arrays, but only {cursor.remaining} bytes follow"
        raise cursor.error(what, problem, hint=TRUNCATED_HINT)
    budget.nested_arrays += count
    if budget.nested_arrays > MAX_NESTED_ARRAYS:
        raise cursor.error(what, f"brings the nested arrays of all keys above {MAX_NESTED_ARRAYS}")
    return LazyNested([_read_array(cursor, what, budget, depth + 1) for _ in range(count)])


def _check_booleans(cursor: Cursor, count: int, what: str) -> None:
    cursor.require(count, what)
    while count:
        piece = cursor.peek(min(count, 1 << 16))
        wrong = np.flatnonzero(np.frombuffer(piece, np.uint8) > 1)
        if len(wrong):
            byte = piece[wrong[0]]
            raise cursor.error(what, f"has the truth value {byte}, expected 0 or 1", cursor.position + int(wrong[0]))
        cursor.position += len(piece)
        count -= len(piece)


def _alignment(cursor: Cursor, values: dict[str, StoredValue]) -> int:
    value = values.get("general.alignment", _DEFAULT_ALIGNMENT)
    if isinstance(value, bool) or not isinstance(value, int):
        raise cursor.error("key 'general.alignment'", "is not an integer", 0)
    if not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
        problem = f"is {value}, expected a power of two of at most {MAX_ALIGNMENT}"
        raise cursor.error("key 'general.alignment'", problem, 0)
    return value


def _read_tensors(cursor: Cursor, count: int, alignment: int) -> list[TensorInfo]:
    tensors: list[TensorInfo] = []
    names: set[str] = set()
    for index in range(count):
        start = cursor.position
        name = cursor.text(MAX_TENSOR_NAME_BYTES, f"the name of tensor {index}")
        what = f"tensor {printable(name)}"
        if name in names:
            raise cursor.error(what, "appears twice", start)
        names.add(name)
        tensors.append(_read_tensor(cursor, name, what, alignment))
    return tensors


def _read_tensor(cursor: Cursor, name: str, what: str, alignment: int) -> TensorInfo:
    start = cursor.position
    dimension_count = cursor.u32(what)
    if dimension_count > MAX_DIMENSIONS:
        problem = f"has {dimension_count} dimensions, at most {MAX_DIMENSIONS} are allowed"
        raise cursor.error(what, problem, start)
    dimensions = struct.unpack(f"<{dimension_count}Q", cursor.take(8 * dimension_count, what))
    if 0 in dimensions:
        raise cursor.error(what, f"has a dimension of 0 in {list(dimensions)}", start + 4)
    tensor_type = _tensor_type(cursor, what)
    columns = dimensions[0] if dimensions else 1
    if columns % tensor_type.block_size:
        problem = (
            f"has rows of {columns} values, which are not whole {tensor_type.name} blocks of {tensor_type.block_size}"
        )
        raise cursor.error(what, problem, start)
    row_bytes = columns // tensor_type.block_size * tensor_type.block_bytes
    size_bytes = row_bytes * math.prod(dimensions[1:]) + tensor_type.tail_bytes
    if size_bytes > cursor.size:
        problem = f"of shape {list(dimensions)} takes {size_bytes} bytes, more than the file's {cursor.size}"
        raise cursor.error(what, problem, start, TRUNCATED_HINT)
    offset = cursor.u64(what)
    if offset % alignment:
        problem = f"has its data at {offset}, which is not a multiple of the alignment {alignment}"
        raise cursor.error(what, problem, cursor.position - 8)
    return TensorInfo(name, tensor_type, tuple(reversed(dimensions)), row_bytes, size_bytes, offset)


def _tensor_type(cursor: Cursor, what: str) -> TensorType:
    start = cursor.position
    number = cursor.u32(what)
    try:
        return TensorType(number)
    except ValueError:
        meaning = FOREIGN_TYPES.get(number, "which this version does not know")
        error = cursor.error(what, f"has the type {number}: {meaning}", start)
        raise UnsupportedModelError(error.message, "use another quantization of the model") from None


def _place(cursor: Cursor, tensors: list[TensorInfo], data_offset: int) -> list[TensorInfo]:
    """Turn offsets within the data into offsets in the file, checking bounds and overlaps."""
    placed = []
    for tensor in tensors:
        offset, size = data_offset + tensor.offset, tensor.size_bytes
        if offset + size > cursor.size:
            problem = f"takes {size} bytes there, but the file ends at {cursor.size}"
            raise cursor.error(f"tensor {printable(tensor.name)}", problem, offset, TRUNCATED_HINT)
        placed.append(TensorInfo(tensor.name, tensor.type, tensor.shape, tensor.row_bytes, size, offset))
    by_offset = sorted(placed, key=lambda tensor: tensor.offset)
    for before, after in pairwise(by_offset):
        if before.offset + before.size_bytes > after.offset:
            problem = f"overlaps tensor {printable(before.name)} at byte {before.offset}"
            raise cursor.error(f"tensor {printable(after.name)}", problem, after.offset)
    return placed
