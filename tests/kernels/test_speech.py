"""Kernels of speech: spectrograms, smoothing and time warping, against NumPy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.folders import kernels_folder
from edgellm.kernels.library import KernelLibrary
from edgellm.kernels.target import current_target
from edgellm.platforms import alignment, mel
from edgellm.platforms.alignment import AlignmentPlan, smooth_reference, warp_reference
from edgellm.platforms.mel import MelPlan, log_mel_reference, mel_filters
from edgellm.platforms.threads import KERNELS, ThreadTeam

FRAMES = 60
Plans = tuple[dict[int, MelPlan], AlignmentPlan]


@pytest.fixture(scope="module")
def plans() -> Iterator[Plans]:
    library = KernelLibrary(current_target(), kernels_folder())
    addresses = library.load(sorted({*KERNELS, *mel.KERNELS, *alignment.KERNELS}))
    team = ThreadTeam(addresses, 2, library)
    yield {bins: MelPlan(bins, FRAMES, team, addresses) for bins in (80, 128, 33)}, AlignmentPlan(team, addresses)
    team.close()


@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.one_of(st.integers(0, 160 * FRAMES), st.sampled_from([0, 1, 2, 199, 200, 201, 400, 160 * FRAMES])),
    loudness=st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 1.0, 100.0]),
    bins=st.sampled_from([80, 128, 33]),
)
@settings(max_examples=60, deadline=None)
def test_spectrograms(plans: Plans, seed: int, length: int, loudness: float, bins: int) -> None:
    random = np.random.default_rng(seed)
    samples = (loudness * random.standard_normal(length)).astype(np.float32)
    samples[length // 2 :] *= np.float32(0.01)  # quiet beside loud
    found = plans[0][bins].run(samples)[:, :bins]
    np.testing.assert_allclose(found, log_mel_reference(samples, bins, FRAMES), atol=1e-4)


@given(length=st.integers(1, 160 * FRAMES), loudness=st.sampled_from([1e-3, 1.0]))
@settings(max_examples=20, deadline=None)
def test_the_sound_is_mirrored_at_both_ends_of_the_window(length: int, loudness: float) -> None:
    """As `torch.stft` does with a window of silence after the sound: a full one ends in its own mirror image."""
    samples = (loudness * np.random.default_rng(length).standard_normal(length)).astype(np.float32)
    for count in (length, 160 * FRAMES):
        samples = np.resize(samples, count)
        whole = np.pad(np.pad(samples, (0, 160 * FRAMES - count)), 200, mode="reflect")
        np.testing.assert_array_equal(mel.around(samples, FRAMES), whole[: 160 * (FRAMES - 1) + 400])


def test_tones_of_every_band(plans: Plans) -> None:
    """A pure tone has a large range between its band and the others."""
    times = np.arange(160 * FRAMES) / 16000
    for frequency in (50, 440, 1000, 3333, 7990):
        samples = np.sin(2 * np.pi * frequency * times).astype(np.float32)
        np.testing.assert_allclose(plans[0][80].run(samples)[:, :80], log_mel_reference(samples, 80, FRAMES), atol=1e-3)


def test_filters_are_triangles_of_unit_area() -> None:
    for bins in (80, 128):
        filters = mel_filters(bins)
        assert filters.shape == (bins, 201)
        assert (filters >= 0).all()
        wide = filters[bins // 2 :]
        np.testing.assert_allclose(wide.sum(axis=1) * 40, 1, atol=0.12)  # 40 Hz between frequencies


@given(
    seed=st.integers(0, 2**32 - 1),
    heads=st.integers(1, 5),
    rows=st.integers(1, 12),
    frames=st.integers(1, 70),
    equal=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_alignment(plans: Plans, seed: int, heads: int, rows: int, frames: int, equal: bool) -> None:
    """Also where many numbers are equal, so that paths must break ties alike."""
    random = np.random.default_rng(seed)
    weights = random.standard_normal((heads, rows, frames)).astype(np.float32)
    if equal:
        weights = np.rint(weights)
    smoothed = plans[1].smooth(weights)
    np.testing.assert_allclose(smoothed, smooth_reference(weights), atol=1e-6)
    for found, expected in zip(plans[1].warp(weights[0]), warp_reference(weights[0]), strict=True):
        np.testing.assert_array_equal(found, expected)
    path_rows, path_frames = plans[1].warp(weights[0])
    assert (path_rows[0], path_frames[0], path_rows[-1], path_frames[-1]) == (0, 0, rows - 1, frames - 1)
    assert set(zip(np.diff(path_rows).tolist(), np.diff(path_frames).tolist(), strict=True)) <= {(0, 1), (1, 0), (1, 1)}
