"""Subtitles: SubRip (srt), WebVTT (vtt), and lyrics (lrc)."""

from __future__ import annotations

from collections.abc import Callable

from edgellm.speech.formats.lines import Cue, LineShape, cues
from edgellm.speech.results import Transcript


def to_srt(transcript: Transcript, shape: LineShape) -> str:
    """SubRip. Speakers stand before the text: ``[SPEAKER_00]: ...``."""
    blocks = []
    for number, cue in enumerate(cues(transcript, shape), 1):
        start, end = (timestamp(seconds, ",", hours=True) for seconds in (cue.start, cue.end))
        blocks.append(f"{number}\n{start} --> {end}\n{named(cue.speaker)}{_marked(cue, str)}\n\n")
    return "".join(blocks)


def to_vtt(transcript: Transcript, shape: LineShape) -> str:
    """WebVTT (W3C). Speakers are voice tags: ``<v SPEAKER_00>...``; characters of its markup are escaped."""
    blocks = ["WEBVTT\n\n"]
    for cue in cues(transcript, shape):
        start, end = (timestamp(seconds, ".") for seconds in (cue.start, cue.end))
        voice = f"<v {_escaped(cue.speaker)}>" if cue.speaker is not None else ""
        blocks.append(f"{start} --> {end}\n{voice}{_marked(cue, _escaped)}\n\n")
    return "".join(blocks)


def to_lrc(transcript: Transcript, shape: LineShape) -> str:
    """Lyrics: every line with the time it begins, ``[01:02.34]text``, minutes beyond 99 as they are."""
    lines = []
    for cue in cues(transcript, shape):
        hundredths = max(0, round(cue.start * 100))
        minutes, rest = divmod(hundredths, 6000)
        text = " ".join((named(cue.speaker) + _marked(cue, str)).split("\n"))
        lines.append(f"[{minutes:02d}:{rest // 100:02d}.{rest % 100:02d}]{text}\n")
    return "".join(lines)


def timestamp(seconds: float, decimal_mark: str, hours: bool = False) -> str:
    """A time such as ``00:01:02,345``; without hours where there are none, unless they are asked for."""
    rest, milliseconds = divmod(max(0, round(seconds * 1000)), 1000)
    rest, second = divmod(rest, 60)
    hour, minute = divmod(rest, 60)
    lead = f"{hour:02d}:" if hours or hour else ""
    return f"{lead}{minute:02d}:{second:02d}{decimal_mark}{milliseconds:03d}"


def named(speaker: str | None) -> str:
    """What stands before the words of a speaker in formats that have no field for it."""
    return f"[{speaker}]: " if speaker is not None else ""


def _marked(cue: Cue, escape: Callable[[str], str]) -> str:
    """The text, the word that is spoken now underlined."""
    parts = [escape(part) for part in cue.parts]
    if cue.highlighted is not None:
        word = parts[cue.highlighted].lstrip()
        lead = parts[cue.highlighted].removesuffix(word)
        parts[cue.highlighted] = f"{lead}<u>{word}</u>"
    return "".join(parts)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
