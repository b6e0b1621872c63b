"""Small jobs with files: atomic writing, free space, safe names, and grouping the parts of a split model."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import CorruptFileError, DownloadError, ModelNotFoundError

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how much is done, and how much there is (both in bytes here)."""

SPARE_BYTES = 64 << 20
"""Left free on the disk by every download."""

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf\Z", re.IGNORECASE)
_PIECE = re.compile(r"(?P<stem>.+\.gguf)\.?(?:part|split)[-_.]?(?P<number>\d{1,5})(?:of\d{1,5})?\Z", re.IGNORECASE)
_QUANTIZATION = re.compile(
    r"(?:(?<=[-_.])|^)((?:UD-)?(?:I?Q\d+(?:_[A-Z0-9]+)*|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4|BF16|F16|F32|FP16|FP32))(?=[-_.]|\Z)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class FileGroup:
    """The files that make one model, in order.

    ``join`` means that they are pieces of one file, cut at any byte; otherwise several files are the
    shards of a split GGUF, each a GGUF of its own. ``expected`` is the number of files there should be.
    """

    name: str
    members: tuple[str, ...]
    expected: int
    join: bool

    @property
    def quantization(self) -> str | None:
        return quantization_of(self.name)

    def require_complete(self) -> None:
        """Check that no part is missing; CorruptFileError otherwise."""
        if len(self.members) != self.expected:
            raise CorruptFileError(
                f"{self.name} is in {self.expected} parts, of which {len(self.members)} are there", "fetch all of them"
            )


def group_model_files(names: Iterable[str]) -> list[FileGroup]:
    """Sort file names into models: plain .gguf files, shards (-00001-of-00003), pieces (.part00). Others are left out.

    Raises:
        CorruptFileError: two files claim to be the same part.
    """
    groups: dict[tuple[str, bool], dict[int, str]] = {}
    counts: dict[tuple[str, bool], int] = {}
    for name in names:
        stem, number, count, join = _place(name)
        if stem is None:
            continue
        parts = groups.setdefault((stem, join), {})
        if number in parts:
            raise CorruptFileError(f"{name} and {parts[number]} both claim to be part {number} of {stem}")
        parts[number] = name
        counts[stem, join] = max(counts.get((stem, join), 0), count)
    result = []
    for (stem, join), parts in sorted(groups.items()):
        first = 0 if 0 in parts else 1
        expected = counts[stem, join] or max(parts) + 1 - first
        result.append(FileGroup(stem, tuple(parts[number] for number in sorted(parts)), expected, join))
    return result


def _place(name: str) -> tuple[str | None, int, int, bool]:
    """Which model a file belongs to, as which part, of how many (0: unknown), and whether parts are to be joined."""
    if match := _SHARD.match(name):
        return f"{match['stem']}.gguf", int(match["number"]), int(match["count"]), False
    if match := _PIECE.match(name):
        return match["stem"], int(match["number"]), 0, True
    if name.lower().endswith(".gguf"):
        return name, 1, 1, False
    return None, 0, 0, False


def quantization_of(filename: str) -> str | None:
    """The quantization a file's name speaks of, such as Q4_K_M; None if it names none."""
    stem = re.sub(r"\.gguf\Z", "", filename, flags=re.IGNORECASE)
    found = _QUANTIZATION.findall(stem.replace("/", "-"))
    return str(found[-1]).upper() if found else None


def local_model(path: Path) -> Path:
    """The file to open for a path: itself, or the first shard when it is any shard of a split model.

    A folder stands for the one model in it.

    Raises:
        ModelNotFoundError: nothing is there, or a folder holds no model or several.
        CorruptFileError: a shard is missing.
    """
    if path.is_dir():
        groups = group_model_files(entry.name for entry in sorted(path.iterdir()) if entry.is_file())
        if len(groups) != 1:
            found = ", ".join(group.members[0] for group in groups) or "no .gguf file"
            raise ModelNotFoundError(f"the folder {path} does not hold one model but: {found}", "name the file itself")
        groups[0].require_complete()
        return path / groups[0].members[0]
    if not path.exists():
        raise ModelNotFoundError(f"there is no file {path}", _neighbours(path))
    match = _SHARD.match(path.name)
    if not match:
        return path
    shards = [
        path.with_name(f"{match['stem']}-{number:05d}-of-{match['count']}.gguf")
        for number in range(1, min(int(match["count"]), 9999) + 1)
    ]
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing:
        listed = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise CorruptFileError(f"{path.name} is part of a split model of which {listed} is missing", "fetch all parts")
    return shards[0] if shards else path


def _neighbours(path: Path) -> str | None:
    """The .gguf files beside a path that does not exist."""
    try:
        found = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix == ".gguf")
    except OSError:
        return None
    return f"in {path.parent}: {', '.join(found[:8])}" if found else None


def safe_filename(name: str) -> str:
    """The last component of a name from outside, with no character that means something to a file system."""
    last = re.split(r"[/\\]", name)[-1]
    cleaned = re.sub(r"[^A-Za-z0-9._+-]", "_", last).lstrip(".")
    return cleaned[-200:] or "model.gguf"


def require_space(folder: Path, needed: int) -> None:
    """Check that ``needed`` bytes fit the disk of ``folder``.

    Raises:
        DownloadError: they do not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise DownloadError(
            f"not enough space in {folder}: {format_bytes(needed + SPARE_BYTES)} needed, {format_bytes(free)} free",
            "free some, or set EDGELLM_HOME to a folder on a larger disk",
        )


def format_bytes(count: float) -> str:
    """A size for people: 98.4 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """SHA-256 of a file, in hexadecimal. Reports the stage "verify" in bytes."""
    import hashlib

    digest = hashlib.sha256()
    done, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            done += len(chunk)
            if progress:
                progress("verify", done, size)
    return digest.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
