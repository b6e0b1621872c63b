"""Compiling kernels in child processes, several at once: the process that runs a model never imports Numba."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from edgellm.kernels.library import KernelError


def usable_cores() -> int:
    """How many of the machine's cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def compiler_command(folder: str, target_name: str) -> list[str]:
    """Starts `edgellm.kernels.compile`."""
    # -P: a module in the current folder must not be taken for one of ours or of the standard library.
    return [sys.executable, "-P", "-m", "edgellm.kernels.compile", folder, *([target_name] if target_name else [])]


class _Pool:
    """Compilers that take name after name, so that none is idle while others have a queue."""

    def __init__(self, names: Sequence[str], report: Callable[[int, int], None]) -> None:
        self._waiting = list(names)
        self._total, self._done = len(names), 0
        self._report = report
        self._lock = threading.Lock()
        self.errors: list[str] = []
        self.failed = False

    def serve(self, child: subprocess.Popen[str]) -> None:
        """Give one compiler its work."""
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            while not self.failed:
                with self._lock:
                    if not self._waiting:
                        break
                    name = self._waiting.pop(0)
                child.stdin.write(name + "\n")
                child.stdin.flush()
                if not child.stdout.readline():
                    break
                with self._lock:
                    self._done += 1
                    self._report(self._done, self._total)
            child.stdin.close()
        except OSError:
            pass  # it has ended, which its exit code tells
        if child.wait() != 0:
            self.failed = True

    def read_errors(self, child: subprocess.Popen[str]) -> None:
        """Keep the last line that a compiler says on standard error."""
        assert child.stderr is not None
        text = child.stderr.read().strip()
        if text:
            self.errors.append(text.splitlines()[-1])


def compile_in_children(
    names: Sequence[str],
    folder: Path,
    report: Callable[[int, int], None],
    instruction_set: str = "native",
    target_name: str = "",
) -> None:
    """Compile kernels into object files, on all cores.

    Args:
        names: of the kernels; those that take longest should come first.
        folder: gets the files.
        report: called with the numbers of kernels done and of all.
        instruction_set: as in ``EDGELLM_INSTRUCTION_SET``, for this machine.
        target_name: compile for this named target instead.

    Raises:
        KernelError: a kernel did not compile.
    """
    report(0, len(names))
    pool = _Pool(names, report)
    children = [
        subprocess.Popen(
            compiler_command(str(folder), target_name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "EDGELLM_INSTRUCTION_SET": instruction_set},
        )
        for _ in range(min(len(names), usable_cores()))
    ]
    try:
        threads = [
            threading.Thread(target=work, args=(child,), daemon=True)
            for child in children
            for work in (pool.serve, pool.read_errors)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()
    if pool.failed:
        reason = pool.errors[0] if pool.errors else "the compiler process was ended"
        raise KernelError(f"kernels did not compile: {reason}", "run 'edgellm doctor' and report it")
