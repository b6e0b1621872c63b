"""Checkpoints of the shared folder as model files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgellm.convert import ConvertSettings, convert


@pytest.fixture(scope="session")
def converted(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The model file, in F32, of a checkpoint in ``shared/fixtures``; made once."""
    folder = tmp_path_factory.mktemp("converted")

    def make(name: str) -> Path:
        path = folder / f"{name}.gguf"
        if not path.exists():
            convert(shared / "fixtures" / name, path, ConvertSettings(type="f32"))
        return path

    return make
