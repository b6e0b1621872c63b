"""``edgellm listen``: samples from a pipe become text, for people or as JSON lines."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner, Result
from spoken_codes import CodeTranscriber, LoudIsSpeech, utter

from edgellm.cli import listen, loading
from edgellm.cli.main import edgellm
from edgellm.speech import voice_activity
from edgellm.speech.live import LiveUpdate
from edgellm.speech.results import Word


class Recognizer(CodeTranscriber):
    def __enter__(self) -> Recognizer:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture
def recognizer(monkeypatch: pytest.MonkeyPatch) -> Recognizer:
    fake = Recognizer()
    monkeypatch.setattr(loading, "open_transcriber", lambda options, voice_activity: fake)
    monkeypatch.setattr(voice_activity.VoiceActivityModel, "load", lambda: LoudIsSpeech())
    return fake


def run(sound: np.ndarray, *arguments: str) -> Result:
    content = (sound * 32767).astype("<i2").tobytes()
    return CliRunner().invoke(edgellm, ["listen", "--stdin-pcm", *arguments], input=content, catch_exceptions=False)


def test_firm_text_a_line_for_each_utterance(recognizer: Recognizer) -> None:
    result = run(np.concatenate([utter(range(5)), utter(range(10, 13))]))
    assert (result.exit_code, result.stdout) == (0, "w0 w1 w2 w3 w4\nw10 w11 w12\n")
    assert "s after being spoken (median)" in result.stderr


def test_json_lines(recognizer: Recognizer) -> None:
    result = run(utter(range(4)), "--json")
    news = [json.loads(line) for line in result.stdout.splitlines()]
    firm = [item for item in news if item["type"] == "firm"]
    assert " ".join(item["text"].strip() for item in firm) == "w0 w1 w2 w3"
    assert news[-1] == {"type": "end"}
    word = firm[0]["words"][0]
    assert set(word) == {"word", "start", "end", "probability", "delay"}
    assert firm[0]["start"] == word["start"] == pytest.approx(0, abs=0.01)


def test_another_rate(recognizer: Recognizer) -> None:
    assert "w0 w1 w2 w3" in run(np.repeat(utter(range(4)), 3), "--rate", "48000").stdout


def test_settings_reach_the_transcriber(recognizer: Recognizer) -> None:
    run(utter(range(4)), "--language", "en", "--initial-prompt", "codes", "--vad-threshold", "0.7")
    given = recognizer.settings[-1]
    assert (given.language, given.initial_prompt, given.beam_size) == ("en", "codes", 5)
    assert given.vad_parameters.threshold == 0.7
    assert given.vad_parameters.min_silence_duration_ms == 500


def test_nothing_in_the_pipe(recognizer: Recognizer) -> None:
    result = run(np.zeros(0))
    assert (result.exit_code, result.stdout) == (0, "")


def test_no_standard_input() -> None:
    """Python then has none at all."""
    program = "import sys; sys.stdin = None; from edgellm.cli.main import main; main()"
    result = subprocess.run([sys.executable, "-c", program, "listen", "--stdin-pcm"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "standard input is closed" in result.stderr


def test_bad_settings(recognizer: Recognizer) -> None:
    assert "expected 1000 to 1000000" in run(np.zeros(0), "--rate", "3").stderr
    assert "step is 99" in run(np.zeros(0), "--step", "99").stderr


def test_without_the_package_for_microphones(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    result = CliRunner().invoke(edgellm, ["listen"])
    assert result.exit_code == 1
    assert "the microphone needs the package sounddevice and PortAudio" in result.stderr
    assert "pip install 'edgellm[mic]'" in result.stderr


SAID = (
    LiveUpdate("firm", (Word(0, 1, " Hello", 1, "Ann"),), (1.0,)),
    LiveUpdate("firm", (Word(1, 2, " you.", 1, "Ann"),), (1.0,)),
    LiveUpdate("firm", (Word(2, 3, " Hi!", 1, "SPEAKER_00"),), (1.0,)),
    LiveUpdate("end"),
    LiveUpdate("firm", (Word(4, 5, " Well", 1, "SPEAKER_00"),), (1.0,)),
)


def test_speakers_in_lines_and_objects(capsys: pytest.CaptureFixture[str]) -> None:
    with listen.PlainView() as view:
        for update in SAID:
            view.show(update)
    assert capsys.readouterr().out == "[Ann]: Hello you.\n[SPEAKER_00]: Hi!\n[SPEAKER_00]: Well\n"
    shown = listen.update_object(SAID[0])
    assert (shown["speaker"], shown["words"][0]["speaker"]) == ("Ann", "Ann")


def test_speakers_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    view = listen.TerminalView()
    for update in SAID[:2]:
        view.show(update)
    assert view._picture().plain.startswith("[Ann]: Hello you.")
    view.show(SAID[2])
    assert view._picture().plain.startswith("[SPEAKER_00]: Hi!")


def test_flags_of_speakers(recognizer: Recognizer) -> None:
    assert "without --diarize" in run(np.zeros(0), "--speakers", "2").stderr
    assert "above max_speakers" in run(np.zeros(0), "--diarize", "--min-speakers", "3", "--max-speakers", "2").stderr


def test_the_picture_on_a_terminal() -> None:
    view = listen.TerminalView()
    view.show(LiveUpdate("firm", (Word(0, 1, " Hello", 1), Word(1, 2, " you\x1b[2J", 1)), (1.0, 2.0)))
    view.show(LiveUpdate("partial", (Word(2, 3, " there", 1),)))
    picture = view._picture()
    assert picture.plain == "Hello you[2J there  [1.5 s behind]"
    assert [(span.start, span.style) for span in picture.spans] == [(12, "dim"), (18, "dim")]
    view.show(LiveUpdate("end"))
    assert view._picture().plain == "  [1.5 s behind]"
