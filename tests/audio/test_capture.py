"""Sound from a pipe: all of it arrives, at any rate, however it is portioned; a stopped reader lets go."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from edgellm.audio.capture import Capture, capture_pcm
from edgellm.errors import CorruptFileError, EdgeLLMError


def everything(capture: Capture) -> np.ndarray:
    parts = []
    with capture:
        while (part := capture.read(5)) is not None:
            parts.append(part)
    assert capture.read() is None
    return np.concatenate([np.empty(0, np.float32), *parts])


def test_samples_arrive() -> None:
    values = np.random.default_rng(0).integers(-32768, 32767, 100_000).astype("<i2")
    samples = everything(capture_pcm(io.BytesIO(values.tobytes())))
    assert np.array_equal(samples, values.astype(np.float32) / 32768)


def test_odd_portions_and_an_odd_end() -> None:
    values = np.arange(5000).astype("<i2")
    content = values.tobytes() + b"\1"
    reader, writer = os.pipe()

    def write() -> None:
        for first in range(0, len(content), 333):
            os.write(writer, content[first : first + 333])
        os.close(writer)

    threading.Thread(target=write).start()
    with os.fdopen(reader, "rb") as file:
        assert np.array_equal(everything(capture_pcm(file)), values.astype(np.float32) / 32768)


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000])
def test_other_rates(rate: int) -> None:
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    samples = everything(capture_pcm(io.BytesIO((wave * 32767).astype("<i2").tobytes()), rate))
    assert abs(len(samples) - 16_000) <= 1
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert np.abs(samples[1000:15_000] - expected[1000:15_000]).max() < 2e-3


def test_nothing_in_the_pipe() -> None:
    assert len(everything(capture_pcm(io.BytesIO(b"")))) == 0


def test_patience_ends_without_sound() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as file, capture_pcm(file) as capture:
        assert len(capture.read(0.05)) == 0  # type: ignore[arg-type]
        assert not capture.waiting
        os.write(writer, b"\0\1" * 10)
        assert len(capture.read(5)) == 10  # type: ignore[arg-type]
        os.close(writer)
        assert capture.read(5) is None


def test_a_fast_pipe_waits_for_its_reader() -> None:
    """A pipe that holds hours is not read into memory: what waits is bounded."""

    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            Endless.given += size
            return b"\0" * size

    with capture_pcm(Endless()) as capture:  # type: ignore[arg-type]
        time.sleep(0.5)
        assert Endless.given <= 31 * 32_000
        assert len(capture.read()) == 16_000  # type: ignore[arg-type]
    given = Endless.given
    time.sleep(0.3)
    assert Endless.given <= given + 3200  # the thread has ended


def test_a_pipe_that_fails() -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError("gone")

    with capture_pcm(Broken()) as capture, pytest.raises(EdgeLLMError, match="the sound broke off: gone"):  # type: ignore[arg-type]
        while capture.read(5) is not None:
            pass


def test_rates_out_of_range() -> None:
    with pytest.raises(CorruptFileError, match="standard input claims 7 samples per second"):
        capture_pcm(io.BytesIO(b""), 7)


def test_what_comes_too_fast_from_a_device_is_counted_as_lost() -> None:
    def start(capture: Capture):  # type: ignore[no-untyped-def]
        for _ in range(700):
            capture.put(np.zeros(800, np.float32), wait=False)
        return lambda: None

    with Capture(start) as capture:
        assert capture.lost_seconds == pytest.approx(100 * 0.05)


def test_a_pipe_that_stays_open_does_not_keep_a_program_from_ending() -> None:
    program = (
        "import sys, time; from edgellm.audio.capture import capture_pcm\n"
        "with capture_pcm(sys.stdin.buffer): time.sleep(0.3)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.wait(60) == 0
        assert process.stderr.read() == b""
