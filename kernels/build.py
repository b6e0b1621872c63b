"""Compile all kernels for common CPUs: ``python -m edgellm.kernels.build [--target NAME ...] [--output FOLDER]``.

The archives go into the package itself unless another folder is named, so that a wheel built afterwards brings them
and an installed edgellm has nothing to compile on a usual machine. Any machine can build for all of them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from edgellm.kernels.compiling import compile_in_children, compiler_command
from edgellm.kernels.library import SHIPPED, KernelError, source_key
from edgellm.kernels.object_files import ARCHIVE_SUFFIX, read_object, write_archive
from edgellm.kernels.target import NAMED_TARGETS


def kernels_for(target_name: str) -> list[str]:
    """Names of all kernels that there are for a target."""
    result = subprocess.run(
        compiler_command("-", target_name), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or ["the compiler process was ended"]
        raise KernelError(f"the kernels for {target_name} could not be listed: {lines[-1]}")
    return result.stdout.split()


def build(target_name: str, output: Path, names: Sequence[str] | None = None) -> Path:
    """Compile kernels, all by default, for a named target into an archive; returns its path.

    Raises:
        KernelError: a kernel did not compile.
    """

    def report(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{target_name}: {done} of {total}", end="", file=sys.stderr, flush=True)

    names = kernels_for(target_name) if names is None else names
    with tempfile.TemporaryDirectory(prefix="edgellm-build-") as folder:
        compile_in_children(names, Path(folder), report, target_name=target_name)
        objects = {}
        for name in sorted(names):
            item = read_object(Path(folder) / f"{name}.o")
            if item is None:
                raise KernelError(f"kernel {name} did not compile for {target_name}")
            objects[name] = item
    path = output / f"{target_name}{ARCHIVE_SUFFIX}"
    write_archive(path, source_key(), objects)
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m edgellm.kernels.build", description=__doc__)
    parser.add_argument("--target", action="append", choices=list(NAMED_TARGETS), help="which CPU; all by default")
    parser.add_argument("--output", type=Path, default=SHIPPED, help="folder for the archives; by default the package")
    parser.add_argument("--kernel", action="append", metavar="NAME", help="which kernel; all by default")
    options = parser.parse_args(arguments)
    for target_name in options.target or NAMED_TARGETS:
        began = time.monotonic()
        try:
            path = build(target_name, options.output, options.kernel)
        except (KernelError, OSError) as error:
            sys.exit(f"error: {error}")
        print(f"{path}: {path.stat().st_size} bytes in {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
