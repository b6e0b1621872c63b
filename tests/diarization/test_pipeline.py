"""The whole way: accuracy on conversations, odd sounds, live use, channels, known voices."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest

from edgellm.audio import load_audio
from edgellm.diarization import Diarizer, ErrorRate, LiveDiarizer, SpeakerCount, Voice, diarization_error_rate
from edgellm.diarization.voices import recognize
from edgellm.errors import EdgeLLMError, InvalidSettingError

RATE = 16_000
CHOSEN = ("made_1_1", "made_2_overlap", "made_3_short", "made_4_noisy", "made_5_clean")


def test_conversations(diarizer: Diarizer, conversations: dict) -> None:  # type: ignore[type-arg]
    """Five of the made conversations; bounds somewhat above those measured on all of them."""
    near, exact = ErrorRate(), ErrorRate()
    for name in CHOSEN:
        recording = conversations[name]
        found = diarizer.diarize(recording.path)
        assert len(found.speakers) == recording.speakers, name
        near += diarization_error_rate(recording.turns, found.turns, 0.25)
        exact += diarization_error_rate(recording.turns, found.turns, 0)
        ordered = sorted(found.exclusive)
        assert all(a.end <= b.start + 1e-9 for a, b in itertools.pairwise(ordered)), "exclusive turns overlap"
        assert all(0 <= turn.start < turn.end <= found.duration for turn in found.turns)
    assert near.rate <= 0.033
    assert exact.rate <= 0.08


def test_telephone(diarizer: Diarizer, conversations: dict) -> None:  # type: ignore[type-arg]
    recording = conversations["sample"]
    found = diarizer.diarize(str(recording.path))
    assert found.speakers == ("SPEAKER_00", "SPEAKER_01")
    assert diarization_error_rate(recording.turns, found.turns, 0.25).rate <= 0.01
    assert diarization_error_rate(recording.turns, found.turns, 0).rate <= 0.05
    alone = diarizer.diarize(recording.path, speakers=1)
    assert alone.speakers == ("SPEAKER_00",)
    assert len(diarizer.diarize(recording.path, min_speakers=3).speakers) >= 3
    assert len(diarizer.diarize(recording.path, max_speakers=1).speakers) == 1


def test_eight_speakers(diarizer: Diarizer, conversations: dict) -> None:  # type: ignore[type-arg]
    sound = np.concatenate([load_audio(conversations[name].path) for name in ("made_4_clean", "made_4_short")])
    found = diarizer.diarize(sound)
    assert 7 <= len(found.speakers) <= 9


def test_odd_sounds(diarizer: Diarizer, shared: Path) -> None:
    times = np.arange(15 * RATE) / RATE
    hum = (0.1 * np.sin(2 * np.pi * 50 * times) + 0.03 * np.sin(2 * np.pi * 100 * times)).astype(np.float32)
    for sound in (hum, np.zeros(12 * RATE, np.float32), np.zeros(1, np.float32), np.full(RATE, 0.5, np.float32)):
        found = diarizer.diarize(sound)
        assert found.turns == found.exclusive == ()
        assert found.duration == len(sound) / RATE
    utterance = load_audio(sorted((shared / "audio" / "librispeech").glob("*.flac"))[0])
    assert diarizer.diarize(utterance).speakers == ("SPEAKER_00",)
    loud = int(np.abs(utterance).argmax())
    for length in (0.3, 0.05, 1.0):
        piece = utterance[max(0, loud - int(length * RATE / 2)) :][: int(length * RATE)]
        found = diarizer.diarize(piece)
        assert len(found.speakers) <= 1
        assert all(turn.end <= len(piece) / RATE for turn in found.turns)
    noise = np.random.default_rng(0).uniform(-1, 1, 11 * RATE).astype(np.float32)
    assert len(diarizer.diarize(noise).speakers) <= 1


def test_empty_and_missing(diarizer: Diarizer, tmp_path: Path) -> None:
    with pytest.raises(EdgeLLMError):
        diarizer.diarize(tmp_path / "none.wav")
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"not a sound")
    with pytest.raises(EdgeLLMError):
        diarizer.diarize(bad)
    with pytest.raises(InvalidSettingError):
        diarizer.diarize(bad, speakers=0)


def test_blocks_threads_and_batches_do_not_matter(diarizer: Diarizer, conversations: dict) -> None:  # type: ignore[type-arg]
    sound = load_audio(conversations["made_2_short"].path)
    expected = diarizer.diarize(sound)
    analysis = diarizer.start(live=True)
    for first in range(0, len(sound), 7777):
        analysis.push(sound[first : first + 7777])
    found = diarizer.conclude(analysis)
    assert found.speakers == expected.speakers
    assert diarization_error_rate(expected.turns, found.turns, 0).rate < 0.01
    with Diarizer(diarizer.models, threads=1) as other:
        alone = other.diarize(sound)
    assert diarization_error_rate(expected.turns, alone.turns, 0).rate < 0.01


def test_memory_of_the_sound_is_given_back(diarizer: Diarizer, conversations: dict) -> None:  # type: ignore[type-arg]
    sound = np.tile(load_audio(conversations["made_2_clean"].path), 4)
    analysis = diarizer.start()
    most = 0
    for first in range(0, len(sound), RATE):
        analysis.push(sound[first : first + RATE])
        most = max(most, analysis._sound.end - analysis._sound._first)
    analysis.finish()
    assert most < 70 * RATE


def test_live_names_stay(diarizer: Diarizer, conversations: dict) -> None:  # type: ignore[type-arg]
    recording = conversations["made_3_clean"]
    sound = load_audio(recording.path)
    live = LiveDiarizer(diarizer)
    voices: dict[str, np.ndarray] = {}  # type: ignore[type-arg]
    for first in range(0, len(sound), 3 * RATE):
        now = live.push(sound[first : first + 3 * RATE])
        heard = min(len(sound), first + 3 * RATE) / RATE
        assert all(turn.end <= heard + 1e-6 for turn in now.turns)
        if heard > 13 and any(turn.end > heard - 6 for turn in recording.turns if turn.start < heard - 6):
            assert now.turns
        for name, embedding in now.embeddings.items():
            if name in voices:
                assert float(voices[name] @ embedding) > 0.5, f"{name} is somebody else now"
            voices[name] = embedding
    found = live.finish()
    assert len(found.speakers) == 3
    assert diarization_error_rate(recording.turns, found.turns, 0.25).rate < 0.05


def test_channels(diarizer: Diarizer, shared: Path) -> None:
    files = sorted((shared / "audio" / "librispeech").glob("*.flac"))
    left, right = load_audio(files[0])[: 4 * RATE], load_audio(files[-1])[: 4 * RATE]
    stereo = np.zeros((9 * RATE, 2), np.float32)
    stereo[: len(left), 0], stereo[5 * RATE : 5 * RATE + len(right), 1] = left, right
    found = diarizer.diarize(stereo, channels=True)
    assert found.speakers == ("SPEAKER_00", "SPEAKER_01")
    assert all((turn.end < 4.6) == (turn.speaker == "SPEAKER_00") for turn in found.turns)


def test_known_voices(diarizer: Diarizer, shared: Path) -> None:
    """A profile of one utterance finds the speaker in others, and names no stranger."""
    files = sorted((shared / "audio" / "librispeech").glob("*.flac"))
    by_speaker: dict[str, list[Path]] = {}
    for path in files:
        by_speaker.setdefault(path.name.split("-")[0], []).append(path)
    known = [Voice(name, diarizer.embed_voice(paths[0])) for name, paths in by_speaker.items()]
    found, named_wrong = 0, 0
    for voice in known:
        for path in by_speaker[voice.name][1:3]:
            heard = diarizer.embed_voice(path)[None]
            found += recognize(heard, [voice]).get(0) == voice.name
            others = [other for other in known if other.name != voice.name]
            named_wrong += len(recognize(heard, others))
    assert found >= 9  # of 10
    assert named_wrong == 0  # of 40
    named = diarizer.run(by_speaker[known[0].name][3], SpeakerCount(), [known[0]])
    assert named.speakers == (known[0].name,)


def test_several_people_are_no_voice(diarizer: Diarizer, conversations: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(InvalidSettingError, match="2 people speak"):
        diarizer.embed_voice(conversations["made_2_clean"].path)
    with pytest.raises(InvalidSettingError, match="too little speech"):
        diarizer.embed_voice(np.zeros(RATE, np.float32))


def test_two_sounds_at_once(diarizer: Diarizer, conversations: dict) -> None:  # type: ignore[type-arg]
    names = ("sample", "made_1_0")
    expected = {name: diarizer.diarize(conversations[name].path) for name in names}
    found = {}
    threads = [
        threading.Thread(target=lambda name=name: found.update({name: diarizer.diarize(conversations[name].path)}))
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: one.speakers for name, one in found.items()} == {name: one.speakers for name, one in expected.items()}
