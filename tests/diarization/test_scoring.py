"""The error rate, RTTM and UEM, and the pairing beneath."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.diarization import Turn, diarization_error_rate, format_rttm, read_rttm
from edgellm.diarization.assignment import best_pairs
from edgellm.diarization.rttm import read_uem
from edgellm.errors import CorruptFileError, InvalidSettingError

_TURNS = st.lists(
    st.builds(
        lambda start, length, speaker: Turn(start / 100, (start + length) / 100, f"s{speaker}"),
        st.integers(0, 3000), st.integers(1, 400), st.integers(0, 4),
    ),
    max_size=14,
)  # fmt: skip


@settings(deadline=None)
@given(rows=st.integers(1, 5), columns=st.integers(1, 5), seed=st.integers(0, 10_000), whole=st.booleans())
def test_pairs_are_the_best_of_all(rows: int, columns: int, seed: int, whole: bool) -> None:
    gains = np.random.default_rng(seed).uniform(-1, 5, (rows, columns))
    gains = np.round(gains) if whole else gains  # with ties
    found = best_pairs(gains)
    small, large = (gains, columns) if rows <= columns else (gains.T, rows)
    best = max(sum(small[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(large), len(small)))
    assert len(found) == len({row for row, _ in found}) == len({column for _, column in found}) == min(rows, columns)
    assert sum(gains[pair] for pair in found) == pytest.approx(best)


def test_known_rate() -> None:
    reference = [Turn(0, 10, "a"), Turn(10, 20, "b"), Turn(18, 20, "a")]
    hypothesis = [Turn(0, 9, "x"), Turn(9, 21, "y")]
    rate = diarization_error_rate(reference, hypothesis, collar=0)
    assert rate.total == pytest.approx(22)
    assert rate.missed == pytest.approx(2)  # the overlap
    assert rate.false_alarm == pytest.approx(1)
    assert rate.confusion == pytest.approx(1)
    assert rate.rate == pytest.approx(4 / 22)
    skipping = diarization_error_rate(reference, hypothesis, collar=0, skip_overlap=True)
    assert (skipping.total, skipping.missed) == (pytest.approx(18), 0)
    within = diarization_error_rate(reference, hypothesis, collar=0, scored=[(0, 9)])
    assert (within.total, within.rate) == (9, 0)


def test_nothing_against_nothing() -> None:
    assert diarization_error_rate([], []).rate == 0
    assert diarization_error_rate([], [Turn(0, 1, "x")]).rate == 1
    assert diarization_error_rate([Turn(0, 4, "a")], []).rate == 1
    with pytest.raises(InvalidSettingError, match="collar"):
        diarization_error_rate([], [], collar=-1)


@settings(deadline=None, max_examples=60)
@given(turns=_TURNS, collar=st.sampled_from([0, 0.1, 0.25]))
def test_the_truth_has_no_errors(turns: list[Turn], collar: float) -> None:
    renamed = [Turn(turn.start, turn.end, f"other-{turn.speaker}") for turn in turns]
    rate = diarization_error_rate(turns, renamed, collar)
    assert rate.missed + rate.false_alarm + rate.confusion == pytest.approx(0, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(reference=_TURNS, hypothesis=_TURNS, collar=st.sampled_from([0, 0.25]), skip=st.booleans())
def test_same_as_pyannote(reference: list[Turn], hypothesis: list[Turn], collar: float, skip: bool) -> None:
    """A development test: pyannote.metrics is not installed with the others."""
    core = pytest.importorskip("pyannote.core", reason="pyannote.metrics is not installed")
    metrics = pytest.importorskip("pyannote.metrics.diarization", reason="pyannote.metrics is not installed")

    def annotation(turns: list[Turn]) -> object:
        made = core.Annotation()
        for number, turn in enumerate(turns):
            made[core.Segment(turn.start, turn.end), number] = turn.speaker
        return made.support()

    def merged(made: object) -> list[Turn]:
        return [Turn(part.start, part.end, label) for part, _, label in made.itertracks(yield_label=True)]  # type: ignore[attr-defined]

    truth, guess = annotation(reference), annotation(hypothesis)
    theirs = metrics.DiarizationErrorRate(collar=2 * collar, skip_overlap=skip)(truth, guess, detailed=True)
    ours = diarization_error_rate(merged(truth), merged(guess), collar, skip)
    assert ours.total == pytest.approx(theirs["total"], abs=1e-6)
    assert ours.missed == pytest.approx(theirs["missed detection"], abs=1e-6)
    assert ours.false_alarm == pytest.approx(theirs["false alarm"], abs=1e-6)
    assert ours.confusion == pytest.approx(theirs["confusion"], abs=1e-6)


def test_rttm_there_and_back(tmp_path: Path) -> None:
    turns = [Turn(0.5, 1.25, "SPEAKER_00"), Turn(1.0, 3.0, "Ann Lee")]
    path = tmp_path / "a.rttm"
    path.write_text(";; a comment\nSPKR-INFO x 1 <NA> <NA> <NA> unknown a <NA>\n" + format_rttm(turns, "my file"))
    assert read_rttm(path) == {"my_file": [Turn(0.5, 1.25, "SPEAKER_00"), Turn(1.0, 3.0, "Ann_Lee")]}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("SPEAKER a 1 0.5", "line 1: 4 fields"),
        ("SPEAKER a 1 x 1 <NA> <NA> s <NA> <NA>", "line 1: 'x' is not a time"),
        ("SPEAKER a 1 nan 1 <NA> <NA> s <NA> <NA>", "is not a time"),
        ("SPEAKER a 1 0 inf <NA> <NA> s <NA> <NA>", "is not a time"),
        ("SPEAKER a 1 -1 1 <NA> <NA> s <NA> <NA>", "is not a time"),
        ("hello, world", "line 1: 'hello,' begins no line of RTTM"),
    ],
)
def test_bad_rttm(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "bad.rttm"
    path.write_text(line)
    with pytest.raises(CorruptFileError, match=problem):
        read_rttm(path)


def test_not_a_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.rttm"
    path.write_bytes(b"RIFF\xff\xfe\x00")
    with pytest.raises(CorruptFileError, match="not a text file"):
        read_rttm(path)
    path.write_text("a 1 0")
    with pytest.raises(CorruptFileError, match="a UEM line has 4"):
        read_uem(path)


def test_command(tmp_path: Path) -> None:
    from edgellm.cli.der import der_command

    truth, guess, uem = tmp_path / "t.rttm", tmp_path / "g.rttm", tmp_path / "u.uem"
    truth.write_text(format_rttm([Turn(0, 10, "a")], "one") + format_rttm([Turn(0, 10, "a")], "two"))
    guess.write_text(format_rttm([Turn(0, 5, "x")], "one") + format_rttm([Turn(0, 10, "x")], "three"))
    uem.write_text("two 1 0 1\n")
    result = CliRunner().invoke(der_command, [str(truth), str(guess), "--collar", "0"])
    assert result.exit_code == 0, result.output
    assert "three is not in" in result.output
    assert result.output.splitlines()[-1].split()[:3] == ["TOTAL", "75.00%", "75.00%"]
    result = CliRunner().invoke(der_command, [str(truth), str(guess), "--collar", "0", "--uem", str(uem), "--json"])
    assert '"total": 11.0' in result.output
    truth.write_text("")
    result = CliRunner().invoke(der_command, [str(truth), str(guess)])
    assert "t.rttm holds no turns" in str(result.exception)
