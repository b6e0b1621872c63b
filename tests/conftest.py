"""What all tests share: where material outside the repository lies, and small models made on the spot."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

# Test modules are imported by path (--import-mode=importlib), so their helpers need a place on sys.path of their own.
sys.path.insert(0, str(Path(__file__).resolve().parent / "helpers"))

# Before NumPy is imported: on a busy machine its threads spin waiting for one another, and tests multiply small things.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from tiny_models import TinyModel, write_tiny_model

# A shell that starts tests in the background has Ctrl-C ignored, and all that they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def missing(reason: str) -> NoReturn:
    """Skip a test whose material is not here, saying why; where everything must be (CI), fail instead."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of fixtures and reference outputs: EDGELLM_SHARED, or ``shared`` beside the checkout."""
    folder = Path(os.environ.get("EDGELLM_SHARED") or Path(__file__).resolve().parents[1].parent / "shared")
    if not folder.is_dir():
        missing(f"no folder {folder}: set EDGELLM_SHARED to the folder with the shared test material")
    return folder


def _real_model(alias: str, ending: str = "gguf") -> Path:
    """A real model: from EDGELLM_TEST_MODELS, else what ``edgellm pull`` has put into the cache."""
    folder = os.environ.get("EDGELLM_TEST_MODELS")
    if folder:
        path = Path(folder) / f"{alias}.{ending}"
        if not path.is_file():
            missing(f"EDGELLM_TEST_MODELS has no {path.name}")
        return path
    from edgellm.errors import EdgeLLMError
    from edgellm.hub import resolve

    try:
        return Path(resolve(alias, offline=True))
    except EdgeLLMError as error:
        missing(f"{alias} is not on this machine ({error}); get it with: edgellm pull {alias}")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, Q4_1."""
    return _real_model("smollm2")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma 3 270M, Q4_K_M."""
    return _real_model("gemma3")


@pytest.fixture(scope="session")
def silero_vad_path() -> Path:
    """Silero's voice activity model."""
    return _real_model("silero-vad", "onnx")


@pytest.fixture(scope="session")
def tiny_en_path() -> Path:
    """Whisper tiny.en, Q8_0."""
    return _real_model("tiny.en")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Factory of small random GGUF models with a working tokenizer and chat template.

    ``tiny_model("gemma3", window=16)`` takes the fields of ``tiny_models.TinyModel`` and returns the file's path;
    the same settings give the same file. Write to a copy, never to the file itself.
    """
    folder = tmp_path_factory.mktemp("tiny-models")
    made: dict[TinyModel, Path] = {}

    def make(architecture: str = "llama", **settings: object) -> Path:
        model = TinyModel(architecture=architecture, **settings)  # type: ignore[arg-type]
        if model not in made:
            path = folder / f"{architecture}-{len(made)}.gguf"
            write_tiny_model(path, model)
            made[model] = path
        return made[model]

    return make
