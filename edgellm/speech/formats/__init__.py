"""A transcript as text in the usual formats: txt, srt, vtt, json, tsv, lrc, csv, rttm."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from edgellm.errors import InvalidSettingError
from edgellm.hub.files import write_atomically
from edgellm.speech.formats.lines import Cue, LineShape, cues
from edgellm.speech.formats.plain import to_json, to_txt
from edgellm.speech.formats.subtitles import to_lrc, to_srt, to_vtt
from edgellm.speech.formats.tables import to_csv, to_tsv
from edgellm.speech.formats.turns import to_rttm
from edgellm.speech.results import Transcript

__all__ = ["FORMATS", "Cue", "LineShape", "cues", "render", "write_transcript"]

FORMATS: Mapping[str, Callable[[Transcript, LineShape], str]] = MappingProxyType(
    {
        "txt": to_txt,
        "srt": to_srt,
        "vtt": to_vtt,
        "json": to_json,
        "tsv": to_tsv,
        "lrc": to_lrc,
        "csv": to_csv,
        "rttm": to_rttm,
    }
)
"""What makes each format, by its name, which is also the ending of its files."""


def render(transcript: Transcript, format: str, shape: LineShape | None = None) -> str:
    """The transcript in a format.

    Raises:
        InvalidSettingError: there is no such format, or the shape needs words the transcript does not have.
    """
    if format not in FORMATS:
        raise InvalidSettingError(f"there is no format {format!r}", f"choose of {', '.join(FORMATS)}")
    return FORMATS[format](transcript, shape or LineShape())


def write_transcript(
    transcript: Transcript,
    path: str | os.PathLike[str],
    format: str | None = None,
    shape: LineShape | None = None,
) -> None:
    """Write a transcript to a file, which appears whole or not at all; by default in the format its ending names.

    Raises:
        InvalidSettingError: there is no such format, or the shape needs words the transcript does not have.
        OSError: it cannot be written.
    """
    destination = Path(path)
    kind = format or destination.suffix.lower().lstrip(".")
    # RTTM names the sound, whose name the file has.
    text = (
        to_rttm(transcript, shape or LineShape(), destination.stem)
        if kind == "rttm"
        else render(transcript, kind, shape)
    )
    write_atomically(destination, text)
