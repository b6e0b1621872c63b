"""Bounded reading of a file whose every length is suspect."""

from __future__ import annotations

import struct
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import CorruptFileError

WINDOW_BYTES = 1 << 18
_LONGEST_WALK = 1 << 15
TRUNCATED_HINT = "the file is cut short or damaged: fetch it again"

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


def printable(text: str, limit: int = 80) -> str:
    """A name from an untrusted file, fit for one line of an error message."""
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


class Cursor:
    """Reads a file forwards through a small window, checking every length before anything is allocated for it.

    Args:
        file: opened for binary reading, unbuffered.
        path: named in errors.
        size: length of the file in bytes, as the file system states it.
    """

    def __init__(self, file: FileIO, path: Path, size: int) -> None:
        self._file = file
        self._path = path
        self.size = size
        self.position = 0
        self._window = b""
        self._window_start = 0

    @property
    def remaining(self) -> int:
        return self.size - self.position

    def error(self, what: str, problem: str, offset: int | None = None, hint: str | None = None) -> CorruptFileError:
        """An error about ``what`` at ``offset`` (by default: here)."""
        at = self.position if offset is None else offset
        return CorruptFileError(f"{self._path.name}: {what} at byte {at}: {problem}", hint)

    def require(self, count: int, what: str) -> None:
        """Raise unless ``count`` more bytes exist."""
        if count > self.remaining:
            problem = f"needs {count} bytes, but the file of {self.size} bytes has only {self.remaining} more"
            raise self.error(what, problem, hint=TRUNCATED_HINT)

    def peek(self, count: int) -> bytes:
        """Up to ``count`` bytes from here, fewer only at the end of the file; the position stays."""
        count = min(count, self.remaining)
        start = self.position - self._window_start
        if start < 0 or start + count > len(self._window):
            self._fill(count)
            start = 0
        return self._window[start : start + count]

    def take(self, count: int, what: str) -> bytes:
        """Exactly ``count`` bytes, moving on."""
        start = self.position - self._window_start
        if start + count <= len(self._window):
            self.position += count
            return self._window[start : start + count]
        self.require(count, what)
        data = self.peek(count)
        self.position += count
        return data

    def skip(self, count: int, what: str) -> None:
        """Move on by ``count`` bytes without reading them."""
        self.require(count, what)
        self.position += count

    def u32(self, what: str) -> int:
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack(self.take(8, what))[0])

    def text(self, limit: int, what: str) -> str:
        """A length-prefixed UTF-8 name of 1 to ``limit`` bytes."""
        start = self.position
        length = self.u64(what)
        if not 0 < length <= limit:
            raise self.error(what, f"has a length of {length} bytes, expected 1 to {limit}", start)
        data = self.take(length, what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise self.error(what, f"{data[:40]!r} is not valid UTF-8", start) from None

    def _fill(self, count: int) -> None:
        want = min(max(count, WINDOW_BYTES), self.remaining)
        self._file.seek(self.position)
        pieces = []
        while want > 0:
            piece = self._file.read(want)
            if not piece:
                raise self.error("the file", "became shorter while it was read", hint=TRUNCATED_HINT)
            pieces.append(piece)
            want -= len(piece)
        self._window = b"".join(pieces)
        self._window_start = self.position


def scan_strings(cursor: Cursor, count: int, what: str) -> NDArray[np.int64]:
    """Find where each of ``count`` length-prefixed strings begins, moving past the last.

    A vocabulary has hundreds of thousands of strings and nothing in the file says where each begins, so this walk is
    most of the time that opening takes. Nearly all strings are shorter than 256 bytes: the fast walk trusts the lowest
    byte of each length, and NumPy then checks the other seven for many strings at once. Where they are not zero, the
    following strings are walked with care, and the next fast walk is shorter, so that no mixture of lengths makes the
    work more than proportional to the count.

    Returns:
        int64, (count,): offsets in the file of the length prefixes.

    Raises:
        CorruptFileError: a string reaches beyond the end of the file.
    """
    if count * 8 > cursor.remaining:
        problem = f"claims {count} strings, but only {cursor.remaining} bytes follow"
        raise cursor.error(what, problem, hint=TRUNCATED_HINT)
    starts = np.empty(count, np.int64)
    found = 0
    attempt = _LONGEST_WALK
    while found < count:
        short = _walk_short(cursor, min(attempt, count - found))
        starts[found : found + len(short)] = short
        found += len(short)
        attempt = _LONGEST_WALK if len(short) == attempt else max(128, 2 * len(short))
        if found < count:
            careful = min(count - found, 8 if len(short) > 64 else 256)
            exact = _walk_exactly(cursor, careful, what, found)
            starts[found : found + len(exact)] = exact
            found += len(exact)
    return starts


def _walk_exactly(cursor: Cursor, limit: int, what: str, index: int) -> NDArray[np.int64]:
    """Offsets of 1 to ``limit`` next strings of any length; ``index`` is the number of the first in its array."""
    cursor.require(8, f"{what}, string {index}")
    base = cursor.position
    window = cursor.peek(64 * limit)
    found: list[int] = []
    at = 0
    while len(found) < limit and at + 8 <= len(window):
        found.append(at)
        at += 8 + _U64.unpack_from(window, at)[0]
    if base + at > cursor.size:
        cursor.position = base + found[-1]
        cursor.require(at - found[-1], f"{what}, string {index + len(found) - 1}")
    cursor.position = base + at
    return np.array(found, np.int64) + base


def _walk_short(cursor: Cursor, limit: int) -> NDArray[np.int64]:
    """Offsets of at most ``limit`` next strings, as far as they are shorter than 256 bytes and within one window."""
    base = cursor.position
    window = cursor.peek(min(WINDOW_BYTES, limit * (8 + 255)))
    found: list[int] = []
    append = found.append
    at = 0
    try:
        for _ in range(limit):
            step = window[at]
            append(at)
            at += step + 8
    except IndexError:
        pass
    # Only strings that end within the window are taken, so that each length
    # prefix can be checked in full and nothing lies beyond the file's end.
    while found and at > len(window):
        at = found.pop()
    offsets = np.array(found, np.int64)
    if not found:
        return offsets
    lengths: NDArray[np.uint64] = np.ndarray((len(window) - 7,), "<u8", window, strides=(1,))
    long = np.flatnonzero(lengths[offsets] > 255)
    if len(long):
        at = found[long[0]]
        offsets = offsets[: long[0]]
    cursor.position = base + at
    return offsets + base
