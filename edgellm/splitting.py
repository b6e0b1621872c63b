"""Cutting a GGUF file into shards and putting shards together again, with the names and keys of llama.cpp.

Shards are called ``name-00001-of-00003.gguf`` and so on. Each is a GGUF file of its own that says which one it is
(``split.no``, counted from 0), of how many (``split.count``), and how many tensors all hold (``split.tensors.count``);
the first has all other keys as well. Source: llama.cpp's ``gguf-split`` and its loader.

Keys are copied as they stand in the file, with their types and order, so that joining gives back what was split.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from edgellm.errors import CorruptFileError, EdgeLLMError, InvalidSettingError
from edgellm.gguf import GGUFFile, TensorInfo, open_gguf
from edgellm.hub.files import format_bytes

Progress = Callable[[str, int, int], None]
"""Called with the stage ("split" or "join"), bytes written and bytes in all."""

SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
MOST_SHARDS = 1000
_PIECE = 4 << 20
_SYNC_EVERY = 128 << 20
_SPARE_BYTES = 64 << 20
_STALE_SECONDS = 60
_UINT16, _INT32 = 2, 5
_DEFAULT_ALIGNMENT = 32
_SHARD_SUFFIX = re.compile(r"-\d{5}-of-\d{5}\Z")


@dataclass(frozen=True)
class SplitSettings:
    """How to cut a file; one of the two limits is given.

    Attributes:
        max_bytes: no shard is larger, its header included.
        max_tensors: no shard holds more.
        force: replace files that are there.
    """

    max_bytes: int | None = None
    max_tensors: int | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if (self.max_bytes is None) == (self.max_tensors is None):
            raise InvalidSettingError("a file is split by size or by number of tensors", "give one of the two limits")
        if (self.max_bytes or self.max_tensors or 0) < 1:
            raise InvalidSettingError("a shard cannot be limited to nothing", "give a larger limit")


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        paths: the files in order.
        sizes: bytes of each.
        tensors: how many in each.
        seconds: it took.
    """

    paths: tuple[Path, ...]
    sizes: tuple[int, ...]
    tensors: tuple[int, ...]
    seconds: float

    @property
    def size_bytes(self) -> int:
        return sum(self.sizes)


def split(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: SplitSettings,
    progress: Progress | None = None,
) -> Written:
    """Cut a GGUF file into shards. Either all of them appear, complete, or none.

    Args:
        source: the file, or any shard of a split one.
        output: folder, or path with the name before ``-00001-of-0000N.gguf``.
        settings: how large the shards are.
        progress: told how far it is.

    Raises:
        ModelNotFoundError: there is no such file.
        CorruptFileError: it breaks a rule of the format.
        EdgeLLMError: a tensor is larger than a shard may be, a file exists, or the disk is full.
    """
    began = time.monotonic()
    with open_gguf(source) as file:
        shards = _plan_split(file, settings)
        stem = shard_stem(Path(output), file.path)
        paths = [stem.with_name(f"{stem.name}-{i + 1:05d}-of-{len(shards):05d}.gguf") for i in range(len(shards))]
        with published(paths, sum(shard.size for shard in shards), settings.force) as temporary:
            _write(file, shards, temporary, "split", progress)
            _check(file, temporary[0])
            file.close()  # some systems replace no open file
    return _summary(paths, shards, began)


def join(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    force: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Put the shards of a split GGUF file together. All of them are checked before anything is written.

    Args:
        source: any of the shards.
        output: the file to write, or a folder for it.
        force: replace a file that is there.
        progress: told how far it is.

    Raises:
        ModelNotFoundError: there is no such file.
        CorruptFileError: a shard is missing, breaks a rule of the format, or contradicts the others.
        EdgeLLMError: the file is whole already, the output exists, or the disk is full.
    """
    began = time.monotonic()
    with open_gguf(source) as file:
        if len(file.paths) == 1 and file.metadata.get("split.count") != 1:
            raise EdgeLLMError(f"{file.path.name} is a whole file, not a shard of one", "there is nothing to join")
        path = Path(output)
        if path.is_dir():
            path = path / f"{_SHARD_SUFFIX.sub('', file.path.stem)}.gguf"
        shards = [Shard(file.version, file.alignment, _kept_keys(file), tuple(file.tensors.values()))]
        with published([path], shards[0].size, force) as temporary:
            _write(file, shards, temporary, "join", progress)
            _check(file, temporary[0])
            file.close()
    return _summary([path], shards, began)


def _summary(paths: Sequence[Path], shards: Sequence[Shard], began: float) -> Written:
    return Written(
        tuple(paths),
        tuple(shard.size for shard in shards),
        tuple(len(shard.tensors) for shard in shards),
        time.monotonic() - began,
    )


def shard_stem(output: Path, source: Path) -> Path:
    """Where the shards lie and what their names begin with."""
    if output.is_dir():
        return output / _SHARD_SUFFIX.sub("", source.stem)
    name = output.name[:-5] if output.name.lower().endswith(".gguf") else output.name
    return output.with_name(_SHARD_SUFFIX.sub("", name) or "model")


@dataclass(frozen=True)
class Shard:
    """A file to be: its keys as they will stand in it, and its tensors in order (their offsets do not count)."""

    version: int
    alignment: int
    keys: tuple[bytes, ...]
    tensors: tuple[TensorInfo, ...]

    @property
    def size(self) -> int:
        return self.data_offset + sum(padded(tensor.size_bytes, self.alignment) for tensor in self.tensors)

    @property
    def data_offset(self) -> int:
        return padded(_HEAD + sum(map(len, self.keys)) + sum(map(_entry_bytes, self.tensors)), self.alignment)

    def header(self) -> Iterator[bytes]:
        """All that stands before the data, without padding."""
        yield b"GGUF" + struct.pack("<IQQ", self.version, len(self.tensors), len(self.keys))
        yield from self.keys
        offset = 0
        for tensor in self.tensors:
            name, dimensions = tensor.name.encode(), tuple(reversed(tensor.shape))
            yield struct.pack("<Q", len(name)) + name
            yield struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, int(tensor.type), offset)
            offset += padded(tensor.size_bytes, self.alignment)


_HEAD = 4 + 4 + 8 + 8


def padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _entry_bytes(tensor: TensorInfo) -> int:
    return 8 + len(tensor.name.encode()) + 4 + 8 * len(tensor.shape) + 4 + 8


def _kept_keys(file: GGUFFile) -> tuple[bytes, ...]:
    """All keys but those that say how a file is split."""
    return tuple(file.stored_key(name) for name in file.metadata if name not in SPLIT_KEYS)


def split_keys(number: int, count: int, tensors: int) -> tuple[bytes, ...]:
    kinds = ((_UINT16, "H", number), (_UINT16, "H", count), (_INT32, "i", tensors))
    return tuple(
        struct.pack(f"<Q{len(name)}sI{code}", len(name), name.encode(), kind, value)
        for name, (kind, code, value) in zip(SPLIT_KEYS, kinds, strict=True)
    )


def _plan_split(file: GGUFFile, settings: SplitSettings) -> list[Shard]:
    """The shards, in the order of the tensors."""
    kept = _kept_keys(file)
    # A shard's data is aligned as its own keys say; only the first has those of the model.
    aligned = () if file.alignment == _DEFAULT_ALIGNMENT else (file.stored_key("general.alignment"),)
    first, later = (_HEAD + sum(map(len, (*keys, *split_keys(0, 0, 0)))) for keys in (kept, aligned))
    groups = _group(file, settings, first, later)
    if len(groups) > MOST_SHARDS:
        raise EdgeLLMError(f"that would make {len(groups)} shards, more than {MOST_SHARDS}", "choose a larger limit")
    return [
        Shard(
            file.version,
            file.alignment,
            (*(aligned if number else kept), *split_keys(number, len(groups), len(file.tensors))),
            tuple(group),
        )
        for number, group in enumerate(groups)
    ]


def _group(file: GGUFFile, settings: SplitSettings, first: int, later: int) -> list[list[TensorInfo]]:
    """Which tensors go into which shard, given how many bytes the first and the later ones take without any.

    Raises:
        EdgeLLMError: the keys or a single tensor do not fit.
    """
    alignment, limit = file.alignment, settings.max_bytes
    groups: list[list[TensorInfo]] = [[]]
    head, data = first, 0
    if limit is not None and padded(first, alignment) > limit:
        raise _too_small("the keys and the vocabulary, which stay together,", padded(first, alignment))
    for tensor in file.tensors.values():
        entry, size = _entry_bytes(tensor), padded(tensor.size_bytes, alignment)
        full = settings.max_tensors is not None and len(groups[-1]) == settings.max_tensors
        if full or (limit is not None and padded(head + entry, alignment) + data + size > limit):
            groups.append([])
            head, data = later, 0
            if limit is not None and padded(head + entry, alignment) + size > limit:
                raise _too_small(f"tensor {tensor.name!r}", padded(head + entry, alignment) + size)
        groups[-1].append(tensor)
        head, data = head + entry, data + size
    return groups


def _too_small(what: str, size: int) -> EdgeLLMError:
    return EdgeLLMError(
        f"{what} would make a shard of {format_bytes(size)}, larger than allowed",
        f"allow at least {size} bytes",
    )


def _write(
    file: GGUFFile, shards: Sequence[Shard], paths: Sequence[Path], stage: str, progress: Progress | None
) -> None:
    """Write all shards, some megabytes at a time."""
    reader = _Reader(file)
    written, unsynced, total = 0, 0, sum(shard.size for shard in shards)
    with reader:
        for shard, path in zip(shards, paths, strict=True):
            with path.open("xb") as out:
                for piece in _pieces(shard, reader):
                    out.write(piece)
                    written += len(piece)
                    unsynced += len(piece)
                    if unsynced >= _SYNC_EVERY:  # so that the rate shown is that of the disk
                        os.fsync(out.fileno())
                        unsynced = 0
                    if progress is not None:
                        progress(stage, written, total)
                out.flush()
                os.fsync(out.fileno())


def _pieces(shard: Shard, reader: _Reader) -> Iterator[bytes | memoryview]:
    """The bytes of a file from beginning to end."""
    header = b"".join(shard.header())
    yield header
    yield from zeros(shard.data_offset - len(header))
    for tensor in shard.tensors:
        yield from reader.read(tensor)
        yield from zeros(padded(tensor.size_bytes, shard.alignment) - tensor.size_bytes)


def zeros(count: int) -> Iterator[bytes]:
    for start in range(0, count, _PIECE):
        yield bytes(min(_PIECE, count - start))


class _Reader:
    """Reads tensors by ordinary reads: unlike a mapping, they survive that a file becomes shorter meanwhile."""

    def __init__(self, file: GGUFFile) -> None:
        self._paths = file.paths
        self._part = -1
        self._file: IO[bytes] | None = None
        self._buffer = memoryview(bytearray(_PIECE))

    def read(self, tensor: TensorInfo) -> Iterator[memoryview]:
        """A tensor's bytes in order; each piece is valid until the next.

        Raises:
            CorruptFileError: the file ends before the tensor does.
        """
        file = self._open(tensor.part)
        file.seek(tensor.offset)
        left = tensor.size_bytes
        while left:
            count = file.readinto(self._buffer[: min(left, _PIECE)])  # type: ignore[attr-defined]
            if not count:
                raise CorruptFileError(f"{self._paths[tensor.part].name} became shorter while it was read")
            yield self._buffer[:count]
            left -= count

    def _open(self, part: int) -> IO[bytes]:
        if self._file is None or part != self._part:
            self.close()
            self._file, self._part = self._paths[part].open("rb", buffering=0), part
        return self._file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _check(source: GGUFFile, first: Path) -> None:
    """Open what was written, as loading it does, and compare it with the source.

    Raises:
        CorruptFileError: it is not what it should be.
    """
    with open_gguf(first) as made:
        keys = all(
            name in made.metadata and made.stored_key(name) == source.stored_key(name)
            for name in source.metadata
            if name not in SPLIT_KEYS
        )
        if not keys or list(map(_description, made.tensors.values())) != [
            _description(tensor) for tensor in source.tensors.values()
        ]:
            raise CorruptFileError("what was written is not what was read", "check the disk")


def _description(tensor: TensorInfo) -> tuple[object, ...]:
    return tensor.name, tensor.type, tensor.shape, tensor.size_bytes


@contextmanager
def published(paths: Sequence[Path], size: int, force: bool) -> Iterator[list[Path]]:
    """Files of the same names in a temporary folder beside ``paths``; when the block ends well, they are moved there.

    Args:
        paths: the files to be, all in one folder.
        size: bytes they will take together.
        force: replace files that are there.

    Raises:
        EdgeLLMError: a file exists, there is no such folder, or the disk has too little room.
    """
    folder = paths[0].parent
    if not folder.is_dir():
        raise EdgeLLMError(f"there is no folder {folder}", "make it, or choose another output")
    refuse_existing(paths, force)
    free = shutil.disk_usage(folder).free
    if free < size + _SPARE_BYTES:
        raise EdgeLLMError(
            f"this takes {format_bytes(size)}, {format_bytes(free)} are free in {folder}",
            "free some, or choose an output on another disk",
        )
    _sweep(folder)
    temporary = Path(tempfile.mkdtemp(prefix=".edgellm-", suffix=".part", dir=folder))
    lock = FileLock(temporary / "lock")
    try:
        lock.acquire()
        yield [temporary / path.name for path in paths]
        refuse_existing(paths, force)
        _move(temporary, paths)
        _sync_folder(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            problem = f"writing to {folder} failed: {os.strerror(error.errno)}"
            raise EdgeLLMError(problem, "free some, or choose an output on another disk") from error
        raise
    finally:
        lock.release()
        shutil.rmtree(temporary, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Delete what runs that were killed left behind: nobody holds the lock of such a folder any more.

    One that was killed just before it locked its folder, or while it deleted it, leaves a folder without a lock.
    Where one was killed while it replaced several files, those that it had taken away already are kept.
    """
    with suppress(OSError):
        for left in folder.glob(".edgellm-*.part"):
            lock = left / "lock"
            if any((left / "replaced").glob("*")):
                continue
            with suppress(OSError, Timeout):
                since = (lock if lock.exists() else left).stat().st_mtime
                if time.time() - since > _STALE_SECONDS:
                    with FileLock(lock, timeout=0):
                        pass
                    shutil.rmtree(left, ignore_errors=True)


def refuse_existing(paths: Sequence[Path], force: bool) -> None:
    """Raise EdgeLLMError if a file is there and must not be replaced."""
    for path in paths:
        if path.is_dir():
            raise EdgeLLMError(f"{path} is a folder", "choose another output")
        if path.exists() and not force:
            raise EdgeLLMError(f"{path} exists already", "choose another output, or replace it with --force")


def _move(temporary: Path, paths: Sequence[Path]) -> None:
    """Give all files their names, the first one last since it is the one people name; or leave all as it was."""
    if len(paths) == 1:  # in one step: whatever happens, the old file or the new one is there
        (temporary / paths[0].name).replace(paths[0])
        return
    replaced = temporary / "replaced"
    replaced.mkdir()
    begun: list[Path] = []
    try:
        for path in reversed(paths):
            begun.append(path)
            if path.exists():
                path.replace(replaced / path.name)
            (temporary / path.name).replace(path)
    except BaseException:
        for path in begun:
            if not (temporary / path.name).exists():
                path.unlink(missing_ok=True)
            if (replaced / path.name).exists():
                (replaced / path.name).replace(path)
        raise


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
