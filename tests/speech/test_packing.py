"""Windows packed with speech, and their times: every sample in its place, words never in a silence that was cut out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import InvalidSettingError
from edgellm.speech.packing import WINDOW_SAMPLES, Piece, TimeMap, cut_speech, lay_out, pack
from edgellm.speech.stretches import FRAME, Stretch
from edgellm.speech.voice_activity import VoiceActivityDetector, VoiceActivitySettings

LONGEST = 12_000
STRETCHES = st.lists(st.tuples(st.integers(0, 50_000), st.integers(1, 60_000)), min_size=1, max_size=8)


def laid_out(gaps: list[tuple[int, int]]) -> list[Stretch]:
    """Stretches made of gaps and lengths."""
    result, place = [], 0
    for gap, length in gaps:
        result.append(Stretch(place + gap, place + gap + length))
        place += gap + length
    return result


class Loudness:
    """Stands for the model where its judgement is not what is tested: what is loud is speech."""

    def run(self, frames: np.ndarray, hidden: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, ...]:
        assert frames.shape[1] == 576
        return (np.abs(frames[:, 64:]).max(axis=1) > 0.5).astype(np.float32), hidden, cell


@given(STRETCHES, st.lists(st.floats(-1, 40), min_size=2, max_size=40).map(sorted))
def test_times_are_monotone_and_words_lie_in_pieces(gaps: list[tuple[int, int]], times: list[float]) -> None:
    stretches = laid_out(gaps)
    time_map = TimeMap(stretches)
    for mapped in (time_map.start_time, time_map.end_time):
        values = [mapped(time) for time in times]
        assert values == sorted(values)
    words = [time_map.word_times(a, b) for a, b in itertools.pairwise(times)]
    flat = [time for word in words for time in word]
    assert flat == sorted(flat)
    for start, end in words:
        assert any(s.start_seconds <= start <= end <= s.end_seconds for s in stretches)
    for time in times:
        assert time_map.end_time(time) <= time_map.start_time(time)


@given(STRETCHES)
def test_every_sample_comes_back(gaps: list[tuple[int, int]]) -> None:
    """A time within a piece is the time of that sample in the sound; where pieces meet, both sides are known."""
    stretches, cut = laid_out(gaps), 0
    time_map = TimeMap(stretches)
    for stretch in stretches:
        assert time_map.start_time(cut / 16_000) == pytest.approx(stretch.start_seconds, abs=1e-6)
        middle = time_map.start_time((cut + len(stretch) / 2) / 16_000)
        assert middle == pytest.approx((stretch.start + len(stretch) / 2) / 16_000, abs=1e-6)
        cut += len(stretch)
        assert time_map.end_time(cut / 16_000) == pytest.approx(stretch.end_seconds, abs=1e-6)
    assert time_map.duration == cut / 16_000


def test_a_word_across_a_cut_goes_where_most_of_it_is() -> None:
    time_map = TimeMap([Stretch(0, 16_000), Stretch(80_000, 96_000)])
    assert time_map.word_times(0.7, 1.1) == pytest.approx((0.7, 1.0))
    assert time_map.word_times(0.9, 1.4) == pytest.approx((5.0, 5.4))
    assert time_map.word_times(1.0, 1.0) == pytest.approx((5.0, 5.0))
    assert (time_map.end_time(1.0), time_map.start_time(1.0)) == (1.0, 5.0)


@pytest.mark.parametrize("stretches", [[], [Stretch(5, 5)], [Stretch(0, 10), Stretch(9, 20)], [Stretch(9, 4)]])
def test_maps_that_cannot_be(stretches: list[Stretch]) -> None:
    with pytest.raises(ValueError, match="stretch"):
        TimeMap(stretches)


@given(STRETCHES, st.sampled_from([16_000, 48_000, WINDOW_SAMPLES]))
def test_windows_hold_every_piece_in_order(gaps: list[tuple[int, int]], most: int) -> None:
    sound = np.arange(laid_out(gaps)[-1].end, dtype=np.float32)
    pieces = [Piece(s.start, sound[s.start : s.end]) for s in laid_out(gaps)]
    windows = list(pack(pieces, most))
    assert all(0 < len(window.samples) <= most for window in windows)
    assert np.array_equal(
        np.concatenate([window.samples for window in windows]), np.concatenate([piece.samples for piece in pieces])
    )
    for window in windows:
        assert window.samples.tolist() == [v for s in window.time_map.stretches for v in range(s.start, s.end)]
    for before, after in itertools.pairwise(windows):  # as full as whole pieces make it
        assert len(before.samples) + min(most, len(after.time_map.stretches[0])) > most


def test_a_window_is_not_too_short() -> None:
    with pytest.raises(InvalidSettingError):
        list(pack([], 100))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), min_size=1, max_size=8),
    st.lists(st.integers(300, 30_000), min_size=1, max_size=5),
    st.integers(0, FRAME - 1),
)
def test_a_stream_is_cut_as_the_whole_is(gaps: list[tuple[int, int]], sizes: list[int], tail: int) -> None:
    """Whatever sizes the blocks have; every piece is the sound's own samples; memory is what is undecided."""
    rng = np.random.default_rng(0)
    parts = [np.r_[rng.uniform(-0.1, 0.1, gap * FRAME), rng.choice([-0.9, 0.9], loud * FRAME)] for gap, loud in gaps]
    sound = np.concatenate([*parts, np.zeros(tail)]).astype(np.float32)
    chosen = VoiceActivitySettings(max_speech_duration_s=3, min_silence_duration_ms=100, speech_pad_ms=50)

    def blocks() -> Iterator[np.ndarray]:
        place = 0
        while place < len(sound):
            for size in sizes:
                yield sound[place : place + size]
                place += size

    whole = VoiceActivityDetector(Loudness(), chosen)  # type: ignore[arg-type]
    expected = whole.push(sound) + whole.flush()
    detector = VoiceActivityDetector(Loudness(), chosen)  # type: ignore[arg-type]
    pieces = list(cut_speech(blocks(), detector, offset=1000, longest_pause=LONGEST))
    spoken = [piece for piece in pieces if piece.speech]
    assert [Stretch(piece.start - 1000, piece.end - 1000) for piece in spoken] == expected
    for piece in pieces:
        assert np.array_equal(piece.samples, sound[piece.start - 1000 : piece.end - 1000])
    edges = [0, *(edge for stretch in expected for edge in (stretch.start, stretch.end)), len(sound)]
    pauses = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if 0 < b - a <= LONGEST] if expected else []
    assert [(piece.start - 1000, piece.end - 1000) for piece in pieces if not piece.speech] == pauses


PAUSES = st.lists(st.tuples(st.integers(0, 30_000), st.integers(1, 60_000)), min_size=1, max_size=12)


def with_pauses(gaps: list[tuple[int, int]], tail: int) -> tuple[np.ndarray, list[Stretch], list[Piece]]:
    """A sound whose samples are their own numbers, where speech is in it, and both as pieces."""
    spoken = laid_out(gaps)
    sound = np.arange(spoken[-1].end + tail, dtype=np.float32)
    pieces, place = [], 0
    for stretch in spoken:
        pieces += [
            Piece(place, sound[place : stretch.start], False),
            Piece(stretch.start, sound[stretch.start : stretch.end]),
        ]
        place = stretch.end
    pieces.append(Piece(place, sound[place:], False))
    return sound, spoken, [piece for piece in pieces if len(piece.samples)]


@settings(max_examples=40, deadline=None)
@given(PAUSES, st.integers(0, 30_000), st.sampled_from([20_000, 100_000, WINDOW_SAMPLES]))
def test_a_short_sound_is_heard_as_it_is_and_speech_always(gaps: list[tuple[int, int]], tail: int, most: int) -> None:
    sound, spoken, pieces = with_pauses(gaps, tail)
    windows = list(pack(pieces, most))
    assert all(0 < len(window.samples) <= most for window in windows)
    for window in windows:
        expected = np.concatenate([np.arange(s.start, s.end) for s in window.time_map.stretches])
        assert np.array_equal(window.samples, expected)
    heard = np.concatenate([window.samples for window in windows])
    assert np.isin(np.concatenate([np.arange(s.start, s.end) for s in spoken]), heard, assume_unique=True).all()
    assert np.all(np.diff(heard) > 0)
    if len(sound) <= most:
        assert len(windows) == 1
        assert np.array_equal(windows[0].samples, sound)
        assert windows[0].time_map.speech_end == spoken[-1].end / 16_000


@settings(max_examples=40, deadline=None)
@given(PAUSES, st.integers(0, 12), st.sampled_from([40_000, 100_000, WINDOW_SAMPLES]))
def test_what_comes_later_changes_nothing_that_was_laid_out(gaps: list[tuple[int, int]], end: int, most: int) -> None:
    """But where a piece of speech does not fit, of the pause between two windows."""
    _, _, pieces = with_pauses(gaps, 0)
    begun = pieces[: 2 * end]
    whole, part = list(lay_out(pieces, most)), list(lay_out(begun, most))
    for before, after in zip(part[:-1], whole, strict=False):
        assert np.array_equal(before.samples, after.samples)
    if part:
        there = whole[len(part) - 1].samples
        assert np.array_equal(part[-1].samples, there[: len(part[-1].samples)])


def test_later_pauses_are_heard_in_part() -> None:
    second = 16_000
    sound = np.arange(40 * second, dtype=np.float32)
    edges = [0, 6, 7, 16, 17, 20, 21, 30, 31, 40]
    pieces = [
        Piece(a * second, sound[a * second : b * second], number % 2 == 0)
        for number, (a, b) in enumerate(itertools.pairwise(edges))
    ]
    first, last = (window.time_map.stretches for window in pack(pieces))
    tenth, half = second // 10, second // 2
    assert [(s.start, s.end) for s in first] == [
        (0, 6 * second), (6 * second, 7 * second), (7 * second, 16 * second), (16 * second, 16 * second + tenth),
        (17 * second - tenth, 17 * second), (17 * second, 20 * second), (20 * second, 20 * second + tenth),
        (21 * second - tenth, 21 * second), (21 * second, 30 * second),
    ]  # fmt: skip
    assert [(s.start, s.end) for s in last] == [(30 * second + half, 31 * second), (31 * second, 40 * second)]


def test_words_lie_in_speech_where_pauses_are_kept() -> None:
    time_map = TimeMap([Stretch(0, 16_000), Stretch(16_000, 48_000), Stretch(48_000, 64_000)], [True, False, True])
    assert time_map.word_times(0.5, 2.0) == (0.5, 1.0)
    assert time_map.word_times(1.2, 1.6) == (1.0, 1.0)
    assert time_map.word_times(2.4, 2.8) == (3.0, 3.0)
    assert time_map.word_times(2.4, 3.2) == (3.0, 3.2)
    assert time_map.start_time(2.0) == 2.0
    with pytest.raises(ValueError, match="speech"):
        TimeMap([Stretch(0, 16_000)], [False])
