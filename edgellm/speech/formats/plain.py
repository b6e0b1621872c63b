"""Plain text and JSON."""

from __future__ import annotations

import json

from edgellm.speech.formats.lines import LineShape, tidy
from edgellm.speech.formats.subtitles import named
from edgellm.speech.results import Transcript


def to_txt(transcript: Transcript, shape: LineShape) -> str:
    """One line a segment; speakers stand before the text: ``[SPEAKER_00]: ...``."""
    return "".join(f"{named(segment.speaker)}{tidy(segment.text).strip()}\n" for segment in transcript.segments)


def to_json(transcript: Transcript, shape: LineShape) -> str:
    """OpenAI's verbose JSON, in UTF-8."""
    return json.dumps(transcript.to_dict(), ensure_ascii=False, allow_nan=False, indent=2) + "\n"
