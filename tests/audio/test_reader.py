"""Every format, rate and number of channels becomes the same 16 kHz sound; ranges, arrays, channels apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.audio import SAMPLE_RATE, Channel, load_audio, open_audio
from edgellm.audio.reader import _regrouped
from edgellm.errors import EdgeLLMError, InvalidSettingError


def tone(seconds: float, rate: int, frequency: float = 440.0, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


KINDS = {
    "8-bit.wav": ({"subtype": "PCM_U8"}, 0.02),
    "16-bit.wav": ({"subtype": "PCM_16"}, 1e-3),
    "24-bit.wav": ({"subtype": "PCM_24"}, 1e-3),
    "float.wav": ({"subtype": "FLOAT"}, 1e-3),
    "double.wav": ({"subtype": "DOUBLE"}, 1e-3),
    "a-law.wav": ({"subtype": "ALAW"}, 0.03),
    "plain.flac": ({}, 1e-3),
    "plain.aiff": ({}, 1e-3),
    "vorbis.ogg": ({}, 0.05),
    "plain.mp3": ({}, 0.08),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_every_format_gives_the_same_sound(write, name: str, rate: int) -> None:
    options, tolerance = KINDS[name]
    path = write(name, tone(1.5, rate), rate, **options)
    samples = load_audio(path)
    assert samples.dtype == np.float32
    assert abs(len(samples) - 1.5 * SAMPLE_RATE) <= 1
    inner = slice(2000, 22000)  # the ends ring: filter of the resampler, blocks of the codecs
    assert np.abs(samples[inner] - tone(1.5, SAMPLE_RATE)[inner]).max() < tolerance


@pytest.mark.parametrize(("rate", "channels"), [(192_000, 8), (96_000, 2), (22_050, 1), (11_025, 6), (1_000, 3)])
def test_rates_and_channels(write, rate: int, channels: int) -> None:
    """The mean of the channels, in the right length; a tone that all share keeps its level."""
    one = tone(1.0, rate, frequency=100)
    path = write("many.wav", np.repeat(one[:, None], channels, 1), rate, subtype="FLOAT")
    samples = load_audio(path)
    assert abs(len(samples) - SAMPLE_RATE) <= 16
    assert np.abs(samples[1600:-1600] - tone(1.0, SAMPLE_RATE, frequency=100)[1600 : len(samples) - 1600]).max() < 2e-3


def test_channels_apart(write) -> None:
    both = np.stack([tone(1.0, 44_100, 300), tone(1.0, 44_100, 1000)], 1)
    with open_audio(write("two.flac", both, 44_100), split_channels=True) as reader:
        assert (reader.info.channels, reader.info.sample_rate) == (2, 44_100)
        blocks = list(reader.blocks(3000))
    assert all(block.shape == (3000, 2) for block in blocks[:-1])
    samples = np.concatenate(blocks)[2000:14000]
    for channel, frequency in enumerate((300, 1000)):
        assert np.abs(samples[:, channel] - tone(1.0, 16_000, frequency)[2000:14000]).max() < 1e-3


def test_one_channel(write) -> None:
    both = np.stack([tone(1.0, 44_100, 300), tone(1.0, 44_100, 1000)], 1)
    path = write("two.wav", both, 44_100)
    with open_audio(path, split_channels=True) as reader:
        apart = np.concatenate(list(reader.blocks()))
    for number in range(2):
        np.testing.assert_allclose(load_audio(Channel(path, number)), apart[:, number], atol=1e-6)
        np.testing.assert_allclose(load_audio(Channel(both[:, ::-1], 1 - number)), both[:, number], atol=1e-6)
    for number in (-1, 2):
        with pytest.raises(InvalidSettingError, match=rf"two.wav has no channel {number}: it has 2"):
            load_audio(Channel(path, number))


def test_mono_with_channels_apart_has_one_column(write) -> None:
    with open_audio(write("one.wav", tone(0.5, 16_000), 16_000), split_channels=True) as reader:
        assert [block.shape for block in reader.blocks(4000)] == [(4000, 1), (4000, 1)]


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_a_range_is_the_same_as_in_the_whole(write, name: str) -> None:
    rng = np.random.default_rng(0)
    path = write(name, np.cumsum(rng.normal(size=44_100 * 4)) % 1 * 0.2, 44_100)
    whole = load_audio(path)
    part = load_audio(path, 1.25, 2.5)
    assert len(part) == 20_000
    assert np.abs(part[1000:-1000] - whole[21_000:39_000]).max() < (1e-3 if name[-3:] in ("wav", "lac") else 0.05)


def test_range_to_the_end_and_beyond(write) -> None:
    path = write("a.wav", tone(1.0, 16_000), 16_000)
    assert len(load_audio(path, 0.75)) == 4000
    assert len(load_audio(path, 0.75, 10)) == 4000
    with pytest.raises(InvalidSettingError, match=r"nothing is left of .*a\.wav, which is 1\.00 s long after 2 s"):
        load_audio(path, 2.0)


@pytest.mark.parametrize(
    ("start", "end"), [(-1, None), (float("nan"), None), (2, 1), (1, 1), (0, float("inf")), (0, -1)]
)
def test_impossible_ranges(start: float, end: float | None) -> None:
    with pytest.raises(InvalidSettingError):
        load_audio(np.zeros(100, np.float32), start, end)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([0.5, -0.25]), [0.5, -0.25]),
        (np.array([16384, -32768], np.int16), [0.5, -1.0]),
        (np.array([2**30, -(2**31)], np.int32), [0.5, -1.0]),
        (np.array([128, 192, 0], np.uint8), [0.0, 0.5, -1.0]),
        (np.array([[0.5, 0.0], [0.0, -1.0]], np.float16), [0.25, -0.5]),
        (np.array([np.nan, np.inf, -np.inf, 1e300, 7.0]), [0.0, 1.0, -1.0, 1.0, 1.0]),
        (np.array([], np.float32), None),
    ],
)
def test_arrays(array: np.ndarray, expected: list[float] | None) -> None:
    if expected is None:
        with pytest.raises(EdgeLLMError, match="holds no sound"):
            load_audio(array)
    else:
        assert load_audio(array).tolist() == expected


@pytest.mark.parametrize("array", [np.zeros((2, 2, 2)), np.zeros(4, complex), np.array(["a"]), np.zeros(4, bool)])
def test_arrays_that_are_no_sound(array: np.ndarray) -> None:
    with pytest.raises(InvalidSettingError, match="an array of sound has shape"):
        load_audio(array)


def test_array_with_a_rate_of_its_own() -> None:
    with open_audio(tone(1.0, 8000).astype(np.float32), sample_rate=8000) as reader:
        samples = np.concatenate(list(reader.blocks()))
    assert np.abs(samples[1000:15_000] - tone(1.0, 16_000)[1000:15_000]).max() < 1e-3


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 40))
def test_regrouping_loses_nothing(lengths: list[int], size: int) -> None:
    samples = np.arange(sum(lengths), dtype=np.float32)[:, None]
    parts = iter(np.split(samples, np.cumsum(lengths)[:-1]) if lengths else [])
    blocks = list(_regrouped(parts, size))
    assert all(len(block) == size for block in blocks[:-1])
    assert np.array_equal(np.concatenate([samples[:0], *blocks]), samples)


def test_a_reader_is_read_once(write) -> None:
    with open_audio(write("a.wav", tone(0.1, 16_000), 16_000)) as reader:
        assert reader.duration == pytest.approx(0.1)
        assert sum(map(len, reader.blocks())) == reader.samples_read == 1600
        with pytest.raises(EdgeLLMError, match="read once"):
            next(reader.blocks())


def test_m4a_and_webm(write, tmp_path: Path) -> None:
    """What FFmpeg encodes comes back, through the optional package."""
    import av

    source = (tone(2.0, 48_000) * 32767).astype(np.int16)
    for name, codec in (("a.m4a", "aac"), ("a.webm", "libopus"), ("a.mkv", "flac")):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=48_000, layout="stereo")
            for first in range(0, len(source), 960):
                both = np.repeat(source[None, first : first + 960], 2, 0).reshape(1, -1, order="F")
                frame = av.AudioFrame.from_ndarray(both, format="s16", layout="stereo")
                frame.sample_rate, frame.pts = 48_000, first
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        samples = load_audio(tmp_path / name)
        assert abs(len(samples) - 32_000) < 2500
        assert np.sqrt(np.mean(samples[4000:28_000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)
        assert abs(len(load_audio(tmp_path / name, 0.5, 1.5)) - 16_000) <= 1


MISSING = """
import builtins, sys
real = builtins.__import__
def without(name, *rest, **more):
    if name.partition(".")[0] == {package!r}:
        raise ImportError("no module named " + name)
    return real(name, *rest, **more)
builtins.__import__ = without
from edgellm.audio import load_audio
from edgellm.errors import EdgeLLMError
try:
    load_audio({path!r})
except EdgeLLMError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("package", "content", "expected"),
    [
        (
            "av",
            b"\0\0\0\x20ftypM4A \0\0",
            "MPEG-4 (m4a, mp4, mov), needs the package av; pip install 'edgellm[av]'",
        ),
        (
            "soundfile",
            b"RIFF",
            "the package soundfile (no module named soundfile); pip install 'edgellm[speech]'",
        ),
    ],
)
def test_a_missing_package_is_named(tmp_path: Path, package: str, content: bytes, expected: str) -> None:
    path = tmp_path / "x.m4a"
    path.write_bytes(content)
    code = MISSING.format(package=package, path=str(path))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert expected in result.stdout
