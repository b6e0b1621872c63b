"""The features: kernel against NumPy, NumPy against Kaldi's own code."""

from __future__ import annotations

from functools import cache

import kaldi_native_fbank
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import TIERS
from numpy.typing import NDArray

from edgellm.diarization.features import SCRATCH_BYTES, Fbank, fbank, frames_in
from edgellm.errors import InvalidSettingError
from edgellm.folders import kernels_folder
from edgellm.kernels import fbank as kernel_module
from edgellm.kernels.library import KernelLibrary
from edgellm.kernels.target import target_for


def _kaldi(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.samp_freq = 16000
    options.mel_opts.num_bins = 80
    computer = kaldi_native_fbank.OnlineFbank(options)
    computer.accept_waveform(16000, samples.tolist())
    computer.input_finished()
    return np.stack([computer.get_frame(number) for number in range(computer.num_frames_ready)])


@cache
def _kernel(tier: str) -> Fbank:
    try:
        library = KernelLibrary(target_for(tier), kernels_folder())
    except InvalidSettingError as error:
        pytest.skip(str(error))
    return Fbank(library.load(["fbank.kaldi"])["fbank.kaldi"], library)


@pytest.mark.parametrize("count", [400, 401, 559, 560, 2960, 16_017])
def test_reference_is_kaldis(count: int) -> None:
    samples = np.random.default_rng(count).uniform(-0.5, 0.5, count).astype(np.float32)
    np.testing.assert_allclose(fbank(samples), _kaldi(samples), atol=2e-3)


def test_reference_is_kaldis_on_a_tone_and_on_speech(shared: object) -> None:
    from edgellm.audio import load_audio

    tone = (0.3 * np.sin(2 * np.pi * 440 / 16000 * np.arange(8000))).astype(np.float32)
    # Between a pure tone's harmonics there is only rounding, of which the logarithm makes much.
    np.testing.assert_allclose(np.exp(fbank(tone)), np.exp(_kaldi(tone)), rtol=2e-3, atol=1e-4)
    speech = load_audio(shared / "audio" / "conversations" / "sample.wav", 7, 12)  # type: ignore[operator]
    np.testing.assert_allclose(fbank(speech), _kaldi(speech), atol=2e-3)


@pytest.mark.parametrize("tier", TIERS)
@settings(max_examples=12, deadline=None)
@given(
    count=st.integers(390, 6000),
    loudness=st.sampled_from([1.0, 0.1, 1e-4]),
    offset=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 99),
)
def test_kernel_is_the_reference(tier: str, count: int, loudness: float, offset: float, seed: int) -> None:
    noise = np.random.default_rng(seed).uniform(-1, 1, count) * loudness + offset
    samples = np.clip(noise, -1, 1).astype(np.float32)
    result = _kernel(tier)(samples)
    assert result.shape == (frames_in(count), 80)
    # A constant offset costs digits of the mean that is taken off.
    np.testing.assert_allclose(result, fbank(samples), atol=5e-3 if offset == 0 or loudness > 1e-3 else 0.5)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_silence_and_constants_are_the_floor(value: float) -> None:
    samples = np.full(5000, value, np.float32)
    np.testing.assert_allclose(_kernel("native")(samples), np.log(1.1920929e-07), atol=1e-4)


def test_too_short_for_a_frame() -> None:
    assert _kernel("native")(np.ones(399, np.float32)).shape == (0, 80)
    assert fbank(np.ones(0, np.float32)).shape == (0, 80)


def test_scratch_memory_is_what_the_kernel_says() -> None:
    assert SCRATCH_BYTES == kernel_module.SCRATCH_BYTES
