"""Words and speakers together, channels, voices' profiles, pictures."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from edgellm.diarization import Diarization, Turn, Voices, assign_speakers, merge_channels
from edgellm.diarization.plot import Envelope, clock, plot, svg, ticks
from edgellm.diarization.voices import recognize
from edgellm.errors import CorruptFileError, EdgeLLMError, InvalidSettingError
from edgellm.speech.formats import render
from edgellm.speech.results import Segment, Transcript, Word


def _transcript(text: str, each: float = 0.5) -> Transcript:
    words = tuple(Word(number * each, (number + 1) * each, f" {word}", 1.0) for number, word in enumerate(text.split()))
    segment = Segment(0, 0.0, len(words) * each, "".join(word.text for word in words), (1, 2), words=words)
    return Transcript((segment,), "en", duration=segment.end)


def _diarization(*turns: tuple[float, float, str]) -> Diarization:
    made = tuple(Turn(*turn) for turn in turns)
    return Diarization(made, made, tuple(dict.fromkeys(turn.speaker for turn in made)), 60.0)


def _spoken(transcript: Transcript) -> list[tuple[str | None, str]]:
    return [(segment.speaker, segment.text.strip()) for segment in transcript.segments]


def test_segments_are_cut_where_the_speaker_changes() -> None:
    found = assign_speakers(_transcript("how are you? fine, thank you."), _diarization((0, 1.5, "A"), (1.5, 3, "B")))
    assert _spoken(found) == [("A", "how are you?"), ("B", "fine, thank you.")]
    assert [segment.id for segment in found.segments] == [0, 1]
    assert [(segment.start, segment.end) for segment in found.segments] == [(0.0, 1.5), (1.5, 3.0)]
    assert found.text == "how are you? fine, thank you."
    assert found.speakers == ("A", "B")
    assert "[B]: fine" in render(found, "srt")
    assert render(found, "rttm").splitlines()[1] == "SPEAKER audio 1 1.500 1.500 <NA> <NA> B <NA> <NA>"


def test_one_word_is_no_island() -> None:
    found = assign_speakers(
        _transcript("this is what we want to say here"), _diarization((0, 2, "A"), (2, 2.5, "B"), (2.5, 4, "A"))
    )
    assert {word.speaker for word in found.words} == {"A"}


def test_an_answer_of_one_word_stays() -> None:
    found = assign_speakers(
        _transcript("shall we go? yes. then let us go."), _diarization((0, 1.5, "A"), (1.5, 2, "B"), (2, 4, "A"))
    )
    assert _spoken(found) == [("A", "shall we go?"), ("B", "yes."), ("A", "then let us go.")]


def test_a_late_turn_does_not_cut_a_sentence() -> None:
    found = assign_speakers(
        _transcript("that is all. so let me tell you what happened"), _diarization((0, 2, "A"), (2, 6, "B"))
    )
    assert _spoken(found) == [("A", "that is all."), ("B", "so let me tell you what happened")]


def test_words_beside_all_turns_go_to_the_nearest() -> None:
    found = assign_speakers(_transcript("one two. three four.", 2.0), _diarization((1, 1.5, "A"), (6.5, 7, "B")))
    assert _spoken(found) == [("A", "one two."), ("B", "three four.")]


def test_nothing_to_join() -> None:
    transcript = _transcript("hello there")
    assert assign_speakers(transcript, _diarization()) == transcript
    empty = dataclasses.replace(transcript, segments=())
    assert assign_speakers(empty, _diarization((0, 1, "A"))) == empty


def test_segments_without_words() -> None:
    bare = dataclasses.replace(_transcript("a b c d"), segments=(Segment(0, 0, 2, " x"), Segment(1, 2, 4, " y")))
    found = assign_speakers(bare, _diarization((0, 1.9, "A"), (2.1, 4, "B")))
    assert _spoken(found) == [("A", "x"), ("B", "y")]


@given(
    words=st.lists(st.sampled_from(["a", "b.", "c?", "d"]), min_size=1, max_size=30),
    turns=st.lists(st.tuples(st.integers(1, 30), st.sampled_from("ABC")), min_size=1, max_size=10),
)
def test_no_word_is_lost(words: list[str], turns: list[tuple[int, str]]) -> None:
    made, time = [], 0.0
    for length, speaker in turns:
        made.append((time, time + length / 10, speaker))
        time += length / 10 + 0.05
    transcript = _transcript(" ".join(words), 0.3)
    found = assign_speakers(transcript, _diarization(*made))
    assert [(word.start, word.end, word.text) for word in found.words] == [
        (word.start, word.end, word.text) for word in transcript.words
    ]
    assert all(word.speaker is not None for word in found.words)
    assert all(segment.speaker == word.speaker for segment in found.segments for word in segment.words)


def test_channels_by_time() -> None:
    left, right = _transcript("left words"), _transcript("right")
    late = dataclasses.replace(right.segments[0], start=0.2, end=0.7)
    merged = merge_channels([left, dataclasses.replace(right, segments=(late,))], ["L", "R"])
    assert _spoken(merged) == [("L", "left words"), ("R", "right")]
    assert {word.speaker for word in merged.words} == {"L", "R"}


def test_profiles(tmp_path: Path) -> None:
    voices = Voices(tmp_path / "voices")
    assert voices.all() == []
    random = np.random.default_rng(0)
    first, second = (vector / np.linalg.norm(vector) for vector in random.standard_normal((2, 192)).astype(np.float32))
    path = voices.add("Ann Lee", first)
    voices.add("Zoë", second)
    assert set(json.loads(path.read_text())) == {"name", "model", "embedding"}
    known = voices.all()
    assert [voice.name for voice in known] == ["Ann Lee", "Zoë"]
    assert recognize(np.stack([second, -first]), known) == {0: "Zoë"}
    assert recognize(np.stack([first, first]), known[:1]).keys() <= {0, 1}
    assert len(recognize(np.stack([first, first]), known[:1])) == 1, "a name is given once"
    voices.remove("Ann Lee")
    with pytest.raises(InvalidSettingError, match="no voice called 'Ann Lee'; known: Zoë"):
        voices.remove("Ann Lee")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 80, "a\n", "-rf"])
def test_names_that_are_no_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidSettingError, match="cannot be the name"):
        Voices(tmp_path).add(name, np.ones(192, np.float32))


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"name": "x"}', '{"name": "x", "model": "other", "embedding": [1]}', "[" * 5000,
     '{"name": "x", "model": "CAM++ zh-en common advanced", "embedding": [' + ",".join(["0"] * 192) + "]}",
     '{"name": "x", "model": "CAM++ zh-en common advanced", "embedding": [' + ",".join(["NaN"] * 192) + "]}"],
)  # fmt: skip
def test_damaged_profiles(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(CorruptFileError, match=r"voice profile .*x\.json"):
        Voices(tmp_path).all()


def test_voices_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgellm.cli.voices import voices_command

    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    Voices().add("Ann", np.ones(192, np.float32))
    assert CliRunner().invoke(voices_command, ["list"]).output == "Ann\n"
    assert CliRunner().invoke(voices_command, ["rm", "Ann"]).output == "removed Ann\n"
    assert "no voices are known" in CliRunner().invoke(voices_command, ["list"]).output


def test_picture(tmp_path: Path) -> None:
    found = _diarization((0, 5, "A"), (4, 12, "<B & C>"))
    envelope = Envelope()
    for _ in range(7):
        envelope.push(np.random.default_rng(0).uniform(-1, 1, 12345).astype(np.float32))
    points = envelope.points(100)
    assert len(points) == 100
    root = xml.etree.ElementTree.fromstring(svg(found, points))
    assert len(root.findall("{*}rect")) == 1 + len(found.turns)
    assert [text.text for text in root.findall("{*}text")][:2] == ["A", "<B & C>"]
    assert len(root.findall("{*}polygon")) == 1
    plot(found, np.zeros(0, np.float32), tmp_path / "x.svg")
    with pytest.raises(InvalidSettingError, match=r"neither \.svg nor \.png"):
        plot(found, points, tmp_path / "x.jpg")
    try:
        plot(found, points, tmp_path / "x.png")
    except EdgeLLMError as error:
        assert "matplotlib" in str(error)
    else:
        assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.suffix for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_axis() -> None:
    assert [clock(time) for time in (0, 65, 3605)] == ["0:00", "1:05", "1:00:05"]
    for duration in (0.1, 7, 59, 600, 7200, 360_000):
        assert 1 <= len(ticks(duration)) <= 14
