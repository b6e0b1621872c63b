"""Who spoke when, without the words: RTTM."""

from __future__ import annotations

import re

from edgellm.speech.formats.lines import LineShape
from edgellm.speech.results import Transcript

FILE = "audio"
"""What the file is called where its name is not known."""


def rttm_line(file: str, start: float, end: float, speaker: str) -> str:
    """A turn as a line of RTTM, to the millisecond. Blanks in names, which the format does not allow, become
    underscores."""
    start, end = round(start, 3), round(end, 3)
    return f"SPEAKER {_word(file)} 1 {start:.3f} {end - start:.3f} <NA> <NA> {_word(speaker)} <NA> <NA>\n"


def to_rttm(transcript: Transcript, shape: LineShape, file: str = FILE) -> str:
    """The turns of speakers as the segments have them; nothing where speakers were not told apart."""
    return "".join(
        rttm_line(file, segment.start, segment.end, segment.speaker)
        for segment in transcript.segments
        if segment.speaker is not None and segment.end > segment.start
    )


def _word(text: str) -> str:
    return re.sub(r"\s+", "_", text.strip()) or "_"
