"""A server on this machine in place of the hubs, and an empty home for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import FileServer, running_server

from edgellm.hub import fetch
from edgellm.hub.transfer import Patience

QUICK = Patience(answer=5.0, stall=1.0, attempts=3, attempts_with_data=3, backoff=0.01)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with running_server() as files:
        yield files


@pytest.fixture
def patience() -> Patience:
    """Gives up soon, so that tests of failures are quick."""
    return QUICK


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads this machine's settings and caches, or reaches any other."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "XDG_CACHE_HOME", "EDGELLM_OFFLINE", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    settings = {
        "HOME": str(home),
        "USERPROFILE": str(home),
        "EDGELLM_HOME": str(tmp_path / "edgellm"),
        "HF_HOME": str(tmp_path / "huggingface"),
        "HF_ENDPOINT": server.url,
        "PIP_INDEX_URL": f"{server.url}/simple",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "",
        "PIP_CONFIG_FILE": os.devnull,
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(fetch, "_DOWNLOAD", QUICK)
    monkeypatch.setattr(fetch, "_LOOK_UP", QUICK)
    return tmp_path
