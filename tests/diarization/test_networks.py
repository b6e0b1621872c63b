"""The networks: ONNX graphs against the layers written out in NumPy."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import TIERS
from network_reference import embed_reference, segment_reference

from edgellm.diarization import Diarizer
from edgellm.diarization.checkpoint import Tensors, read_checkpoint
from edgellm.diarization.models import EMBEDDING_FILE
from edgellm.diarization.segmentation_network import (
    CLASSES,
    FRAMES,
    STEP_SAMPLES,
    WINDOW_SAMPLES,
    WINDOW_STEPS,
    Fold,
    fold,
)
from edgellm.errors import InvalidSettingError
from edgellm.folders import kernels_folder
from edgellm.hub import resolve
from edgellm.kernels.library import KernelLibrary
from edgellm.kernels.target import target_for


@pytest.fixture(scope="module")
def checkpoints(diarizer: Diarizer) -> tuple[Tensors, Tensors]:
    path = Path(resolve("diarization", offline=True))
    return read_checkpoint(path), read_checkpoint(path.with_name(EMBEDDING_FILE))


@pytest.mark.parametrize("first", [0, 270])
def test_segmentation(diarizer: Diarizer, checkpoints: tuple[Tensors, Tensors], shared: Path, first: int) -> None:
    from edgellm.audio import load_audio

    # A constant offset, which the network's normalization takes off, must be dealt with where filters are shared.
    sound = load_audio(shared / "audio" / "conversations" / "sample.wav", 6, 18) + np.float32(0.02)
    models = diarizer.models
    responses = models.filters(samples=sound[None, None])[0]
    window = sound[first : first + WINDOW_SAMPLES]
    scale, shift = models.normalization.scale_and_shift(window)
    column = first // STEP_SAMPLES
    folded = np.empty((1, 80, WINDOW_STEPS), np.float32)
    models.fold(responses[:, column : column + WINDOW_STEPS], scale, shift, folded[0])
    np.testing.assert_allclose(folded[0], fold(responses[:, column : column + WINDOW_STEPS], scale, shift), atol=1e-6)
    found = models.segmentation(folded=folded)[0]
    expected = segment_reference(checkpoints[0], window)
    assert found.shape == (FRAMES, len(CLASSES))
    # The LSTM layers run on codes of 8 bits.
    difference = np.abs(np.exp(found) - np.exp(expected))
    assert difference.mean() < 0.005
    assert difference.max() < 0.1
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.98


@pytest.mark.parametrize("tier", TIERS)
@settings(max_examples=20, deadline=None)
@given(
    width=st.integers(1, 50),
    more=st.integers(0, 3),
    scale=st.sampled_from([0.01, 1.0, 1e-30, 3e4]),
    seed=st.integers(0, 99),
)
def test_fold_is_the_reference(tier: str, width: int, more: int, scale: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    wide = random.standard_normal((160, width + more)).astype(np.float32)
    responses = wide[:, more:]
    shifts = random.standard_normal(80).astype(np.float32)
    expected = fold(responses, np.float32(scale), shifts)
    room = np.full((80, width + 2), 7.0, np.float32)
    _fold_kernel(tier)(responses, np.float32(scale), shifts, room[:, :width])
    np.testing.assert_allclose(room[:, :width], expected, rtol=1e-5, atol=1e-5 * scale + 1e-6)
    assert (room[:, width:] == 7.0).all()
    with pytest.raises(ValueError, match="for"):
        _fold_kernel(tier)(responses[:100], np.float32(scale), shifts, room[:, :width])


@cache
def _fold_kernel(tier: str) -> Fold:
    try:
        library = KernelLibrary(target_for(tier), kernels_folder())
    except InvalidSettingError as error:
        pytest.skip(str(error))
    return Fold(library.load(["fold.rows"])["fold.rows"], library)


@pytest.mark.parametrize("frames", [3, 4, 30, 99, 199, 200])
def test_embedding(diarizer: Diarizer, checkpoints: tuple[Tensors, Tensors], frames: int) -> None:
    features = np.random.default_rng(frames).standard_normal((frames, 80)).astype(np.float32)
    found = diarizer.models.embedding(features=features[None])[0]
    expected = embed_reference(checkpoints[1], features)
    # Most layers run on codes of 8 bits.
    assert found @ expected > 0.99 * np.linalg.norm(found) * np.linalg.norm(expected)
    assert abs(np.linalg.norm(found) / np.linalg.norm(expected) - 1) < 0.05
