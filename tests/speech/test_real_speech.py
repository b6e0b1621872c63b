"""The command line on real speech with tiny.en: files, pipes, live text, silence. No test asserts how long it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.audio import load_audio
from edgellm.errors import EdgeLLMError
from edgellm.speech.live import LIVE_VOICE_ACTIVITY, LiveTranscription
from edgellm.speech.packing import Piece, lay_out
from edgellm.speech.settings import TranscriptionSettings
from edgellm.speech.transcriber import Transcriber
from edgellm.speech.voice_activity import VoiceActivityModel, find_speech
from edgellm.tools.check_speech import no_speech
from edgellm.tools.speech_agreement import compare, read_texts
from edgellm.tools.speech_words import agreement, aligned, edits, split, word_errors

SPEECH = split(
    "And so, my fellow Americans, ask not what your country can do for you, ask what you can do for your country."
)
COMMAND = [sys.executable, "-c", "from edgellm.cli.main import main; main()"]


@pytest.fixture(scope="module")
def transcriber(tiny_en_path: Path, silero_vad_path: Path) -> Iterator[Transcriber]:
    with Transcriber.load(tiny_en_path) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def jfk(shared: Path) -> np.ndarray:
    return load_audio(shared / "audio" / "jfk.flac")


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["And so my", "Well then,"])
def test_a_prefix_begins_the_text(transcriber: Transcriber, jfk: np.ndarray, prefix: str) -> None:
    for settings in (TranscriptionSettings(prefix=prefix), TranscriptionSettings(prefix=prefix, word_timestamps=True)):
        transcript = transcriber.transcribe(jfk, settings)
        assert transcript.text.strip().startswith(prefix)
        assert split(transcript.text)[-3:] == ["for", "your", "country"]
    assert "".join(word.text for word in transcript.words).strip() == transcript.text.strip()


@pytest.mark.slow
def test_files_on_the_command_line(
    tiny_en_path: Path, silero_vad_path: Path, shared: Path, tmp_path: Path, jfk: np.ndarray
) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFFxxxx")
    sound = shared / "audio" / "jfk.flac"
    options = ["--model", str(tiny_en_path), "--format", "srt,json", "-o", str(tmp_path), "--word-timestamps"]
    result = subprocess.run([*COMMAND, "transcribe", bad, sound, *options], capture_output=True, text=True)
    assert result.returncode == 1
    assert "bad.wav" in result.stderr
    assert word_errors(SPEECH, split(result.stdout)) == 0
    shape = json.loads((tmp_path / "jfk.json").read_text())
    assert (split(shape["text"]), shape["language"], shape["duration"]) == (SPEECH, "en", 11.0)
    assert "".join(word["word"] for word in shape["words"]).strip() == shape["text"]
    times = [time for word in shape["words"] for time in (word["start"], word["end"])]
    assert times == sorted(times)
    spoken = find_speech(jfk, VoiceActivityModel(silero_vad_path))
    for word in shape["words"]:  # never in a silence that was cut out
        assert any(s.start_seconds - 1e-3 <= word["start"] <= word["end"] <= s.end_seconds + 1e-3 for s in spoken)
    assert (tmp_path / "jfk.srt").read_text().startswith("1\n00:00:00,")


@pytest.mark.slow
def test_live_text_agrees_with_what_was_said(transcriber: Transcriber, silero_vad_path: Path, jfk: np.ndarray) -> None:
    """A hypothesis every half second of sound, as on a machine that keeps up."""
    settings = TranscriptionSettings(language="en", beam_size=1, vad_parameters=LIVE_VOICE_ACTIVITY)
    live = LiveTranscription(transcriber, VoiceActivityModel(silero_vad_path), settings)
    updates = [news for first in range(0, len(jfk), 8000) for news in live.push(jfk[first : first + 8000])]
    updates += live.finish()
    firm = [word for update in updates if update.kind == "firm" for word in update.words]
    assert agreement(SPEECH, split("".join(word.text for word in firm))) >= 0.85
    times = [time for word in firm for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[-1] <= 11.1
    early = [update for update in updates[: len(updates) // 2] if update.kind == "firm"]
    assert early  # text is firm long before the end


@pytest.mark.slow
@pytest.mark.parametrize("language", [None, "en"])
def test_a_window_is_encoded_once(
    transcriber: Transcriber, jfk: np.ndarray, language: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not its language is asked for, and as well where it is transcribed for live text."""
    encoded: list[int] = []
    encode = transcriber.model.encode
    monkeypatch.setattr(transcriber.model, "encode", lambda frames, window: encoded.append(encode(frames, window)))
    monkeypatch.setattr(transcriber.model, "detect_language", lambda window: {"en": 0.75, "de": 0.25})
    settings = TranscriptionSettings(language=language, temperature=0.0)
    transcript = transcriber.transcribe(jfk, settings)
    assert (transcript.language, transcript.language_probability) == ("en", 0.75 if language is None else 1.0)
    assert len(encoded) == 1
    (window,) = lay_out([Piece(0, jfk)])
    said = transcriber.transcribe_window(window, settings)
    assert split("".join(segment.text for segment in said)) == SPEECH
    assert len(encoded) == 2


@pytest.mark.slow
def test_a_pipe(tiny_en_path: Path, silero_vad_path: Path, jfk: np.ndarray) -> None:
    content = (np.clip(jfk, -1, 1) * 32767).astype("<i2").tobytes()
    command = [*COMMAND, "listen", "--stdin-pcm", "--model", str(tiny_en_path)]
    result = subprocess.run(command, input=content, capture_output=True, check=True)
    assert agreement(SPEECH, split(result.stdout.decode())) >= 0.9


@pytest.mark.slow
def test_no_words_where_nobody_speaks(transcriber: Transcriber) -> None:
    transcript = transcriber.transcribe(no_speech(2))
    assert transcript.duration == pytest.approx(120)
    assert split(transcript.text) == []


def test_comparing_words() -> None:
    first, second = split("a b, c d e"), split("A x c f f")
    assert word_errors(first, second) == word_errors(second, first) == 3
    assert agreement(first, second) == pytest.approx(0.4)
    assert aligned(first, second) == [(0, 0), (2, 2)]
    assert (word_errors([], ["a"]), word_errors(["a"], []), aligned([], ["a"])) == (1, 1, [])


def test_texts_of_files_are_compared(tmp_path: Path) -> None:
    table, lines = tmp_path / "said.tsv", tmp_path / "said.jsonl"
    table.write_text("file\ttext\na.wav\tOne two, three\nb.wav\tfour\n")
    lines.write_text('{"file": "x/a.wav", "text": "one two three"}\n{"file": "b.wav", "text": "four"}\n')
    assert compare(read_texts(lines), read_texts(table)).edits == 0
    found = compare(read_texts(table), {"a.wav": "one too many three", "c.wav": "five"})
    assert (found.files, found.words, found.edits, found.places) == (1, 3, 2, (("a.wav", "two", "too many"),))
    table.write_text("name\twords\n1\t2\n")
    with pytest.raises(EdgeLLMError, match=r"said\.tsv"):
        read_texts(table)


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_places_that_differ_count_the_edits(first: list[str], second: list[str]) -> None:
    counted = sum(max(b - a, d - c) for a, b, c, d in edits(first, second))
    assert counted == word_errors(first, second)
