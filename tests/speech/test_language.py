"""The language of a sound, on a small random multilingual model: found once, in the window that is decoded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_whisper

from edgellm.convert import ConvertSettings, convert_whisper
from edgellm.errors import InvalidSettingError
from edgellm.speech.model import WhisperModel
from edgellm.speech.packing import Piece, lay_out
from edgellm.speech.settings import TranscriptionSettings
from edgellm.speech.transcriber import Transcriber

ROWS, TEXTS = 51865, 50257
SAMPLES = 320 * tiny_whisper.SOURCE
QUICK = TranscriptionSettings(vad_filter=False, beam_size=1, temperature=0.0, without_timestamps=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("multilingual")
    weights = tiny_whisper.tensors()
    name = "decoder.token_embedding.weight"
    embedding = np.random.default_rng(1).standard_normal((ROWS, tiny_whisper.WIDTH)) * 0.4
    weights[name] = embedding.astype(np.float16).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_whisper, "TEXTS", TEXTS)
        tiny_whisper.write_hugging_face(folder, weights)
    return convert_whisper(folder, folder / "model.gguf", ConvertSettings("f32")).path


@pytest.fixture
def transcriber(path: Path) -> Iterator[Transcriber]:
    with Transcriber.load(path, threads=2) as loaded:
        yield loaded


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, SAMPLES).astype(np.float32)


def expected(path: Path, sound: np.ndarray) -> dict[str, float]:
    """What the reference executor finds."""
    with_reference = WhisperModel.load(path, backend="reference")
    try:
        with_reference.reserve(1, 1)
        with_reference.encode(with_reference.spectrogram(sound), 0)
        return with_reference.detect_language(0)
    finally:
        with_reference.close()


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_that_of_the_first_window(
    path: Path, transcriber: Transcriber, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = noise(seed)
    likeliest, probability = next(iter((found := expected(path, sound)).items()))
    assert len(found) == 99
    assert sum(found.values()) == pytest.approx(1)
    encoded: list[int] = []
    encode = transcriber.model.encode
    monkeypatch.setattr(transcriber.model, "encode", lambda frames, window: encoded.append(encode(frames, window)))
    transcript = transcriber.transcribe(np.concatenate([sound, noise(seed + 9)]), QUICK)
    assert transcript.language == likeliest
    assert transcript.language_probability == pytest.approx(probability, abs=1e-3)
    assert len(encoded) == 2
    (window,) = lay_out([Piece(0, sound)], SAMPLES)
    transcriber.transcribe_window(window, QUICK)
    assert len(encoded) == 3


def test_one_that_is_set_is_not_asked_for(transcriber: Transcriber, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    detect = transcriber.model.detect_language
    monkeypatch.setattr(transcriber.model, "detect_language", lambda window: asked.append(window) or detect(window))
    for multilingual, times in ((False, 0), (True, 2)):
        settings = TranscriptionSettings(
            language="de", multilingual=multilingual, vad_filter=False, beam_size=1, temperature=0.0,
            without_timestamps=True,
        )  # fmt: skip
        transcript = transcriber.transcribe(np.concatenate([noise(0), noise(1)]), settings)
        assert (transcript.language, transcript.language_probability) == ("de", 1.0)
        assert len(asked) == times


def test_one_that_the_model_does_not_know_is_refused(transcriber: Transcriber) -> None:
    with pytest.raises(InvalidSettingError, match="does not know the language"):
        transcriber.transcribe(noise(0), TranscriptionSettings(language="yue", vad_filter=False))
