"""The diarizer that all tests share, and the conversations with their truth."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from recordings import Recording

from edgellm.diarization import Diarizer, read_rttm
from edgellm.errors import EdgeLLMError


@pytest.fixture(scope="session")
def diarizer() -> Iterator[Diarizer]:
    """With the models that ``edgellm pull diarization`` put into the cache."""
    try:
        made = Diarizer.load(offline=True)
    except EdgeLLMError as error:
        reason = f"no diarization models ({error}); get them with: edgellm pull diarization"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with made:
        yield made


@pytest.fixture(scope="session")
def conversations(shared: Path) -> dict[str, Recording]:
    """The made conversations and ``sample``, by name."""
    found = {}
    for path in sorted((shared / "audio" / "conversations").iterdir()):
        if path.suffix in (".flac", ".wav"):
            turns = next(iter(read_rttm(path.with_suffix(".rttm")).values()))
            found[path.stem] = Recording(path, turns)
    return found
