"""Metadata values: read at once when small, decoded at first use when they are arrays."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias, overload

import numpy as np
from numpy.typing import NDArray


class StringArray(Sequence[bytes]):
    """A read-only sequence of byte strings that stay in the mapped file until they are asked for.

    Strings are bytes because vocabularies hold pieces of characters, which are not valid UTF-8.
    """

    __slots__ = ("_end", "_mapping", "_starts")

    def __init__(self, mapping: mmap.mmap, starts: NDArray[np.int64], end: int) -> None:
        """``starts``: offsets of the length prefixes, ascending and checked; ``end``: one past the last string."""
        self._mapping = mapping
        self._starts = starts
        self._end = end

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        count = len(self._starts)
        if isinstance(index, slice):
            first, last, step = index.indices(count)
            if step == 1:
                return self._between(first, max(first, last))
            return [self[i] for i in range(first, last, step)]
        position = index + count if index < 0 else index
        if not 0 <= position < count:
            raise IndexError(f"string {index} of an array of {count}")
        start = int(self._starts[position])
        end = int(self._starts[position + 1]) if position + 1 < count else self._end
        return self._mapping[start + 8 : end]

    def __iter__(self) -> Iterator[bytes]:
        for first in range(0, len(self), 4096):
            yield from self._between(first, min(first + 4096, len(self)))

    def tolist(self) -> list[bytes]:
        """All strings: 262,000 take about 30 ms."""
        return self._between(0, len(self))

    def __repr__(self) -> str:
        return f"StringArray of {len(self)} strings"

    def _between(self, first: int, last: int) -> list[bytes]:
        if first >= last:
            return []
        starts = self._starts[first : last + 1]
        if last == len(self._starts):
            starts = np.append(starts, self._end)
        base = int(starts[0])
        data = self._mapping[base : int(starts[-1])]
        relative = starts - base
        return [data[a:b] for a, b in zip((relative[:-1] + 8).tolist(), relative[1:].tolist(), strict=True)]


MetadataValue: TypeAlias = "int | float | bool | str | NDArray[np.generic] | StringArray | tuple[MetadataValue, ...]"
"""A value of a GGUF key. Arrays of numbers and booleans are NumPy arrays, arrays of strings are ``StringArray``, and
arrays of arrays, which the format allows and no known model uses, are tuples."""


class LazyNumbers:
    """An array of numbers or booleans that is still in the file: ``count`` values of ``dtype`` from ``offset`` on."""

    __slots__ = ("count", "dtype", "offset")

    def __init__(self, dtype: str, offset: int, count: int) -> None:
        self.dtype = dtype
        self.offset = offset
        self.count = count


class LazyStrings:
    """An array of strings that is still in the file."""

    __slots__ = ("end", "starts")

    def __init__(self, starts: NDArray[np.int64], end: int) -> None:
        self.starts = starts
        self.end = end


class LazyNested:
    """An array of arrays that is still in the file."""

    __slots__ = ("items",)

    def __init__(self, items: list[LazyValue]) -> None:
        self.items = items


LazyValue: TypeAlias = "LazyNumbers | LazyStrings | LazyNested"
StoredValue: TypeAlias = "int | float | bool | str | LazyNumbers | LazyStrings | LazyNested"


class Metadata(Mapping[str, MetadataValue]):
    """The keys of a file in their order; arrays are decoded when they are first looked up."""

    def __init__(self, stored: dict[str, StoredValue], mapping: mmap.mmap) -> None:
        self._stored = stored
        self._mapping = mapping
        self._decoded: dict[str, MetadataValue] = {}

    def __getitem__(self, key: str) -> MetadataValue:
        value = self._stored[key]
        if not isinstance(value, LazyNumbers | LazyStrings | LazyNested):
            return value
        if key not in self._decoded:
            if self._mapping.closed:
                raise ValueError(f"the array {key!r} was not read before its file was closed")
            self._decoded[key] = _load(value, self._mapping)
        return self._decoded[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __contains__(self, key: object) -> bool:
        return key in self._stored

    def __repr__(self) -> str:
        return f"Metadata of {len(self)} keys"


def _load(value: LazyValue, mapping: mmap.mmap) -> MetadataValue:
    if isinstance(value, LazyStrings):
        return StringArray(mapping, value.starts, value.end)
    if isinstance(value, LazyNested):
        return tuple(_load(item, mapping) for item in value.items)
    dtype = np.dtype(value.dtype)
    # A copy: the values need not be aligned in the file, and the array
    # should outlive the mapping.
    return np.frombuffer(mapping[value.offset : value.offset + value.count * dtype.itemsize], dtype)
