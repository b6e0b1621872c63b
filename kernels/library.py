"""Compiled kernels: object files on disk, loaded through llvmlite; what is missing is compiled first.

Objects live in one folder per key: the hash of all kernel sources, the CPU and its features, and the versions of
Python, Numba and llvmlite, so that none is ever stale. Compiling happens in child processes, several at once: the
process that runs a model never imports Numba.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgellm.errors import EdgeLLMError
from edgellm.kernels.target import Target

Progress = Callable[[str, int, int], None]


class KernelError(EdgeLLMError):
    """Kernels could not be compiled or loaded."""


def cache_key(target: Target) -> str:
    """Changes with everything that compiled code depends on."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    versions = [importlib.metadata.version(name) for name in ("numba", "llvmlite")]
    parts = [*versions, sys.version.split()[0], sys.platform, target.cpu_name, target.feature_string]
    digest.update("\0".join(parts).encode())
    return digest.hexdigest()[:24]


def write_object(path: Path, symbol: str, code: bytes) -> None:
    """Store one object file with its checksum, so that a half-written one is never loaded."""
    header = {"symbol": symbol, "sha256": hashlib.sha256(code).hexdigest()}
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps(header).encode() + b"\n" + code)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_object(path: Path) -> tuple[str, bytes] | None:
    """Symbol and code, or None where the file is missing or damaged."""
    try:
        header_line, _, code = path.read_bytes().partition(b"\n")
        header = json.loads(header_line)
        if hashlib.sha256(code).hexdigest() == header["sha256"]:
            return str(header["symbol"]), code
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


class KernelLibrary:
    """Finds kernels by name, such as ``matmul.q4`` (module and variant), and gives their addresses.

    Addresses stay valid as long as the library lives.
    """

    def __init__(self, target: Target, folder: Path, progress: Progress | None = None) -> None:
        self.target = target
        self.folder = folder / cache_key(target)
        self.progress = progress
        self._addresses: dict[str, int] = {}
        self._engines: list[Any] = []

    def load(self, names: Sequence[str]) -> dict[str, int]:
        """Addresses of the named kernels; compiles those that are not in the cache.

        Raises:
            KernelError: a kernel did not compile, or the cache folder cannot be written.
        """
        wanted = [name for name in dict.fromkeys(names) if name not in self._addresses]
        found = {name: read_object(self._path(name)) for name in wanted}
        missing = [name for name, item in found.items() if item is None]
        if missing:
            self._compile(missing)
            for name in missing:
                found[name] = read_object(self._path(name))
        self._link({name: item for name, item in found.items() if item is not None})
        return {name: self._addresses[name] for name in names}

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.o"

    def _link(self, objects: dict[str, tuple[str, bytes]]) -> None:
        if not objects:
            return
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine()
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        for _symbol, code in objects.values():
            engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(code))
        engine.finalize_object()
        self._engines.append(engine)
        for name, (symbol, _code) in objects.items():
            address = engine.get_function_address(symbol)
            if not address:
                raise KernelError(f"kernel {name} has no symbol {symbol}", f"delete {self.folder} and start again")
            self._addresses[name] = address

    def _compile(self, names: list[str]) -> None:
        from filelock import FileLock

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(str(self.folder) + ".lock"):
                # Another process may have compiled them while this one waited.
                names = [name for name in names if read_object(self._path(name)) is None]
                if names and getattr(sys, "frozen", False):
                    self._compile_here(names)
                elif names:
                    self._compile_in_children(names)
        except OSError as error:
            raise KernelError(
                f"cannot write compiled kernels to {self.folder}: {error.strerror or error}",
                "set EDGELLM_HOME to a folder that can be written",
            ) from error
        absent = [name for name in names if read_object(self._path(name)) is None]
        if absent:
            raise KernelError(f"kernels did not compile: {', '.join(absent)}", "run 'edgellm doctor' and report it")

    def _compile_here(self, names: list[str]) -> None:
        """In a frozen application there is no interpreter to start: compile in this process."""
        from edgellm.kernels.build import compile_kernel

        for number, name in enumerate(names):
            self._report(number, len(names))
            compile_kernel(name, self._path(name))
        self._report(len(names), len(names))

    def _compile_in_children(self, names: list[str]) -> None:
        jobs = max(1, min(len(names), len(_usable_cores())))
        self._report(0, len(names))
        children = [
            subprocess.Popen(
                # -P: a module in the current folder must not be taken for one of ours or of the standard library.
                [sys.executable, "-P", "-m", "edgellm.kernels.build", str(self.folder), *names[job::jobs]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "EDGELLM_INSTRUCTION_SET": self.target.forced},
            )
            for job in range(jobs)
        ]
        try:
            self._follow(children, len(names))
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                child.wait()

    def _follow(self, children: list[subprocess.Popen[str]], total: int) -> None:
        """Report each kernel as its child names it on standard output."""
        import threading

        done = 0
        lock = threading.Lock()
        errors: list[str] = []

        def read_errors(child: subprocess.Popen[str]) -> None:
            assert child.stderr is not None
            text = child.stderr.read().strip()
            if text:
                errors.append(text.splitlines()[-1])

        def read_names(child: subprocess.Popen[str]) -> None:
            nonlocal done
            assert child.stdout is not None
            for _line in child.stdout:
                with lock:
                    done += 1
                    self._report(done, total)

        readers = [threading.Thread(target=read, args=(child,), daemon=True)
                   for child in children for read in (read_errors, read_names)]  # fmt: skip
        for reader in readers:
            reader.start()
        for child in children:
            child.wait()
        for reader in readers:
            reader.join()
        if any(child.returncode for child in children):
            reason = errors[0] if errors else "the compiler process was ended"
            raise KernelError(f"kernels did not compile: {reason}", "run 'edgellm doctor' and report it")

    def _report(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress("kernels", done, total)


def _usable_cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
