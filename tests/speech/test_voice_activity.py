"""Silero's model on speech, silence, noise and tones; in any portions; and what is no model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm.audio import load_audio
from edgellm.errors import CorruptFileError
from edgellm.speech.packing import cut_speech, pack
from edgellm.speech.voice_activity import (
    VoiceActivityDetector,
    VoiceActivityModel,
    VoiceActivitySettings,
    find_speech,
)


@pytest.fixture(scope="module")
def model(silero_vad_path: Path) -> VoiceActivityModel:
    return VoiceActivityModel(silero_vad_path)


def test_speech_is_found(model: VoiceActivityModel, shared: Path) -> None:
    """The pauses of this speech are known: it halts between "ask not" and the two halves of the sentence."""
    stretches = find_speech(load_audio(shared / "audio" / "jfk.flac"), model)
    found = [(round(s.start_seconds, 1), round(s.end_seconds, 1)) for s in stretches]
    assert found == [(0.2, 2.4), (3.1, 4.6), (5.2, 7.8), (8.0, 11.0)]


def test_portions_do_not_matter(model: VoiceActivityModel, shared: Path) -> None:
    samples = load_audio(shared / "audio" / "jfk.flac")
    whole = find_speech(samples, model)
    detector, stretches = VoiceActivityDetector(model), []
    for size in np.random.default_rng(0).integers(0, 5000, 200):
        stretches += detector.push(samples[detector.samples : detector.samples + size])
    assert stretches + detector.push(samples[detector.samples :]) + detector.flush() == whole


def test_a_conversation_matches_its_truth(model: VoiceActivityModel, shared: Path) -> None:
    """Of what the truth calls speech, at least 95 % lies in stretches; of what lies in none, hardly any is speech."""
    path = shared / "audio" / "conversations" / "made_2_clean.flac"
    samples = load_audio(path)
    truth = np.zeros(len(samples), bool)
    for line in path.with_suffix(".rttm").read_text().splitlines():
        start, length = map(float, line.split()[3:5])
        truth[round(16_000 * start) : round(16_000 * (start + length))] = True
    spoken = np.zeros(len(samples), bool)
    for stretch in find_speech(samples, model):
        spoken[stretch.start : stretch.end] = True
    assert (truth & spoken).sum() / truth.sum() > 0.95
    assert (truth & ~spoken).sum() / (~spoken).sum() < 0.3


def not_speech(kind: str, seconds: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    time = np.arange(seconds * 16_000) / 16_000
    if kind == "silence":
        return np.zeros(len(time), np.float32)
    if kind == "noise":
        return (rng.normal(size=len(time)) * 0.1).astype(np.float32)
    notes = 220 * 2 ** (rng.integers(0, 24, seconds * 2) / 12)
    return (0.3 * np.sin(2 * np.pi * np.repeat(notes, 8000) * time)).astype(np.float32)


@pytest.mark.parametrize("kind", ["silence", "noise", "tones"])
def test_what_is_no_speech(model: VoiceActivityModel, kind: str) -> None:
    sound = not_speech(kind, 60)
    spoken = sum(len(stretch) for stretch in find_speech(sound, model))
    assert spoken <= 0.02 * len(sound)


def test_windows_of_a_long_sound(model: VoiceActivityModel, shared: Path) -> None:
    samples = np.tile(load_audio(shared / "audio" / "jfk.flac"), 12)
    blocks = np.split(samples, range(16_000, len(samples), 16_000))
    windows = list(pack(cut_speech(blocks, VoiceActivityDetector(model))))
    assert [stretch for window in windows for stretch in window.time_map.speech] == find_speech(samples, model)
    assert all(len(window.samples) <= 480_000 for window in windows)
    assert all(len(window.samples) > 20 * 16_000 for window in windows[:-1])


def test_nothing_pushed(model: VoiceActivityModel) -> None:
    detector = VoiceActivityDetector(model, VoiceActivitySettings())
    assert detector.push(np.empty(0, np.float32)) + detector.flush() == []
    assert (detector.speaking_since, detector.silent_since, detector.settled) == (None, 0, 0)


def test_speaking_is_told_at_once(model: VoiceActivityModel, shared: Path) -> None:
    samples = load_audio(shared / "audio" / "jfk.flac")
    detector = VoiceActivityDetector(model)
    detector.push(samples[:16_000])
    assert detector.speaking_since == pytest.approx(0.152 * 16_000, abs=600)
    detector.push(samples[16_000 : int(2.9 * 16_000)])
    assert detector.speaking_since is None
    assert 2.0 * 16_000 < detector.silent_since < 2.6 * 16_000


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(range(256)) * 40])
def test_what_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vad.onnx"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"vad\.onnx is not a voice activity model; get it with: edgellm pull"):
        VoiceActivityModel(path)
