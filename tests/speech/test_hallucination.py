"""What looks invented beside silence is left out, and nothing else."""

from __future__ import annotations

import pytest

from edgellm.errors import InvalidSettingError
from edgellm.speech.alignment import TimedWord
from edgellm.speech.hallucination import TimedSegment, believable, is_anomalous
from edgellm.speech.settings import TranscriptionSettings


def segment(start: float, count: int = 4, length: float = 0.3, probability: float = 0.9) -> TimedSegment:
    """So many words one after the other."""
    words = [TimedWord(f" w{n}", (n,), start + n * length, start + (n + 1) * length, probability) for n in range(count)]
    return TimedSegment(start, start + count * length, tuple(words))


def test_which_segments_are_anomalous() -> None:
    assert not is_anomalous(None)
    assert not is_anomalous(TimedSegment(0, 1, ()))
    assert not is_anomalous(segment(0))
    assert is_anomalous(segment(0, probability=0.1))
    assert is_anomalous(segment(0, length=0.05))
    assert is_anomalous(segment(0, count=2, length=3.5))
    signs = TimedSegment(0, 1, (TimedWord("...", (1,), 0, 1, 0.01), TimedWord(".", (1,), 0, 1, 0.01)))
    assert not is_anomalous(TimedSegment(0, 1, (*signs.words[1:], *segment(0).words)))


def test_speech_is_believed() -> None:
    spoken = [segment(0.5), TimedSegment(2.0, 2.5, ()), segment(3.0), segment(9.0)]
    assert believable(spoken, 0.0, 30.0, None, 1.0) == (4, None)
    assert believable([], 0.0, 30.0, 12.0, 1.0) == (0, None)


def test_silence_before_an_invented_beginning_is_skipped() -> None:
    assert believable([segment(5.0, probability=0.1), segment(8.0)], 0.0, 30.0, None, 2.0) == (0, 5.0)


def test_what_is_invented_between_silences_is_left_out() -> None:
    invented = segment(10.0, probability=0.1)
    assert believable([segment(1.0), invented, segment(20.0)], 0.0, 30.0, None, 2.0) == (1, 10.0)
    assert believable([segment(1.0), invented], 0.0, 30.0, 14.0, 2.0) == (1, 10.0)
    late = segment(28.5, probability=0.1)
    assert believable([segment(1.0), late], 0.0, 30.0, 29.9, 2.0) == (1, 29.9)  # nothing comes after it
    near = segment(2.5, probability=0.1)  # right between words: improbable, but said
    assert believable([segment(1.0), near, segment(3.8)], 0.0, 30.0, None, 2.0) == (3, None)


def test_it_goes_forward() -> None:
    for start in (0.0, 0.3):
        count, behind = believable([segment(start, probability=0.1)], 0.0, 30.0, None, 2.0)
        assert (count, behind) == (0, 1.0)


def test_words_are_needed() -> None:
    with pytest.raises(InvalidSettingError, match="word_timestamps"):
        TranscriptionSettings(hallucination_silence_threshold=2.0)
