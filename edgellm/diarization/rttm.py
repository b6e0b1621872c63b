"""RTTM, the format in which speaker turns are exchanged (NIST Rich Transcription evaluations), and UEM.

A line of RTTM is ``SPEAKER file channel start duration <NA> <NA> speaker <NA> <NA>``; one of UEM is
``file channel start end``, a part of the file that is to be scored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from edgellm.diarization.results import Turn
from edgellm.errors import CorruptFileError
from edgellm.speech.formats.turns import rttm_line

_FIELDS = 9
_OTHER_KINDS = (
    "SEGMENT", "NOSCORE", "NO_RT_METADATA", "LEXEME", "NON-LEX", "NON-SPEECH", "FILLER", "EDIT", "IP", "SU", "CB",
    "A/P", "SPKR-INFO",
)  # fmt: skip
"""Lines of the evaluations that say nothing of turns."""
_MOST_BYTES = 1 << 30


def read_rttm(path: Path) -> dict[str, list[Turn]]:
    """The turns of each file that an RTTM file speaks of, in its order; other kinds of lines are passed over.

    Raises:
        CorruptFileError: a line is not of the format; says which.
    """
    found: dict[str, list[Turn]] = {}
    for number, line in enumerate(_lines(path), start=1):
        fields = line.split()
        if not fields or fields[0].startswith(";") or fields[0] in _OTHER_KINDS:
            continue
        if fields[0] != "SPEAKER":
            raise CorruptFileError(
                f"{path}, line {number}: {fields[0][:40]!r} begins no line of RTTM, expected SPEAKER"
            )
        if len(fields) < _FIELDS:
            raise CorruptFileError(f"{path}, line {number}: {len(fields)} fields, a SPEAKER line has {_FIELDS} or 10")
        start, duration = (_seconds(path, number, text) for text in fields[3:5])
        if duration > 0:
            found.setdefault(fields[1], []).append(Turn(start, start + duration, fields[7]))
        else:
            found.setdefault(fields[1], [])
    return found


def format_rttm(turns: Iterable[Turn], file: str) -> str:
    """RTTM lines, to the millisecond. Blanks in names, which the format does not allow, become underscores."""
    return "".join(
        rttm_line(file, turn.start, turn.end, turn.speaker)
        for turn in sorted(turns)
        if round(turn.end, 3) > round(turn.start, 3)
    )


def read_uem(path: Path) -> dict[str, list[tuple[float, float]]]:
    """The parts of each file to be scored, in seconds.

    Raises:
        CorruptFileError: a line is not of the format.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for number, line in enumerate(_lines(path), start=1):
        fields = line.split()
        if not fields or fields[0].startswith(";"):
            continue
        if len(fields) != 4:
            raise CorruptFileError(f"{path}, line {number}: {len(fields)} fields, a UEM line has 4")
        start, end = (_seconds(path, number, text) for text in fields[2:4])
        found.setdefault(fields[0], []).append((start, end))
    return found


def _lines(path: Path) -> list[str]:
    if path.stat().st_size > _MOST_BYTES:
        raise CorruptFileError(f"{path} is larger than any file of turns", "give an RTTM file")
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{path} is not a text file", "give an RTTM file in UTF-8") from error


def _seconds(path: Path, number: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1e7:
        raise CorruptFileError(f"{path}, line {number}: {text!r} is not a time in seconds")
    return value
