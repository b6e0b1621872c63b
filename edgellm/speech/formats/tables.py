"""Tables with one row a segment; times are whole milliseconds. Speakers get a column where there are any."""

from __future__ import annotations

import csv
import io

from edgellm.speech.formats.lines import LineShape, tidy
from edgellm.speech.results import Segment, Transcript


def to_tsv(transcript: Transcript, shape: LineShape) -> str:
    """Tab-separated values as OpenAI's Whisper writes them: start, end, text."""
    return "".join("\t".join(cell.replace("\t", " ") for cell in row) + "\n" for row in _rows(transcript))


def to_csv(transcript: Transcript, shape: LineShape) -> str:
    """Comma-separated values (RFC 4180) with the columns of whisper.cpp: start, end, text."""
    output = io.StringIO()
    csv.writer(output, lineterminator="\n").writerows(_rows(transcript))
    return output.getvalue()


def _rows(transcript: Transcript) -> list[list[str]]:
    speakers = bool(transcript.speakers)
    head = ["start", "end", *(["speaker"] if speakers else []), "text"]
    return [head, *(_row(segment, speakers) for segment in transcript.segments)]


def _row(segment: Segment, speakers: bool) -> list[str]:
    times = [str(max(0, round(1000 * seconds))) for seconds in (segment.start, segment.end)]
    return [*times, *([segment.speaker or ""] if speakers else []), tidy(segment.text).strip()]
