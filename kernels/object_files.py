"""Compiled kernels on disk: single object files, and archives of all kernels for one kind of machine.

Both begin with a line of JSON. Every object has a checksum: what was cut short or damaged is never loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ARCHIVE_SUFFIX = ".kernels"


@dataclass(frozen=True)
class ObjectCode:
    """A compiled kernel: the symbol of its function, and an object file of the system's format."""

    symbol: str
    code: bytes


def _checksum(code: bytes) -> str:
    import hashlib

    return hashlib.sha256(code).hexdigest()


def _write(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    import tempfile

    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_object(path: Path, symbol: str, code: bytes) -> None:
    """Store one object file."""
    header = {"symbol": symbol, "sha256": _checksum(code)}
    _write(path, json.dumps(header).encode() + b"\n" + code)


def read_object(path: Path) -> ObjectCode | None:
    """One object file, or None where it is missing or damaged."""
    try:
        header_line, _, code = path.read_bytes().partition(b"\n")
        header = json.loads(header_line)
        if _checksum(code) == header["sha256"]:
            return ObjectCode(str(header["symbol"]), code)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def write_archive(path: Path, sources: str, objects: Mapping[str, ObjectCode]) -> None:
    """Store objects by name; ``sources`` says what they were compiled from (see `edgellm.kernels.library`)."""
    index, begin = {}, 0
    for name, item in objects.items():
        index[name] = [item.symbol, begin, len(item.code), _checksum(item.code)]
        begin += len(item.code)
    header = json.dumps({"sources": sources, "objects": index}).encode()
    _write(path, header + b"\n" + b"".join(item.code for item in objects.values()))
    path.chmod(0o644)


def read_archive(path: Path, sources: str, names: Iterable[str]) -> dict[str, ObjectCode]:
    """Those of the named objects that an archive has; none if it was made from other sources or is damaged."""
    found: dict[str, ObjectCode] = {}
    try:
        with path.open("rb") as file:
            line = file.readline()
            header = json.loads(line)
            if header["sources"] != sources:
                return {}
            for name in names:
                if name in header["objects"]:
                    symbol, begin, size, checksum = header["objects"][name]
                    file.seek(len(line) + begin)
                    code = file.read(size)
                    if _checksum(code) == checksum:
                        found[name] = ObjectCode(str(symbol), code)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError):
        return {}
    return found
