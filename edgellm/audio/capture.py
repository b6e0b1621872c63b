"""Sound as it comes: raw samples from a pipe, or the microphone, read by a thread of their own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from edgellm.audio.decoders import SAMPLE_RATE, Samples, check_format
from edgellm.audio.resampling import Resampler
from edgellm.errors import EdgeLLMError

_PIECE_SECONDS = 0.05
_MOST_WAITING = 600
"""Pieces that may wait, 30 s: a pipe is read no further then, of a microphone the newest is lost."""


class Capture:
    """A running source of 16 kHz mono samples; a context manager.

    Attributes:
        lost_seconds: of sound that came while too much was waiting.
    """

    def __init__(self, start: Callable[[Capture], Callable[[], None]]) -> None:
        self.lost_seconds = 0.0
        self._pieces: queue.Queue[Samples | Exception | None] = queue.Queue(_MOST_WAITING)
        self._ended = False
        self.stopped = threading.Event()
        self._stop = start(self)

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self._stop()

    def read(self, patience: float = 0.2) -> Samples | None:
        """All samples that wait, at most 1 s; an empty array after ``patience`` seconds without any; None at the end.

        Raises:
            EdgeLLMError: the source failed.
        """
        if self._ended:
            return None
        pieces: list[Samples] = []
        try:
            piece = self._pieces.get(timeout=patience)
            while True:
                if piece is None or isinstance(piece, Exception):
                    self._ended = True
                    if isinstance(piece, Exception) and not pieces:
                        raise EdgeLLMError(f"the sound broke off: {piece}") from piece
                    break
                pieces.append(piece)
                if len(pieces) * _PIECE_SECONDS >= 1:
                    break
                piece = self._pieces.get_nowait()
        except queue.Empty:
            pass
        if self._ended and not pieces:
            return None
        return np.concatenate(pieces) if pieces else np.empty(0, np.float32)

    @property
    def waiting(self) -> bool:
        """Whether more sound is there already."""
        return not self._pieces.empty()

    def put(self, piece: Samples | Exception | None, wait: bool) -> None:
        """For the source: give samples, the end (None) or a failure."""
        if isinstance(piece, np.ndarray) and not len(piece):
            return
        while not self.stopped.is_set():
            try:
                self._pieces.put(piece, timeout=0.1 if wait else 0)
                return
            except queue.Full:
                if not wait:
                    self.lost_seconds += len(piece) / SAMPLE_RATE if isinstance(piece, np.ndarray) else 0
                    return


def capture_pcm(file: BinaryIO, sample_rate: int = SAMPLE_RATE) -> Capture:
    """Raw samples, 16 bits little-endian, one channel, from a pipe of which nothing was read before.

    Raises:
        CorruptFileError: the rate is none a recording has.
    """
    check_format("standard input", sample_rate, 1)
    resampler = Resampler(sample_rate, 1)
    size = 2 * round(_PIECE_SECONDS * sample_rate)
    file = getattr(file, "raw", file)  # a reader with a buffer has a lock, which a thread that waits would hold at exit
    read = getattr(file, "read1", file.read)

    def run(capture: Capture) -> None:
        odd = b""
        try:
            while not capture.stopped.is_set() and (content := read(size)):
                content = odd + content
                odd = content[len(content) & ~1 :]
                values = np.frombuffer(content, "<i2", len(content) // 2).astype(np.float32) * np.float32(1 / 32768)
                capture.put(resampler.push(values[:, None])[:, 0], wait=True)
            capture.put(resampler.flush()[:, 0], wait=True)
            capture.put(None, wait=True)
        except (OSError, ValueError) as error:
            capture.put(error, wait=True)

    def start(capture: Capture) -> Callable[[], None]:
        threading.Thread(target=run, args=(capture,), daemon=True, name="edgellm-pcm").start()
        return lambda: None  # a thread that waits for a pipe cannot be woken; it is a daemon

    return Capture(start)


def capture_microphone(device: str | int | None = None) -> Capture:
    """The microphone: the system's, or the one named, or numbered as ``python -m sounddevice`` lists them.

    Raises:
        EdgeLLMError: the package sounddevice is missing, or there is no such microphone.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: PortAudio is missing
        raise EdgeLLMError(
            f"the microphone needs the package sounddevice and PortAudio ({error})",
            "pip install 'edgellm[mic]', on Linux also: apt install libportaudio2",
        ) from error

    def start(capture: Capture) -> Callable[[], None]:
        try:
            rate = _microphone_rate(sounddevice, device)
            resampler = Resampler(rate, 1)

            def take(samples: Any, frames: int, time: Any, status: Any) -> None:
                capture.put(resampler.push(np.array(samples, np.float32))[:, 0], wait=False)

            stream = sounddevice.InputStream(
                samplerate=rate, channels=1, dtype="float32", device=device,
                blocksize=round(_PIECE_SECONDS * rate), callback=take,
            )  # fmt: skip
            stream.start()
        except (sounddevice.PortAudioError, ValueError) as error:
            raise EdgeLLMError(
                f"the microphone cannot be opened: {error}", "`python -m sounddevice` lists what there is"
            ) from error
        return lambda: stream.close()

    return Capture(start)


def _microphone_rate(sounddevice: Any, device: str | int | None) -> int:
    """16 kHz where the device takes it, else its own rate."""
    try:
        sounddevice.check_input_settings(device=device, channels=1, dtype="float32", samplerate=SAMPLE_RATE)
        return SAMPLE_RATE
    except (sounddevice.PortAudioError, ValueError):
        return round(float(sounddevice.query_devices(device, "input")["default_samplerate"]))
