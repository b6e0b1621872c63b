"""Stretches, clustering, speakers and reconstruction, each by itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgellm.diarization.clustering import average_linkage, clusters_at_widest_gap, cosine_distances
from edgellm.diarization.reconstruction import active_speakers, window_evidence
from edgellm.diarization.segmentation import frame_time, time_frame, window_starts
from edgellm.diarization.segmentation_network import FRAME_SAMPLES, WINDOW_SAMPLES
from edgellm.diarization.speakers import ClusterSettings, SpeakerCount, _tree, find_speakers
from edgellm.diarization.stretches import Stretch, StretchFinder, StretchSettings, Window, embedding_windows, frames
from edgellm.errors import InvalidSettingError


def _voices(speakers: int, each: int, spread: float, seed: int) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    centres = random.standard_normal((speakers, 192))
    found = np.repeat(centres / np.linalg.norm(centres, axis=1, keepdims=True), each, axis=0)
    found = found + random.standard_normal(found.shape) * spread / np.sqrt(192)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


@settings(deadline=None, max_examples=30)
@given(count=st.integers(2, 25), seed=st.integers(0, 999))
def test_linkage_is_the_obvious_one(count: int, seed: int) -> None:
    """Against merging the nearest two clusters again and again, means taken over all pairs of members."""
    embeddings = np.random.default_rng(seed).standard_normal((count, 6)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    distances = cosine_distances(embeddings)
    clusters, heights = [[leaf] for leaf in range(count)], []
    while len(clusters) > 1:
        pairs = [
            (float(distances[np.ix_(a, b)].mean()), i, j)
            for i, a in enumerate(clusters) for j, b in enumerate(clusters) if i < j
        ]  # fmt: skip
        height, i, j = min(pairs)
        heights.append(height)
        clusters[i] += clusters.pop(j)
        tree = average_linkage(distances.copy())
        labels = tree.cut(len(clusters))
        assert all(len(set(labels[cluster])) == 1 for cluster in clusters)
    np.testing.assert_allclose(tree.heights, heights, atol=1e-5)


def test_identical_embeddings_end() -> None:
    tree = average_linkage(np.zeros((6, 6), np.float32))
    assert (len(tree.heights), set(tree.cut(1))) == (5, {0})
    assert len(set(tree.cut(6))) == 6


def test_widest_gap() -> None:
    assert clusters_at_widest_gap(np.array([0.1, 0.5, 0.9, 0.95]), 0.45, 0.8) == 3
    assert clusters_at_widest_gap(np.array([0.1, 0.2]), 0.45, 0.8) == 1
    assert clusters_at_widest_gap(np.array([]), 0.45, 0.8) == 1


@pytest.mark.parametrize("speakers", [1, 2, 5, 8])
def test_many_embeddings_in_groups(speakers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.diarization.speakers.MOST_AT_ONCE", 50)
    embeddings = _voices(speakers, 60, 0.4, speakers)
    order = np.random.default_rng(0).permutation(len(embeddings))
    tree, groups = _tree(embeddings[order])
    labels = tree.cut(clusters_at_widest_gap(tree.heights, 0.45, 0.8))[groups]
    truth = order // 60
    assert len(set(zip(labels, truth, strict=True))) == speakers


def _windows(count: int) -> list[Window]:
    length = frames(2)
    return [Window(number * length, (number + 1) * length, number * length) for number in range(count)]


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (SpeakerCount(), 3),
        (SpeakerCount(exactly=2), 2),
        (SpeakerCount(exactly=5), 5),
        (SpeakerCount(at_least=4), 4),
        (SpeakerCount(at_most=1), 1),
        (SpeakerCount(at_least=1, at_most=8), 3),
        (SpeakerCount(exactly=99), 30),  # not more than there are windows
    ],
)
def test_number_of_speakers(known: SpeakerCount, expected: int) -> None:
    centres = find_speakers(_windows(30), _voices(3, 10, 0.4, 1), [], known, ClusterSettings(local_share=2))
    assert centres.shape == (expected, 192)


def test_a_stray_window_is_no_speaker() -> None:
    embeddings = np.concatenate([_voices(2, 10, 0.4, 1), _voices(1, 1, 0, 9)])
    centres = find_speakers(_windows(21), embeddings, [], SpeakerCount(), ClusterSettings(local_share=2))
    assert len(centres) == 2


@pytest.mark.parametrize("numbers", [(0, None, None), (None, 3, 2), (2, 1, None), (None, None, -1)])
def test_impossible_numbers(numbers: tuple[int | None, int | None, int | None]) -> None:
    with pytest.raises(InvalidSettingError):
        SpeakerCount(*numbers)


@settings(deadline=None, max_examples=60)
@given(
    runs=st.lists(st.tuples(st.booleans(), st.integers(1, 1500)), min_size=1, max_size=8),
    seed=st.integers(0, 999),
    pieces=st.lists(st.integers(1, 900), min_size=1, max_size=40),
)
def test_stretches_do_not_depend_on_how_frames_come(runs: list[tuple[bool, int]], seed: int, pieces: list[int]) -> None:
    single = np.concatenate([np.full(length, flag) for flag, length in runs])
    noise = np.random.default_rng(seed).uniform(0, 1, len(single) // 10 + 1)
    change = np.interp(np.arange(len(single)) / 10, np.arange(len(noise)), noise**4).astype(np.float32)
    whole = StretchFinder(StretchSettings()).push(single, change, last=True)
    finder, found, place = StretchFinder(StretchSettings()), [], 0
    for size in [*pieces, len(single)]:
        end = min(place + size, len(single))
        found += finder.push(single[place:end], change[place:end], last=False)
        assert finder.first_open <= end
        place = end
    found += finder.push(single[place:], change[place:], last=True)
    assert found == whole
    covered = np.zeros(len(single), int)
    for stretch in whole:
        covered[stretch.first : stretch.end] += 1
    np.testing.assert_array_equal(covered, single.astype(int))


@given(length=st.integers(1, 2000))
def test_windows_of_a_stretch(length: int) -> None:
    found = embedding_windows(Stretch(100, 100 + length), StretchSettings())
    assert bool(found) == (length >= frames(0.3))
    for window in found:
        assert 100 <= window.first < window.end <= 100 + length
        assert window.end - window.first <= frames(2)
        assert window.stretch == 100


@given(samples=st.integers(0, 2_000_000), step=st.integers(1, 300))
def test_segmentation_covers_the_sound(samples: int, step: int) -> None:
    starts = list(window_starts(samples, step))
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert starts[-1] * FRAME_SAMPLES + WINDOW_SAMPLES >= samples
    assert all(start * FRAME_SAMPLES + WINDOW_SAMPLES <= samples + FRAME_SAMPLES for start in starts[1:])


def test_frames_and_times() -> None:
    for frame in (0, 1, 588, 100_000):
        assert time_frame(frame_time(frame) + 1e-6) == frame


def test_reconstruction() -> None:
    windows = [Window(0, 10, 0), Window(20, 30, 0), Window(40, 50, 40)]
    similarities = np.array([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]], np.float32)
    evidence = window_evidence(windows, similarities, 10, 60)
    np.testing.assert_array_equal(evidence.argmax(axis=1)[:50], [0] * 15 + [1] * 15 + [0] * 20)
    assert not evidence[30:40].any()
    assert not evidence[50:].any()
    np.testing.assert_allclose(evidence[:30].sum(axis=1), 1, rtol=1e-5)
    active = active_speakers(evidence, np.array([1] * 30 + [2] * 30))
    np.testing.assert_array_equal(active.sum(axis=1), [1] * 30 + [0] * 10 + [2] * 10 + [0] * 10)
