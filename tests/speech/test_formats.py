"""Transcripts as text; where OpenAI's Whisper has the format, what is expected is what it writes."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from edgellm.errors import InvalidSettingError
from edgellm.speech.formats import FORMATS, LineShape, cues, render, write_transcript
from edgellm.speech.formats.subtitles import timestamp
from edgellm.speech.results import Segment, Transcript, TranscriptionTimings, Word


def words(*items: tuple[str, float, float]) -> tuple[Word, ...]:
    return tuple(Word(start, end, text, 0.5) for text, start, end in items)


FIRST = Segment(
    0, 0.0, 2.5, " And so, my fellow", (50363, 843, 523, 50488), 0.0, -0.25, 1.375, 0.0625,
    words((" And", 0.1, 0.5), (" so,", 0.5, 0.9), (" my", 1.0, 1.25), (" fellow", 1.25, 2.4)), 0,
)  # fmt: skip
SECOND = Segment(
    1, 3.0, 3661.5, " Americans\task & <not>", (50488,), 0.2, -0.5, 1.0, 0.0, words((" Americans", 3.0, 3.9),
    ("\task", 3.9, 4.0), (" &", 7.5, 8.0), (" <not>", 8.0, 3661.5)), 300,
)  # fmt: skip
TALK = Transcript((FIRST, SECOND), "en", 0.975, 3700.125, model="tiny.en")
WITHOUT_WORDS = replace(TALK, segments=(replace(FIRST, words=()), replace(SECOND, words=())))
SPOKEN = replace(TALK, segments=(replace(FIRST, speaker="SPEAKER_00"), replace(SECOND, speaker="SPEAKER_01")))


def test_txt() -> None:
    assert render(TALK, "txt") == "And so, my fellow\nAmericans\task & <not>\n"
    assert render(SPOKEN, "txt").splitlines()[0] == "[SPEAKER_00]: And so, my fellow"


def test_srt() -> None:
    assert render(WITHOUT_WORDS, "srt") == (
        "1\n00:00:00,000 --> 00:00:02,500\nAnd so, my fellow\n\n"
        "2\n00:00:03,000 --> 01:01:01,500\nAmericans\task & <not>\n\n"
    )
    assert render(TALK, "srt").splitlines()[1] == "00:00:00,100 --> 00:00:02,400"
    assert render(SPOKEN, "srt").splitlines()[2] == "[SPEAKER_00]: And so, my fellow"


def test_vtt() -> None:
    assert render(WITHOUT_WORDS, "vtt") == (
        "WEBVTT\n\n00:00.000 --> 00:02.500\nAnd so, my fellow\n\n"
        "00:03.000 --> 01:01:01.500\nAmericans\task &amp; &lt;not&gt;\n\n"
    )
    assert "\n<v SPEAKER_01>Americans" in render(SPOKEN, "vtt")


def test_tsv_and_csv() -> None:
    assert render(TALK, "tsv") == (
        "start\tend\ttext\n0\t2500\tAnd so, my fellow\n3000\t3661500\tAmericans ask & <not>\n"
    )
    assert list(csv.reader(io.StringIO(render(TALK, "csv")))) == [
        ["start", "end", "text"],
        ["0", "2500", "And so, my fellow"],
        ["3000", "3661500", "Americans\task & <not>"],
    ]
    assert render(SPOKEN, "csv").splitlines()[:2] == ["start,end,speaker,text", '0,2500,SPEAKER_00,"And so, my fellow"']


def test_lrc() -> None:
    assert render(WITHOUT_WORDS, "lrc") == "[00:00.00]And so, my fellow\n[00:03.00]Americans\task & <not>\n"
    late = replace(TALK, segments=(Segment(0, 6000.999, 6001, " x"),))
    assert render(late, "lrc") == "[100:01.00]x\n"


def test_json_has_all_of_the_verbose_shape() -> None:
    shape = json.loads(render(SPOKEN, "json"))
    assert shape | {"segments": 0, "words": 0} == {
        "task": "transcribe",
        "language": "en",
        "language_probability": 0.975,
        "duration": 3700.125,
        "model": "tiny.en",
        "text": "And so, my fellow Americans\task & <not>",
        "segments": 0,
        "words": 0,
    }
    first = shape["segments"][0]
    assert first | {"words": 0} == {
        "id": 0,
        "seek": 0,
        "start": 0.0,
        "end": 2.5,
        "text": " And so, my fellow",
        "tokens": [50363, 843, 523, 50488],
        "temperature": 0.0,
        "avg_logprob": -0.25,
        "compression_ratio": 1.375,
        "no_speech_prob": 0.0625,
        "speaker": "SPEAKER_00",
        "words": 0,
    }
    assert first["words"][1] == {"word": " so,", "start": 0.5, "end": 0.9, "probability": 0.5}
    assert shape["words"][4] == {"word": " Americans", "start": 3.0, "end": 3.9}
    assert "words" not in json.loads(render(WITHOUT_WORDS, "json"))
    improbable = replace(TALK, segments=(replace(FIRST, average_log_probability=float("-inf")),))
    assert json.loads(render(improbable, "json"))["segments"][0]["avg_logprob"] is None


def lines_of(transcript: Transcript, **shape: int | bool) -> list[str]:
    return [cue.text for cue in cues(transcript, LineShape(**shape))]  # type: ignore[arg-type]


def test_line_width_breaks_lines_within_segments() -> None:
    assert lines_of(TALK, max_line_width=8) == ["And so,\nmy\nfellow", "Americans\nask &\n<not>"]


def test_line_width_and_count_lay_words_anew() -> None:
    """Subtitles follow the lines; a pause over 3 s begins a new one."""
    assert lines_of(TALK, max_line_width=40, max_line_count=1) == ["And so, my fellow Americans\task", "& <not>"]
    assert lines_of(TALK, max_line_width=10, max_line_count=2) == ["And so, my\nfellow", "Americans\nask", "& <not>"]


def test_line_count_alone_changes_nothing() -> None:
    assert lines_of(TALK, max_line_count=1) == lines_of(TALK)


def test_words_per_line_cuts_segments() -> None:
    assert lines_of(TALK, max_words_per_line=3) == ["And so, my", "fellow", "Americans\task &", "<not>"]
    assert lines_of(TALK, max_words_per_line=1, max_line_width=40, max_line_count=1) == lines_of(
        TALK, max_line_width=40, max_line_count=1
    )


def test_highlighted_words() -> None:
    short = replace(TALK, segments=(replace(FIRST, words=FIRST.words[1:3]),))
    assert render(short, "srt", LineShape(highlight_words=True)) == (
        "1\n00:00:00,500 --> 00:00:00,900\n<u>so,</u> my\n\n"
        "2\n00:00:00,900 --> 00:00:01,000\nso, my\n\n"
        "3\n00:00:01,000 --> 00:00:01,250\nso, <u>my</u>\n\n"
    )
    assert "<u>Americans</u>\task &amp; &lt;not&gt;" in render(TALK, "vtt", LineShape(highlight_words=True))


def test_speakers_never_share_a_subtitle() -> None:
    changing = replace(FIRST, words=tuple(replace(w, speaker=f"S{i // 2}") for i, w in enumerate(FIRST.words)))
    talk = replace(TALK, segments=(changing,))
    for shape in (LineShape(), LineShape(max_line_width=99, max_line_count=9)):
        assert [(cue.speaker, cue.text) for cue in cues(talk, shape)] == [("S0", "And so,"), ("S1", "my fellow")]
    assert talk.speakers == ("S0", "S1")


def test_a_segment_without_words_among_others() -> None:
    talk = replace(TALK, segments=(FIRST, replace(SECOND, words=()), Segment(2, 9, 9, " ")))
    assert lines_of(talk) == ["And so, my fellow", "Americans\task & <not>"]


def test_text_that_would_break_a_format() -> None:
    nasty = Transcript((Segment(0, -1.0, 1.0, " a\n\n2\n00:00 --> 00:09\r\nb"),), "en")
    for name in ("srt", "vtt"):
        assert len(re.findall("-->", render(nasty, name))) == 1
        assert render(nasty, name).count("\n\n") == 1 + (name == "vtt")
    assert len(render(nasty, "tsv").splitlines()) == len(render(nasty, "lrc").splitlines()) + 1 == 2
    assert render(nasty, "srt").splitlines()[1] == "00:00:00,000 --> 00:00:01,000"


def test_shapes_need_words() -> None:
    with pytest.raises(InvalidSettingError, match="needs the times of words; ask for --word-timestamps"):
        render(WITHOUT_WORDS, "srt", LineShape(max_line_width=20))
    with pytest.raises(InvalidSettingError, match="max_line_width is at least 1"):
        LineShape(max_line_width=0)


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_said(name: str) -> None:
    nothing = Transcript((), "en", duration=2.0)
    expected = {"vtt": "WEBVTT\n\n", "tsv": "start\tend\ttext\n", "csv": "start,end,text\n"}
    if name == "json":
        assert json.loads(render(nothing, name))["segments"] == []
    else:
        assert render(nothing, name, LineShape(max_line_width=9)) == expected.get(name, "")


def test_lines_hold_every_word_once_and_no_line_is_too_wide() -> None:
    rng = random.Random(0)
    for _ in range(300):
        time, segments = 0.0, []
        for number in range(rng.randint(1, 4)):
            items = []
            for _ in range(rng.randint(1, 10)):
                time += rng.choice([0.0, 0.2, 4.0])
                items.append((" " + "x" * rng.randint(1, 9), time, time + 0.2))
                time += 0.2
            segments.append(Segment(number, items[0][1], time, "".join(i[0] for i in items), words=words(*items)))
        talk = Transcript(tuple(segments), "en")
        shape = LineShape(
            rng.choice([None, 5, 12, 30]), rng.choice([None, 1, 2]), rng.choice([None, 1, 4]), rng.random() < 0.2
        )
        found = list(cues(talk, shape))
        if not shape.highlight_words:
            assert " ".join(cue.text for cue in found).split() == talk.text.split()
        assert all(a.start <= b.start for a, b in zip(found, found[1:]))  # noqa: B905, RUF007
        for cue in found:
            lines = cue.text.split("\n")
            assert all(len(line) <= (shape.max_line_width or 1000) or " " not in line for line in lines)
            if shape.max_line_width and shape.max_line_count:
                assert len(lines) <= shape.max_line_count


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "00:00:00,000"), (-3, "00:00:00,000"), (59.9996, "00:01:00,000"), (359_999.9994, "99:59:59,999")],
)
def test_timestamps(seconds: float, expected: str) -> None:
    assert timestamp(seconds, ",", hours=True) == expected


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "talk.srt"
    TALK.write(path)
    assert path.read_text() == render(TALK, "srt")
    broken = replace(TALK, segments=(replace(FIRST, text=" \ud800"), *TALK.segments))
    with pytest.raises(UnicodeEncodeError):
        write_transcript(broken, path, "txt")
    assert path.read_text() == render(TALK, "srt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["talk.srt"]
    with pytest.raises(InvalidSettingError, match="there is no format 'docx'; choose of txt, srt"):
        TALK.write(tmp_path / "talk.docx")


def test_timings() -> None:
    assert TranscriptionTimings(total=2.0).times_real_time(30.0) == 15.0
    assert TranscriptionTimings().times_real_time(30.0) == 0.0
