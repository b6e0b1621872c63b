"""Files from strangers: each gives sound, or an error in one line; never a crash, a hang, or memory without bound."""

from __future__ import annotations

import logging
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.audio import load_audio, open_audio
from edgellm.errors import CorruptFileError, EdgeLLMError, InvalidSettingError

ONE_LINE = "[^\n]+"


def wav(samples: bytes, *, rate: int = 16_000, channels: int = 1, bits: int = 16, said: int | None = None) -> bytes:
    """A wav file, its header saying what it is told to."""
    frame = channels * bits // 8
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * frame & 0xFFFFFFFF, frame, bits)
    size = len(samples) if said is None else said
    body = b"WAVE" + form + struct.pack("<4sI", b"data", size) + samples
    return b"RIFF" + struct.pack("<I", min(4 + 24 + 8 + size, 0xFFFFFFFF)) + body


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.wav", b"", "empty.wav is empty; is it still being written?"),
        ("none.wav", wav(b""), "none.wav holds no sound"),
        ("garbage.wav", bytes(range(256)) * 50, "garbage.wav is not a sound file that can be read: Format not recogni"),
        ("noise.mp3", np.random.default_rng(3).bytes(50_000), "noise.mp3 is not a sound file that can be read: Format"),
        ("text.mp3", b"hello\n", "text.mp3 is not a sound file"),
        ("head.flac", b"fLaC\0\0\0\x22", "head.flac cannot be decoded"),
        ("head.ogg", b"OggS\0\2" + b"\0" * 40, "head.ogg cannot be decoded"),
        ("head.m4a", b"\0\0\0\x20ftypM4A " + b"\0" * 99, "head.m4a cannot be decoded: Invalid data found"),
        ("head.webm", b"\x1a\x45\xdf\xa3" + b"\0" * 99, "head.webm cannot be decoded"),
        (
            "list.m3u8",
            b"#EXTM3U\n#EXTINF:9,\nhttp://localhost:1/a.ts\n",
            "is not a sound file",
        ),
        ("samples.raw", b"\0" * 1000, "samples.raw is not a sound file that can be read: it has no header"),
        ("slow.wav", wav(b"\0" * 100, rate=3), "slow.wav claims 3 samples per second, expected 1000 to 1000000"),
        ("fast.wav", wav(b"\0" * 100, rate=2**31 - 1), "fast.wav claims 2147483647 samples per second"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(EdgeLLMError, match=ONE_LINE) as caught:
        load_audio(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_things_that_are_no_files(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "is not a file"),
        (tmp_path / "no.wav", "there is no file"),
        ("a\0b.wav", "a\\x00b"),
    ):
        with pytest.raises(EdgeLLMError) as caught:
            load_audio(path)
        assert message in str(caught.value) or "there is no file" in str(caught.value)


@pytest.mark.parametrize("source", [[0.0, 0.1], ["a.wav", "b.wav"], b"a.wav", None, 3, (0.0,)])
def test_things_that_are_neither_paths_nor_arrays(source: object) -> None:
    with pytest.raises(InvalidSettingError, match=f"NumPy array of samples, not a {type(source).__name__}; np.asarray"):
        load_audio(source)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 192_000])
def test_one_sample(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "one.wav"
    path.write_bytes(wav(b"\1\0", rate=rate))
    assert len(load_audio(path)) <= 2


@pytest.mark.parametrize("said", [0xFFFFFFFF, 0x7FFFFFFF, 2**31])
def test_a_length_that_is_not_known_yet(tmp_path: Path, said: int, caplog: pytest.LogCaptureFixture) -> None:
    """Programs that write to a pipe cannot tell the length: what is there counts."""
    path = tmp_path / "piped.wav"
    path.write_bytes(wav(b"\0\1" * 8000, said=said))
    with caplog.at_level(logging.WARNING):
        assert len(load_audio(path)) == 8000
    assert not caplog.text


WITH_LENGTH = {"a.wav": "WAV", "a.aiff": "AIFF", "a.w64": "W64", "b.wav": "RF64"}


@pytest.mark.parametrize("name", ["a.flac", "a.mp3", "a.ogg", *WITH_LENGTH])
def test_truncated(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """What is there of a file that breaks off is given, with a warning."""
    noise = np.random.default_rng(1).normal(size=16_000 * 10) * 0.1
    path = tmp_path / name
    soundfile.write(path, noise, 16_000, format=WITH_LENGTH.get(name))
    content = path.read_bytes()
    with caplog.at_level(logging.WARNING):
        assert len(load_audio(path)) == len(noise)
    assert not caplog.text
    path.write_bytes(content[: len(content) // 2])
    with caplog.at_level(logging.WARNING):
        samples = load_audio(path)
    assert 3.5 * 16_000 < len(samples) < 6.5 * 16_000
    assert f"{name} breaks off after" in caplog.text
    if name in WITH_LENGTH:
        assert "its header speaks of 10.00 s" in caplog.text
    with pytest.raises(EdgeLLMError, match=f"{name} breaks off before 8 s: "):
        load_audio(path, start=8)


def test_a_header_alone(tmp_path: Path) -> None:
    """What cannot be decoded at all is told with what to do."""
    path = tmp_path / "a.flac"
    soundfile.write(path, np.zeros(1600), 16_000)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(CorruptFileError, match="fetch or save it again"):
        load_audio(path)


def test_values_that_are_no_numbers_are_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.wav"
    samples = np.full(100_000, np.nan, np.float32)
    samples[50_000:60_000] = 0.5
    soundfile.write(path, samples, 16_000, subtype="FLOAT")
    with caplog.at_level(logging.WARNING):
        heard = load_audio(path)
    assert (heard[50_000:60_000] == 0.5).all()
    assert not heard[:50_000].any()
    assert caplog.text.count("no numbers") == 1


def test_damaged_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(1).normal(size=160_000) * 0.1, 16_000)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 300] = b"\xff" * 300
    path.write_bytes(content)
    assert len(load_audio(path)) > 16_000


MAGICS = [
    b"RIFF\0\0\0\0WAVEfmt ", b"fLaC", b"OggS", b"\xff\xfb\x90", b"ID3\4", b"FORM\0\0\0\0AIFF", b"\0\0\0\x18ftypmp42",
    b"\x1a\x45\xdf\xa3", b"\xff\xf1", b"#!AMR", b"FLV", b".snd", b"caff",
]  # fmt: skip
SOURCES = {"wav": {}, "flac": {}, "ogg": {}, "mp3": {}, "aiff": {}, "au": {}, "caf": {}, "w64": {}}


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    noise = np.random.default_rng(1).normal(size=(4000, 2)) * 0.1
    for name in SOURCES:
        soundfile.write(folder / f"a.{name}", noise, 22_050)
    return {name: (folder / f"a.{name}").read_bytes() for name in SOURCES}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(SOURCES)), st.data())
def test_damaged_headers(tmp_path: Path, whole_files: dict[str, bytes], kind: str, data: st.DataObject) -> None:
    """Bytes of the first 200 changed, some of the rest cut off: sound within reason, or an error in one line."""
    content = bytearray(whole_files[kind])
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=8)):
        content[min(place, len(content) - 1)] = value
    keep = data.draw(st.integers(0, len(content)))
    path = tmp_path / f"a.{kind}"
    path.write_bytes(content[:keep] if data.draw(st.booleans()) else content)
    try:
        with open_audio(path) as reader:
            count = sum(len(block) for block in reader.blocks())
    except EdgeLLMError as error:
        assert "\n" not in str(error)
    else:
        # At most the samples there are, at the lowest rate that is allowed.
        assert count <= 2 * len(whole_files[kind]) * 8 * 16


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(MAGICS), st.binary(max_size=400))
def test_garbage_behind_a_known_beginning(tmp_path: Path, magic: bytes, rest: bytes) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(magic + rest)
    try:
        load_audio(path)
    except EdgeLLMError as error:
        assert "\n" not in str(error)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """An hour at 16 kHz, 115 MB on disk, is read in a few MB."""
    path = tmp_path / "hour.wav"
    with path.open("wb") as file:
        file.write(wav(b"", said=3600 * 32_000))
        file.truncate(44 + 3600 * 32_000)
    code = (
        "import resource, sys\nfrom edgellm.audio import load_audio, open_audio\nimport numpy as np, soundfile, soxr\n"
        "load_audio(np.zeros(99999))\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with open_audio(sys.argv[1]) as reader: count = sum(len(b) for b in reader.blocks())\n"
        "print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    count, grown = map(int, result.stdout.split())
    assert count == 3600 * 16_000
    assert grown < 20_000  # kB


def test_too_many_channels(tmp_path: Path) -> None:
    path = tmp_path / "many.wav"
    path.write_bytes(wav(b"\0" * 8000, channels=4000))
    with pytest.raises(CorruptFileError, match=r"many\.wav"):
        load_audio(path)
