"""``edgellm doctor``: what this machine offers, what edgellm keeps where, and what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from edgellm.cli.console import clean
from edgellm.folders import home_folder, kernels_folder, models_folder
from edgellm.hub.files import format_bytes

_SMALLEST_MEMORY = 500_000_000
"""Free bytes below which not even the default model runs at ease."""


@dataclass(frozen=True)
class Package:
    """A Python package edgellm uses: ``name`` on the package index, ``module`` to import, ``needed_for``."""

    name: str
    module: str
    needed_for: str
    optional: bool = False


PACKAGES = (
    Package("numpy", "numpy", "everything"),
    Package("numba", "numba", "compiling kernels"),
    Package("llvmlite", "llvmlite", "compiling kernels"),
    Package("gguf", "gguf", "reading model files"),
    Package("jinja2", "jinja2", "chat templates"),
    Package("regex", "regex", "tokenizers"),
    Package("click", "click", "the command line"),
    Package("rich", "rich", "progress bars"),
    Package("prompt_toolkit", "prompt_toolkit", "the chat's line editor"),
    Package("platformdirs", "platformdirs", "finding the cache folder"),
    Package("filelock", "filelock", "safe downloads"),
    Package("pip", "pip", "downloads from package indexes that need pip's own settings", optional=True),
)


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor_command(as_json: bool) -> None:
    """Tell what this machine offers and what is missing. Ends with exit code 1 if edgellm cannot work here."""
    report = examine()
    if as_json:
        from edgellm.cli.results import to_json

        click.echo(to_json(report))
    else:
        for line in _lines(report):
            click.echo(clean(line))
    if any(problem["severe"] for problem in report["problems"]):
        raise click.exceptions.Exit(1)


def examine() -> dict[str, Any]:
    """All that doctor knows; the shape of its JSON."""
    packages = [
        {**asdict(package), "version": _version(package), "get_it": f"pip install {package.name}"}
        for package in PACKAGES
    ]
    report: dict[str, Any] = {
        "edgellm": importlib.metadata.version("edgellm"),
        "python": {"version": platform.python_version(), "executable": sys.executable, "system": platform.platform()},
        "cpu": _cpu(),
        "memory": _memory(),
        "folders": _folders(),
        "packages": packages,
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith("EDGELLM_")},
    }
    report["problems"] = _problems(report)
    return report


def _cpu() -> dict[str, Any]:
    """The processor; an ``error`` in its place where the compiler that knows it is missing."""
    try:
        from edgellm.platforms.features import describe

        return describe()
    except ImportError as error:
        return {"name": platform.processor(), "architecture": platform.machine(), "error": str(error)}


def _memory() -> dict[str, int | None]:
    from edgellm.memory import available_bytes

    try:
        total: int | None = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        total = None
    return {"total_bytes": total, "available_bytes": available_bytes()}


def _folders() -> list[dict[str, Any]]:
    return [
        _folder("home", home_folder()),
        _folder("models", models_folder()),
        _folder("kernels", kernels_folder()),
    ]


def _folder(name: str, path: Path) -> dict[str, Any]:
    """Where a folder is, what is in it, and what room its disk has."""
    existing = next((folder for folder in (path, *path.parents) if folder.exists()), None)
    sizes = []
    for root, _, names in os.walk(path):
        for file in names:
            try:
                sizes.append((Path(root) / file).lstat().st_size)
            except OSError:
                continue
    return {
        "name": name,
        "path": str(path),
        "exists": path.is_dir(),
        "files": len(sizes),
        "size_bytes": sum(sizes),
        "writable": existing is not None and existing.is_dir() and os.access(existing, os.W_OK),
        "free_bytes": shutil.disk_usage(existing).free if existing else None,
    }


def _version(package: Package) -> str | None:
    """The installed version; None if it is not there or cannot be found for import."""
    try:
        if importlib.util.find_spec(package.module) is None:
            return None
        return importlib.metadata.version(package.name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None


def _problems(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What is wrong and what to do about it; ``severe`` if edgellm cannot work at all."""
    found = []
    for package in report["packages"]:
        if package["version"] is None:
            found.append(
                _problem(
                    f"{package['name']} is not installed (for {package['needed_for']})",
                    package["get_it"],
                    severe=not package["optional"],
                )
            )
    if "error" in report["cpu"]:
        found.append(_problem(f"the CPU's features are unknown: {report['cpu']['error']}", "pip install numba", True))
    home = report["folders"][0]
    if not home["writable"]:
        found.append(_problem(f"{home['path']} cannot be written to", "set EDGELLM_HOME to a folder of yours", True))
    free = report["memory"]["available_bytes"]
    if free is not None and free < _SMALLEST_MEMORY:
        found.append(_problem(f"only {format_bytes(free)} of memory are free", "close other programs"))
    if home["free_bytes"] is not None and home["free_bytes"] < _SMALLEST_MEMORY:
        found.append(
            _problem(
                f"only {format_bytes(home['free_bytes'])} are free on the disk of {home['path']}", "make room there"
            )
        )
    return found


def _problem(what: str, remedy: str, severe: bool = False) -> dict[str, Any]:
    return {"what": what, "remedy": remedy, "severe": severe}


def _lines(report: dict[str, Any]) -> list[str]:
    cpu, memory, python = report["cpu"], report["memory"], report["python"]
    total = format_bytes(memory["total_bytes"]) if memory["total_bytes"] else "unknown"
    free = format_bytes(memory["available_bytes"]) if memory["available_bytes"] is not None else "unknown"
    lines = [
        f"edgellm   {report['edgellm']}, Python {python['version']} ({python['executable']})",
        f"system    {python['system']}",
        f"cpu       {cpu['name'] or 'unknown'} ({cpu['architecture']})",
        f"kernels   for {cpu.get('instruction_set', 'unknown')}",
        f"cores     {cpu.get('physical_cores', '?')} physical, {cpu.get('logical_cores', '?')} logical",
        f"memory    {total}, {free} of it free",
    ]
    if cpu.get("amx"):
        lines.insert(4, f"amx       {cpu['amx']}")
    lines += _wrapped("features", [str(feature) for feature in cpu.get("features", [])])
    for folder in report["folders"]:
        size = f"{folder['files']} files, {format_bytes(folder['size_bytes'])}" if folder["exists"] else "not there yet"
        lines.append(f"{folder['name']:<9} {folder['path']} ({size})")
    lines += _wrapped("packages", [f"{p['name']} {p['version']}" for p in report["packages"] if p["version"]])
    if report["environment"]:
        lines += _wrapped("settings", [f"{name}={value}" for name, value in report["environment"].items()])
    lines += [f"{'PROBLEM' if p['severe'] else 'note':<9} {p['what']}: {p['remedy']}" for p in report["problems"]]
    return lines if report["problems"] else [*lines, "all is well"]


def _wrapped(name: str, words: list[str]) -> list[str]:
    import textwrap

    return textwrap.wrap(
        ", ".join(words), 110, initial_indent=f"{name:<9} ", subsequent_indent=" " * 10, break_on_hyphens=False
    )
