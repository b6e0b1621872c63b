"""Spectrograms compared with a peer, for which a module of the tests stands here."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edgellm.errors import EdgeLLMError
from edgellm.platforms.mel import HOP
from edgellm.tools.check_speech import main
from edgellm.tools.speech_mel import check_mel
from edgellm.tools.speech_mel_peer import FRAMES

PEER = """
import os
import numpy as np
from edgellm.platforms.mel import log_mel_reference
N_SAMPLES = 480000
def log_mel_spectrogram(samples, n_mels, padding):
    assert padding == (N_SAMPLES if len(samples) < N_SAMPLES else 0)
    frames = int(os.environ.get("PEER_FRAMES", 3000))
    exact = log_mel_reference(samples[: 160 * frames], n_mels, frames).T
    exact[-1, 7] += (np.nan if len(samples) == 1 and "PEER_NAN" in os.environ else 0.01) * (n_mels == 128)
    return exact.astype(np.float32)
"""


@pytest.fixture(autouse=True)
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "whisper"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "audio.py").write_text(PEER)
    (tmp_path / "torch.py").write_text("from_numpy = lambda array: array\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_windows_are_compared_one_by_one() -> None:
    random = np.random.default_rng(0)
    sounds = [0.1 * random.standard_normal(count).astype(np.float32) for count in (0, 1, 5000, HOP * FRAMES + 400)]
    figures = check_mel(sounds, sys.executable)
    assert figures.windows == 4
    assert 0 < figures.largest < 1e-4
    assert figures.largest_of_128 == pytest.approx(0.01, abs=1e-4)


def test_what_is_no_number_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEER_NAN", "1")
    figures = check_mel([np.ones(count, np.float32) for count in (2, 1, 3)], sys.executable)
    assert np.isnan(figures.largest_of_128)


def test_what_is_wrong_with_the_peer_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sounds = [np.ones(400, np.float32)]
    monkeypatch.setenv("PEER_FRAMES", "2999")
    with pytest.raises(EdgeLLMError, match="gave no spectrogram of 80 bands and 3000 frames"):
        check_mel(sounds, sys.executable)
    (tmp_path / "whisper" / "audio.py").unlink()
    with pytest.raises(EdgeLLMError, match="openai-whisper failed: ModuleNotFoundError"):
        check_mel(sounds, sys.executable)
    (tmp_path / "whisper" / "audio.py").write_text("import os\nos._exit(0)\n")
    with pytest.raises(EdgeLLMError, match="gave cannot be read"):
        check_mel(sounds, sys.executable)
    with pytest.raises(EdgeLLMError, match="hold no sound"):
        check_mel([np.zeros(0, np.float32)], sys.executable)
    with pytest.raises(EdgeLLMError, match="cannot be run"):
        check_mel(sounds, str(tmp_path / "no-python"))


def test_without_a_peer_there_is_nothing_to_compare_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import soundfile

    soundfile.write(tmp_path / "sound.wav", np.zeros(1600), 16000)
    with pytest.raises(SystemExit) as ended:
        main(["mel", str(tmp_path / "sound.wav")])
    assert ended.value.code == 1
    assert "give --against PYTHON" in capsys.readouterr().err
