"""``edgellm transcribe``: text on the screen, files beside it, settings as flags, bad files named and left out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result
from fake_transcriber import FakeTranscriber

from edgellm.cli import loading
from edgellm.cli.console import clock
from edgellm.cli.main import edgellm
from edgellm.cli.options import ModelOptions
from edgellm.cli.speech_options import explained
from edgellm.speech.formats import FORMATS, LineShape
from edgellm.speech.settings import TranscriptionSettings
from edgellm.speech.voice_activity import VoiceActivitySettings

Transcribe = Callable[..., Result]


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sound of two seconds, and the folder it lies in as the current one."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    monkeypatch.chdir(folder)
    soundfile.write("talk.wav", np.zeros(32_000), 16_000)
    return folder


@pytest.fixture
def transcribe(monkeypatch: pytest.MonkeyPatch) -> Transcribe:
    def run(*arguments: str, fake: FakeTranscriber | None = None) -> Result:
        loaded: list[tuple[ModelOptions, bool]] = []

        def open_transcriber(options: ModelOptions, voice_activity: bool) -> FakeTranscriber:
            loaded.append((options, voice_activity))
            return fake or FakeTranscriber("Hello there.", "Good bye.")

        monkeypatch.setattr(loading, "open_transcriber", open_transcriber)
        result = CliRunner().invoke(edgellm, ["transcribe", *arguments], catch_exceptions=False)
        result.loaded = loaded  # type: ignore[attr-defined]
        return result

    return run


def test_text_on_the_screen(talk: Path, transcribe: Transcribe) -> None:
    result = transcribe("talk.wav")
    assert (result.exit_code, result.stdout) == (0, "Hello there.\nGood bye.\n")
    assert "talk.wav: 2.0 s in" in result.stderr
    assert "times real time" in result.stderr
    assert [path.name for path in talk.iterdir()] == ["talk.wav"]
    assert result.loaded == [(ModelOptions("tiny.en"), True)]


def test_times_on_the_screen(talk: Path, transcribe: Transcribe) -> None:
    result = transcribe("talk.wav", "--timestamps")
    assert result.stdout.splitlines()[1] == "[00:01.000 --> 00:02.000] Good bye."


def test_quiet(talk: Path, transcribe: Transcribe) -> None:
    result = transcribe("talk.wav", "-q", "--format", "txt")
    assert (result.stdout, result.stderr) == ("", "")
    assert (talk / "talk.txt").read_text() == "Hello there.\nGood bye.\n"


def test_every_format_named_after_the_sound(talk: Path, transcribe: Transcribe) -> None:
    result = transcribe("talk.wav", "--format", "all", "--output-dir", "out/deep")
    assert result.exit_code == 0
    assert {path.name for path in (talk / "out" / "deep").iterdir()} == {f"talk.{name}" for name in FORMATS}
    assert json.loads((talk / "out/deep/talk.json").read_text())["text"] == "Hello there. Good bye."


def test_several_files_with_a_bad_one_among_them(talk: Path, transcribe: Transcribe) -> None:
    soundfile.write("second.flac", np.zeros(16_000), 16_000)
    Path("bad.mp3").write_bytes(b"not a sound at all")
    result = transcribe("talk.wav", "bad.mp3", "gone.wav", "second.flac", "--format", "srt,json")
    assert result.exit_code == 1
    assert "error: bad.mp3 is not a sound file that can be read" in result.stderr
    assert "error: there is no file gone.wav" in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error:")]) == 2
    written = {path.name for path in talk.iterdir() if path.suffix in (".srt", ".json")}
    assert written == {"talk.srt", "talk.json", "second.srt", "second.json"}


def test_an_output_that_cannot_be_written_is_named(talk: Path, transcribe: Transcribe) -> None:
    (talk / "talk.srt").mkdir()
    result = transcribe("talk.wav", "--format", "srt")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "talk.srt" in result.stderr


def test_sounds_of_the_same_name(talk: Path, transcribe: Transcribe) -> None:
    soundfile.write("talk.flac", np.zeros(16_000), 16_000)
    assert transcribe("talk.wav", "talk.flac", "--format", "txt").exit_code == 0
    assert {path.name for path in talk.glob("*.txt")} == {"talk.wav.txt", "talk.flac.txt"}
    (talk / "a").mkdir()
    soundfile.write("a/talk.wav", np.zeros(16_000), 16_000)
    result = transcribe("talk.wav", "a/talk.wav", "--format", "txt")
    assert result.exit_code == 2
    assert "talk.wav and a/talk.wav would both be written to talk.wav.txt" in result.stderr


def test_a_sound_is_never_overwritten(talk: Path, transcribe: Transcribe) -> None:
    (talk / "talk.wav").rename(talk / "talk.txt")
    result = transcribe("talk.txt", "--format", "txt")
    assert result.exit_code == 2
    assert "talk.txt is one of the sounds" in result.stderr


@pytest.mark.parametrize("given", ["docx", "srt,docx"])
def test_unknown_format(talk: Path, transcribe: Transcribe, given: str) -> None:
    result = transcribe("talk.wav", "--format", given)
    assert (result.exit_code, "'docx' is none of txt, srt" in result.stderr) == (2, True)


def test_settings_are_flags_under_either_spelling(talk: Path, transcribe: Transcribe) -> None:
    fake = FakeTranscriber("x")
    transcribe(
        "talk.wav", "--beam_size", "1", "--language", "de", "--no-vad-filter", "--clip-timestamps", "0,1.5",
        "--length-penalty", "none", "--suppress_tokens", "-1,50", "--no-condition-on-previous-text", "--task",
        "translate", "--vad-threshold", "0.3", "--vad-min-silence-duration-ms", "100", "--threads", "2", fake=fake,
    )  # fmt: skip
    assert fake.settings == [
        TranscriptionSettings(
            beam_size=1, language="de", vad_filter=False, clip_timestamps=(0.0, 1.5), length_penalty=None,
            suppress_tokens=(-1, 50), condition_on_previous_text=False, task="translate",
            vad_parameters=VoiceActivitySettings(threshold=0.3, min_silence_duration_ms=100),
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        (["--temperature", "0.5"], (0.5, 0.7, 0.9)),
        (["--temperature", "0", "--temperature_increment_on_fallback", "0.5"], (0.0, 0.5, 1.0)),
        (["--temperature", "0", "--temperature-increment-on-fallback", "none"], (0.0,)),
        (["--temperature", "0,0.7"], (0.0, 0.7)),
    ],
)
def test_temperatures(talk: Path, transcribe: Transcribe, arguments: list[str], expected: tuple[float, ...]) -> None:
    fake = FakeTranscriber("x")
    transcribe("talk.wav", *arguments, fake=fake)
    assert fake.settings[0].temperature == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--beam-size", "many"], "'many' is not of the form integer"),
        (["--beam-size", "0"], "beam_size is 0"),
        (["--language", "klingonish"], "language 'klingonish' is not known"),
        (["--vad-threshold", "3"], "threshold is a probability"),
        (["--max-line-width", "0"], "max_line_width is at least 1"),
        (["--temperature-increment-on-fallback", "-1", "--temperature", "0"], "temperature_increment_on_fallback is"),
        (["--temperature", "nan"], "temperature is (nan,)"),
        (["--temperature", "inf"], "temperature is (inf,)"),
        (["--seed", "-1"], "seed is -1; use a whole number from 0 on"),
    ],
)
def test_settings_out_of_range(talk: Path, transcribe: Transcribe, arguments: list[str], message: str) -> None:
    result = transcribe("talk.wav", *arguments)
    assert result.exit_code in (1, 2)
    assert message in result.stderr


def test_shaping_lines_asks_for_words(talk: Path, transcribe: Transcribe) -> None:
    fake = FakeTranscriber("one two three four")
    transcribe("talk.wav", "--format", "srt", "--max_line_width", "8", fake=fake)
    assert fake.settings[0].word_timestamps
    assert (talk / "talk.srt").read_text().splitlines()[2:4] == ["one two", "three"]


def test_every_setting_is_explained() -> None:
    for kind in (TranscriptionSettings, VoiceActivitySettings, LineShape):
        names = {field.name for field in dataclasses.fields(kind)}
        meanings = explained(kind)
        assert names == set(meanings)
        assert all(meaning.endswith(".") for meaning in meanings.values())


def test_no_speech(talk: Path, transcribe: Transcribe) -> None:
    result = transcribe("talk.wav", "--format", "srt", fake=FakeTranscriber())
    assert (result.exit_code, result.stdout) == (0, "")
    assert "talk.wav: no speech; 2.0 s in" in result.stderr
    assert (talk / "talk.srt").read_text() == ""


def test_no_control_characters_reach_the_terminal(talk: Path, transcribe: Transcribe) -> None:
    assert transcribe("talk.wav", fake=FakeTranscriber("a \x1b[31mb\x07 c")).stdout == "a [31mb c\n"


@pytest.mark.parametrize(("seconds", "expected"), [(0, "0:00"), (61.4, "1:01"), (36_000, "10:00:00"), (-1, "0:00")])
def test_clock(seconds: float, expected: str) -> None:
    assert clock(seconds) == expected


def test_a_folder_that_cannot_be_made_fails_at_once(talk: Path, transcribe: Transcribe) -> None:
    Path("file").write_text("")
    result = transcribe("talk.wav", "--format", "srt", "--output-dir", "file/out")
    assert result.exit_code == 1
    assert result.loaded == []  # type: ignore[attr-defined]
    assert "file/out cannot be made" in result.stderr
