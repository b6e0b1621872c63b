"""What is installed: every package folder of the repository, under edgellm and nowhere else."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"edgellm": "edgellm", "kernels": "edgellm.kernels", "models": "edgellm.models",
           "platforms": "edgellm.platforms", "tools": "edgellm.tools"}  # fmt: skip


def test_every_package_folder_is_listed() -> None:
    """A folder that setuptools is not told of would be missing from the wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    expected = set()
    for folder, package in FOLDERS.items():
        for marker in (ROOT / folder).rglob("*.py"):
            inside = marker.parent.relative_to(ROOT / folder).parts
            expected.add(".".join((package, *inside)))
    assert set(settings["packages"]) == expected
    assert settings["package-dir"] == {package: folder for folder, package in FOLDERS.items()}


def test_top_level_is_as_agreed() -> None:
    """No module stands beside the agreed folders, where its name could clash with another project's."""
    assert {path.name for path in ROOT.glob("*.py")} == set()
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(FOLDERS)


def test_import_is_light() -> None:
    """What an application pays for ``import edgellm`` does not include the compiler or the terminal's libraries."""
    heavy = ["numba", "llvmlite", "gguf", "jinja2", "rich", "prompt_toolkit", "regex", "click", "urllib.request"]
    code = f"import sys, edgellm; print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
