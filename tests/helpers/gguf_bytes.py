"""GGUF files put together byte by byte, so that tests can write what no writer would."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

UINT8, UINT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 0, 2, 4, 5, 6, 7, 8, 9


def text(value: str | bytes) -> bytes:
    """A length-prefixed string."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str | bytes, value_type: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", value_type) + value


def uint32(name: str, value: int) -> bytes:
    return key(name, UINT32, struct.pack("<I", value))


def uint16(name: str, value: int) -> bytes:
    return key(name, UINT16, struct.pack("<H", value))


def string(name: str, value: str | bytes) -> bytes:
    return key(name, STRING, text(value))


def strings(name: str, values: Sequence[bytes]) -> bytes:
    return key(name, ARRAY, struct.pack("<IQ", STRING, len(values)) + b"".join(map(text, values)))


def tensor(name: str | bytes, dimensions: Sequence[int], type_id: int = 0, offset: int = 0) -> bytes:
    """A tensor description; dimensions in ggml's order, the length of a row first."""
    shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return text(name) + shape + struct.pack("<IQ", type_id, offset)


@dataclass
class Parts:
    """The pieces of a file; counts are those of the pieces unless they are given."""

    keys: list[bytes] = field(default_factory=list)
    tensors: list[bytes] = field(default_factory=list)
    data: bytes = b""
    version: int = 3
    magic: bytes = b"GGUF"
    tensor_count: int | None = None
    key_count: int | None = None
    alignment: int = 32

    def to_bytes(self) -> bytes:
        tensor_count = len(self.tensors) if self.tensor_count is None else self.tensor_count
        key_count = len(self.keys) if self.key_count is None else self.key_count
        header = self.magic + struct.pack("<IQQ", self.version, tensor_count, key_count)
        header += b"".join(self.keys) + b"".join(self.tensors)
        padding = -len(header) % self.alignment if self.tensors else 0
        return header + bytes(padding) + self.data

    def write(self, path: Path) -> Path:
        path.write_bytes(self.to_bytes())
        return path
