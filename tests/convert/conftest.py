"""What the tests of the converter share: each fixture converted once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgellm.convert import ConvertSettings, convert
from edgellm.gguf import GGUFFile, open_gguf


@pytest.fixture(scope="session")
def converted_path(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``converted_path(name, type)``: a fixture as a GGUF file, as it is stored unless a type is given."""
    folder = tmp_path_factory.mktemp("converted")

    def make(name: str, kind: str = "auto") -> Path:
        path = folder / f"{name}-{kind}.gguf"
        if not path.exists():
            # Not the fixture's own name: llama.cpp expects certain tokens in a model whose name contains "phi3".
            convert(shared / "fixtures" / name, path, ConvertSettings(type=kind, name="tiny", threads=1))
        return path

    return make


@pytest.fixture
def converted(converted_path: Callable[..., Path]) -> Iterator[Callable[..., GGUFFile]]:
    """The same, opened."""
    opened: list[GGUFFile] = []

    def make(name: str, kind: str = "auto") -> GGUFFile:
        opened.append(open_gguf(converted_path(name, kind)))
        return opened[-1]

    yield make
    for file in opened:
        file.close()
