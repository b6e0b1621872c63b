"""Words that Whisper invents in silence: segments that look like it, and where to go on behind them.

Source: ``hallucination_silence_threshold`` of openai-whisper (``transcribe.py``), whose rules and numbers these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgellm.speech.alignment import TimedWord

_IMPROBABLE, _SHORT, _LONG = 0.15, 0.133, 2.0
_WORDS_SEEN = 8
_NEAR_EDGE = 2.0
_SIGNS = "\"'“¿([{-\"'.。,，!！?？:：”)]}、"


@dataclass(frozen=True)
class TimedSegment:
    """Words of a segment, and its times; all in seconds from the beginning of the window."""

    start: float
    end: float
    words: tuple[TimedWord, ...]


def is_anomalous(segment: TimedSegment | None) -> bool:
    """Whether its first words are so improbable, short or long that it was hardly spoken."""
    words = [] if segment is None else [word for word in segment.words if word.text not in _SIGNS][:_WORDS_SEEN]
    score = sum(map(_anomaly, words))
    return bool(words) and (score >= 3 or score + 0.01 >= len(words))


def _anomaly(word: TimedWord) -> float:
    length = word.end - word.start
    return (word.probability < _IMPROBABLE) + 15 * max(0.0, _SHORT - length) + max(0.0, length - _LONG)


def believable(
    segments: Sequence[TimedSegment], spoken_until: float, window: float, end: float | None, threshold: float
) -> tuple[int, float | None]:
    """How many of the segments are to be believed.

    Args:
        segments: of the window; those without words are believed.
        spoken_until: where the last word before the window ended; not above 0.
        window: length of a whole window.
        end: where the sound ends, if it does so in this window.
        threshold: seconds of silence beside a segment that is not believed.

    Returns:
        How many are, from the first one on; and where to go on, if not all are.
    """
    spoken = [segment for segment in segments if segment.words]
    if spoken and is_anomalous(spoken[0]) and spoken[0].start > threshold:
        return 0, spoken[0].start
    before = spoken_until
    for number, segment in enumerate(segments):
        if not segment.words:
            continue
        if is_anomalous(segment):
            following = next((later for later in segments[number + 1 :] if later.words), None)
            next_start = following.words[0].start if following else window if end is None else end
            silent_before = segment.start - before > threshold or segment.start < max(threshold, _NEAR_EDGE)
            silent_after = (
                next_start - segment.end > threshold or is_anomalous(following) or window - segment.end < _NEAR_EDGE
            )
            if silent_before and silent_after:
                over = end is not None and end - segment.end < threshold
                return number, end if over else max(1.0, segment.start)
        before = segment.end
    return len(segments), None
