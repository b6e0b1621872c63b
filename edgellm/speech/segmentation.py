"""From the tokens of a window to segments, and how far the window got (openai-whisper, ``transcribe.py``)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from edgellm.speech.tokens import SECONDS_PER_TIMESTAMP


@dataclass(frozen=True)
class Part:
    """A segment of a window: seconds within it, and its tokens with its timestamps."""

    start: float
    end: float
    tokens: tuple[int, ...]


REST_SECONDS = 1.0
"""What a full window leaves unheard is read again if it is longer than this."""


def split(tokens: Sequence[int], timestamps: int, seconds: float, full: bool = False) -> tuple[list[Part], float]:
    """Cut a window's tokens where two timestamps follow each other.

    Args:
        tokens: text and timestamps.
        timestamps: number of the first timestamp, 0 s.
        seconds: length of the window's sound; of a full one, up to the end of speech.
        full: speech fills the window and is not cut off at its end; nor is what follows the last pair of timestamps.

    Returns:
        The segments, and the second from which on the window is still to be transcribed: what follows the last pair of
        timestamps was cut off in the middle, unless the window ends with a single one.
    """
    stamped = [token >= timestamps for token in tokens]
    single_end = ends_complete(tokens, timestamps)
    cuts = [place for place in range(1, len(tokens)) if stamped[place - 1] and stamped[place]]
    if not cuts:
        times = [token for token in tokens if token >= timestamps and token != timestamps]
        end = (times[-1] - timestamps) * SECONDS_PER_TIMESTAMP if times else seconds
        begin = (tokens[0] - timestamps) * SECONDS_PER_TIMESTAMP if stamped[:1] == [True] and times else 0.0
        return [Part(min(begin, end), end, tuple(tokens))], _heard_until(end, seconds, full)
    if single_end:
        cuts.append(len(tokens))
    parts, first, before = [], 0, 0.0
    for cut in cuts:
        piece = tokens[first:cut]
        begin, end = (max(before, (piece[place] - timestamps) * SECONDS_PER_TIMESTAMP) for place in (0, -1))
        parts.append(Part(begin, max(begin, end), tuple(piece)))
        first, before = cut, max(begin, end)
    if single_end:
        return parts, _heard_until(parts[-1].end, seconds, full)
    reached = (tokens[first - 1] - timestamps) * SECONDS_PER_TIMESTAMP
    rest = tokens[first:]
    if full and len(rest) > 1:
        begin = max(reached, (rest[0] - timestamps) * SECONDS_PER_TIMESTAMP) if rest[0] >= timestamps else reached
        return [*parts, Part(min(begin, seconds), seconds, tuple(rest))], seconds
    return parts, seconds if full and seconds - reached <= REST_SECONDS else reached


def ends_complete(tokens: Sequence[int], timestamps: int) -> bool:
    """Whether a window's tokens end with a single timestamp, so that no further segment begins in it."""
    return [token >= timestamps for token in tokens[-2:]] in ([False, True], [True])


def _heard_until(end: float, seconds: float, full: bool) -> float:
    """Where to go on after a window whose last segment is complete.

    In a stream nothing follows it. A full window was packed with speech to its end: a long rest is read again.
    """
    return end if full and seconds - end > REST_SECONDS else seconds


def compression_ratio(text: str) -> float:
    """How many times shorter zlib makes a text: high where it repeats itself; 0 for none."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0
