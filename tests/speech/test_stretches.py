"""Stretches of speech made of probabilities: Silero's rule, in whatever portions the frames come."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import InvalidSettingError
from edgellm.speech.stretches import FRAME, Stretch, _longest_run
from edgellm.speech.voice_activity import VoiceActivitySettings

SETTINGS = st.builds(
    VoiceActivitySettings,
    threshold=st.sampled_from([0.3, 0.5, 0.8]),
    neg_threshold=st.sampled_from([None, 0.1, 0.3]),
    min_speech_duration_ms=st.sampled_from([0, 50, 100, 250]),
    max_speech_duration_s=st.just(float("inf")),
    min_silence_duration_ms=st.sampled_from([0, 40, 100, 500]),
    speech_pad_ms=st.sampled_from([0, 30, 64, 200]),
)
CUT = st.builds(
    VoiceActivitySettings,
    max_speech_duration_s=st.sampled_from([1.0, 1.5, 3.0]),
    min_speech_duration_ms=st.sampled_from([0, 100]),
    min_silence_duration_ms=st.sampled_from([0, 100, 2000]),
    speech_pad_ms=st.sampled_from([0, 30, 100]),
)
PROBABILITIES = st.lists(st.sampled_from([0.0, 0.2, 0.36, 0.4, 0.6, 0.9, 0.99]), max_size=300)


def rule(probabilities: list[float], chosen: VoiceActivitySettings, length: int) -> list[Stretch]:
    """The whole rule at once, for sounds in which no stretch is too long: Silero's ``get_speech_timestamps``."""
    negative = max(chosen.threshold - 0.15, 0.01) if chosen.neg_threshold is None else chosen.neg_threshold
    spoken, start, pause = [], None, None
    for frame, probability in enumerate(probabilities):
        here = frame * FRAME
        if probability >= chosen.threshold:
            start, pause = here if start is None else start, None
        elif start is not None and probability < negative:
            pause = here if pause is None else pause
        if start is not None and pause is not None and here - pause >= 16 * chosen.min_silence_duration_ms:
            spoken.append((start, pause))
            start = pause = None
    if start is not None:
        spoken.append((start, length))
    spoken = [(a, b) for a, b in spoken if b - a > 16 * chosen.min_speech_duration_ms]
    pad = 16 * chosen.speech_pad_ms
    padded = []
    for index, (a, b) in enumerate(spoken):
        before = spoken[index - 1][1] if index else None
        after = spoken[index + 1][0] if index + 1 < len(spoken) else None
        a = max(0, a - pad) if before is None or a - before >= 2 * pad else before + (a - before) // 2
        b = min(length, b + pad) if after is None or after - b >= 2 * pad else b + (after - b) // 2
        padded.append(Stretch(a, b))
    return padded


def found(probabilities: list[float], chosen: VoiceActivitySettings, length: int, portions: list[int]) -> list[Stretch]:
    finder, stretches, place = chosen.finder(), [], 0
    for portion in [*portions, len(probabilities)]:
        settled = finder.settled
        new = finder.push(probabilities[place : place + portion])
        assert all(stretch.start >= settled for stretch in new)
        stretches += new
        place += portion
    return stretches + finder.flush(length)


@settings(max_examples=400, deadline=None)
@given(PROBABILITIES, SETTINGS, st.lists(st.integers(0, 40), max_size=10), st.integers(1, FRAME))
def test_the_rule_holds_in_any_portions(
    probabilities: list[float], chosen: VoiceActivitySettings, portions: list[int], last: int
) -> None:
    length = max(0, (len(probabilities) - 1) * FRAME + last)
    assert found(probabilities, chosen, length, portions) == rule(probabilities, chosen, length)


@settings(max_examples=400, deadline=None)
@given(PROBABILITIES, CUT, st.lists(st.integers(0, 40), max_size=10))
def test_overlong_stretches_are_cut(
    probabilities: list[float], chosen: VoiceActivitySettings, portions: list[int]
) -> None:
    length = len(probabilities) * FRAME
    stretches = found(probabilities, chosen, length, portions)
    assert stretches == found(probabilities, chosen, length, [])
    assert all(0 < len(stretch) <= chosen.max_speech_duration_s * 16_000 for stretch in stretches)
    assert all(a.end <= b.start for a, b in itertools.pairwise(stretches))
    assert all(0 <= stretch.start < stretch.end <= length for stretch in stretches)
    if chosen.min_speech_duration_ms == 0:  # what is surely speech is kept, wherever the cuts are
        kept = {frame for stretch in stretches for frame in range(-(-stretch.start // FRAME), stretch.end // FRAME)}
        lost = [i for i, p in enumerate(probabilities) if p >= 0.5 and i not in kept]
        assert len(lost) <= 2 * len(stretches)  # a frame that a cut goes through lies in two


def test_a_cut_lies_in_the_longest_pause_of_the_second_half() -> None:
    chosen = VoiceActivitySettings(max_speech_duration_s=4, min_silence_duration_ms=2000, speech_pad_ms=0)
    frames = [0.9] * 40 + [0.1] * 6 + [0.9] * 30 + [0.1] * 4 + [0.9] * 10 + [0.1] * 5 + [0.9] * 40
    first, second = found(frames, chosen, len(frames) * FRAME, [])
    assert (first.start, first.end, second.start) == (0, 90 * FRAME, 95 * FRAME)


def test_without_a_pause_the_cut_lies_where_it_is_quietest() -> None:
    chosen = VoiceActivitySettings(max_speech_duration_s=4, speech_pad_ms=0)
    frames = [0.9] * 100 + [0.6] + [0.9] * 50
    first, second = found(frames, chosen, len(frames) * FRAME, [])
    assert (first.end, second.start) == (100 * FRAME, 100 * FRAME)


@given(st.lists(st.booleans(), max_size=30))
def test_longest_run(flags: list[bool]) -> None:
    begin, end = _longest_run(flags)
    assert all(flags[begin:end])
    longest = max((len(run) for run in "".join("x" if flag else " " for flag in flags).split()), default=0)
    assert end - begin == longest


@pytest.mark.parametrize(
    "bad",
    [
        {"threshold": 0},
        {"threshold": 1.5},
        {"threshold": float("nan")},
        {"neg_threshold": 0.6},
        {"min_speech_duration_ms": -1},
        {"speech_pad_ms": 10**9},
        {"max_speech_duration_s": 0.5},
        {"max_speech_duration_s": float("nan")},
        {"max_speech_duration_s": 1, "min_speech_duration_ms": 900},
    ],
)
def test_settings_out_of_range(bad: dict[str, float]) -> None:
    with pytest.raises(InvalidSettingError):
        VoiceActivitySettings(**bad)  # type: ignore[arg-type]
