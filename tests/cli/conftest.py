"""A command runner whose model is scripted, in an empty home."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_llm import FakeLLM

from edgellm.cli import loading
from edgellm.cli.main import edgellm
from edgellm.cli.options import ModelOptions

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "edgellm"
    monkeypatch.setenv("EDGELLM_HOME", str(home))
    monkeypatch.setenv("EDGELLM_OFFLINE", "1")
    for name in ("EDITOR", "VISUAL"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def run() -> Run:
    """Run ``edgellm`` with arguments, and a FakeLLM in place of whatever model they name."""

    def run_command(*arguments: str, model: FakeLLM | None = None, input: str | bytes | None = None) -> Result:
        loaded: list[ModelOptions] = []

        def open_model(options: ModelOptions) -> FakeLLM:
            loaded.append(options)
            assert model is not None
            return model

        with pytest.MonkeyPatch.context() as patch:
            if model is not None:
                patch.setattr(loading, "open_model", open_model)
            result = CliRunner().invoke(edgellm, list(arguments), input=input, catch_exceptions=False)
        result.loaded = loaded  # type: ignore[attr-defined]
        return result

    return run_command
