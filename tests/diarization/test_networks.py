"""The networks: ONNX graphs against the layers written out in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from network_reference import embed_reference, segment_reference

from edgellm.diarization import Diarizer
from edgellm.diarization.checkpoint import Tensors, read_checkpoint
from edgellm.diarization.models import EMBEDDING_FILE
from edgellm.diarization.segmentation_network import CLASSES, FRAMES, STEP_SAMPLES, WINDOW_SAMPLES, WINDOW_STEPS
from edgellm.hub import resolve


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
    found = models.segmentation(
        responses=responses[None, :, column : column + WINDOW_STEPS],
        scale=np.full((1, 1, 1), scale, np.float32),
        shift=shift[None],
    )[0]
    expected = segment_reference(checkpoints[0], window)
    assert found.shape == (FRAMES, len(CLASSES))
    np.testing.assert_allclose(np.exp(found), np.exp(expected), atol=2e-4)


@pytest.mark.parametrize("frames", [2, 3, 30, 99, 199, 200])
def test_embedding(diarizer: Diarizer, checkpoints: tuple[Tensors, Tensors], frames: int) -> None:
    features = np.random.default_rng(frames).standard_normal((frames, 80)).astype(np.float32)
    found = diarizer.models.embedding(features=features[None])[0]
    expected = embed_reference(checkpoints[1], features)
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())
