"""Compiled kernels: object files on disk, loaded through llvmlite; what is missing is compiled first.

An object is looked for in three places:

1. the user's cache, in the folder of this very CPU and these very sources (`cache_key`);
2. the archives that came with the package, made by `edgellm.kernels.build`: in the best one whose code this CPU runs,
   unless it was made from other sources;
3. else it is compiled into the cache.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgellm.errors import EdgeLLMError
from edgellm.kernels.object_files import ARCHIVE_SUFFIX, ObjectCode, read_archive, read_object
from edgellm.kernels.target import Target, best_named_target

Progress = Callable[[str, int, int], None]
SHIPPED = Path(__file__).parent / "objects"
"""Where the archives are that came with the package."""
KEPT_SECONDS = 30 * 86400
"""Objects in the cache that nobody used for so long are deleted,"""
KEPT_FOLDERS = 8
"""and those of all keys but so many, the last used."""


class KernelError(EdgeLLMError):
    """Kernels could not be compiled or loaded."""


def source_key() -> str:
    """Changes with any source of the kernels."""
    import hashlib

    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:24]


@cache
def _package_version(package: str) -> bytes:
    """What tells one version of a package from another, without importing it or the machinery that lists packages."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return b""
    for name in ("_version.py", "__init__.py"):
        with contextlib.suppress(OSError):
            return Path(spec.origin).with_name(name).read_bytes()
    return b""


def cache_key(target: Target, sources: str | None = None) -> str:
    """Changes with everything that compiled code depends on: sources, CPU, and versions of Python and compilers."""
    import hashlib

    parts = [sources or source_key(), sys.version.split()[0], sys.platform, target.cpu_name, target.feature_string]
    digest = hashlib.sha256("\0".join(parts).encode())
    for package in ("numba", "llvmlite"):
        digest.update(b"\0" + _package_version(package))
    return digest.hexdigest()[:24]


class KernelLibrary:
    """Finds kernels by name, such as ``matmul.q4`` (module and variant), and gives their addresses.

    Addresses stay valid as long as the library lives.

    Args:
        target: the CPU.
        folder: the cache.
        progress: called with ("kernels", done, total) while kernels are compiled.
        shipped: where to look for archives.
    """

    def __init__(
        self, target: Target, folder: Path, progress: Progress | None = None, shipped: Path | None = None
    ) -> None:
        self.target = target
        self._sources = source_key()
        self.folder = folder / cache_key(target, self._sources)
        self.progress = progress
        self._shipped = SHIPPED if shipped is None else shipped
        self._addresses: dict[str, int] = {}
        self._engines: list[Any] = []

    def load(self, names: Sequence[str]) -> dict[str, int]:
        """Addresses of the named kernels; compiles those that are nowhere.

        Raises:
            KernelError: a kernel did not compile.
        """
        wanted = [name for name in dict.fromkeys(names) if name not in self._addresses]
        found = self._find(wanted)
        missing = [name for name in wanted if name not in found]
        if missing:
            found |= self._compile(missing)
        self._link(found)
        return {name: self._addresses[name] for name in names}

    def _find(self, names: list[str]) -> dict[str, ObjectCode]:
        found = {}
        if self.folder.is_dir():
            _note_use(self.folder)
            found = _read_objects(self.folder, names)
        missing = [name for name in names if name not in found]
        if missing and self._shipped.is_dir():
            kind = best_named_target(self.target)
            if kind is not None:
                found |= read_archive(self._shipped / f"{kind}{ARCHIVE_SUFFIX}", self._sources, missing)
        return found

    def _link(self, objects: dict[str, ObjectCode]) -> None:
        if not objects:
            return
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine()
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        for item in objects.values():
            engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(item.code))
        engine.finalize_object()
        self._engines.append(engine)
        for name, item in objects.items():
            address = engine.get_function_address(item.symbol)
            if not address:
                raise KernelError(f"kernel {name} has no symbol {item.symbol}", f"delete {self.folder} and start again")
            self._addresses[name] = address

    def _compile(self, names: list[str]) -> dict[str, ObjectCode]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _try_writing(self.folder)
        except OSError as error:
            return self._compile_for_once(names, error)
        from filelock import FileLock

        with FileLock(str(self.folder) + ".lock"):
            # Another process may have compiled them while this one waited.
            found = _read_objects(self.folder, names)
            self._compile_into(self.folder, [name for name in names if name not in found])
        prune(self.folder.parent, self.folder)
        return self._compiled(self.folder, names)

    def _compile_for_once(self, names: list[str], reason: OSError) -> dict[str, ObjectCode]:
        """Compile without a cache."""
        import logging
        import tempfile

        logging.getLogger(__name__).warning(
            "compiled kernels cannot be kept in %s (%s), so that each start compiles them; "
            "set EDGELLM_HOME to a folder that can be written",
            self.folder.parent,
            reason.strerror or reason,
        )
        with tempfile.TemporaryDirectory(prefix="edgellm-") as folder:
            self._compile_into(Path(folder), names)
            return self._compiled(Path(folder), names)

    def _compiled(self, folder: Path, names: list[str]) -> dict[str, ObjectCode]:
        found = _read_objects(folder, names)
        absent = [name for name in names if name not in found]
        if absent:
            raise KernelError(f"kernels did not compile: {', '.join(absent)}", "run 'edgellm doctor' and report it")
        return found

    def _compile_into(self, folder: Path, names: list[str]) -> None:
        if not names:
            return
        if not getattr(sys, "frozen", False):
            from edgellm.kernels.compiling import compile_in_children

            compile_in_children(_longest_first(names), folder, self._report, self.target.forced)
            return
        # In a frozen application there is no interpreter to start: compile in this process.
        from edgellm.kernels.compile import compile_kernel

        for number, name in enumerate(names):
            self._report(number, len(names))
            compile_kernel(name, folder / f"{name}.o")
        self._report(len(names), len(names))

    def _report(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress("kernels", done, total)


def _read_objects(folder: Path, names: Sequence[str]) -> dict[str, ObjectCode]:
    read = ((name, read_object(folder / f"{name}.o")) for name in names)
    return {name: item for name, item in read if item is not None}


def _longest_first(names: Sequence[str]) -> list[str]:
    """Products and attention take longest to compile: begun last, they would keep one core busy alone."""
    return sorted(names, key=lambda name: not name.startswith(("matmul", "attention")))


def _try_writing(folder: Path) -> None:
    """OSError if files cannot be made there."""
    import tempfile

    with tempfile.TemporaryFile(dir=folder):
        pass


def _note_use(folder: Path) -> None:
    """Set the time by which `prune` goes, at most once a day."""
    with contextlib.suppress(OSError):
        if time.time() - folder.stat().st_mtime > 86400:
            os.utime(folder)


def prune(cache: Path, own: Path) -> None:
    """Delete what is out of date: folders of other sources, versions or CPUs that were not used of late.

    Safe while others run: objects are read whole when they are loaded, a folder that someone compiles into is locked,
    and what is deleted nevertheless is compiled again.
    """
    import shutil

    from filelock import FileLock, Timeout

    folders = []
    with contextlib.suppress(OSError):
        for entry in cache.iterdir():
            if entry != own and len(entry.name) == len(own.name) and entry.is_dir():
                with contextlib.suppress(OSError):
                    folders.append((entry.stat().st_mtime, entry))
    folders.sort(reverse=True)
    for number, (used, folder) in enumerate(folders):
        if number < KEPT_FOLDERS - 1 and time.time() - used < KEPT_SECONDS:
            continue
        lock = Path(f"{folder}.lock")
        with contextlib.suppress(Timeout, OSError), FileLock(str(lock), timeout=0):
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)
