"""Where samples come from: files that libsndfile reads, and arrays. Each gives blocks at its own rate and channels."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgellm.errors import CorruptFileError, EdgeLLMError, InvalidSettingError

log = logging.getLogger(__name__)

SAMPLE_RATE = 16_000
"""Samples per second of everything this package gives out: what Whisper and the speech models take."""

Samples = npt.NDArray[np.float32]

LOWEST_RATE, HIGHEST_RATE = 1_000, 1_000_000
MOST_CHANNELS = 1_024
_BLOCK_VALUES = 1 << 14
"""Samples of all channels decoded at once. Where a file is damaged, a whole block is lost: so not many."""


_CUT_OFF = re.compile(  # what libsndfile logs of a wav, a w64, an aiff and an RF64 file
    r"^(?:data|riff| SSND) : (?P<claimed>\d{1,20}) \(should be (?P<there>\d{1,20})\)$"
    r"|^\*\*\* Calculated frame count (?P<frames>\d{1,20}) does not match value "
    r"from 'ds64' chunk of (?P<told>\d{1,20})",
    re.MULTILINE,
)
_UNKNOWN_BYTES = 0x7FFFFF00
"""Lengths from here on are what programs write that do not know it yet."""
_CUT_OFF_OGG = ("Last page lacks an end-of-stream bit", "Junk after the last page")


@dataclass(frozen=True)
class AudioInfo:
    """What a sound says of itself.

    Attributes:
        name: as it was given; ``array`` for samples in memory.
        sample_rate: of the source, in Hz.
        channels: of the source.
        duration: in seconds; None where the source does not tell. A damaged file may hold less.
        encoding: such as ``FLAC, PCM_16``.
    """

    name: str
    sample_rate: int
    channels: int
    duration: float | None
    encoding: str


class Decoder(Protocol):
    """A source of samples."""

    @property
    def info(self) -> AudioInfo: ...

    def blocks(self, start: float) -> Iterator[Samples]:
        """Samples (frames, channels) from ``start`` seconds on, of any magnitude. May be called once."""

    def close(self) -> None: ...


def check_format(name: str, sample_rate: int, channels: int) -> None:
    """Refuse rates and numbers of channels that no recording has.

    Raises:
        CorruptFileError: they are out of range.
    """
    if not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
        raise CorruptFileError(
            f"{name} claims {sample_rate} samples per second, expected {LOWEST_RATE} to {HIGHEST_RATE}",
            "save it anew at a usual rate such as 16000",
        )
    if not 1 <= channels <= MOST_CHANNELS:
        raise CorruptFileError(f"{name} claims {channels} channels, expected 1 to {MOST_CHANNELS}", "save it anew")


def import_soundfile() -> Any:
    """The package soundfile.

    Raises:
        EdgeLLMError: it is not installed.
    """
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: its native library does not load
        raise EdgeLLMError(
            f"reading sound files needs the package soundfile ({error})", "pip install 'edgellm[speech]'"
        ) from error
    return soundfile


def _forward_reader(soundfile: Any) -> Any:
    """The class of open sound files, without what it does after every read to files that can be entered anywhere.

    That is to go to where it is already, which in the midst of an mp3 loses what the next frame builds on.
    """

    class ForwardReader(soundfile.SoundFile):  # type: ignore[misc]
        def seekable(self) -> bool:
            return False

    return ForwardReader


class UnknownFormatError(EdgeLLMError):
    """The file is none that libsndfile reads."""


class SoundFileDecoder:
    """wav, flac, ogg, mp3, aiff and what else libsndfile reads.

    Raises:
        UnknownFormatError: it is something else.
        CorruptFileError: it is damaged, or claims what no sound is.
    """

    def __init__(self, path: Path) -> None:
        soundfile = import_soundfile()
        self._error: type[Exception] = soundfile.LibsndfileError
        try:
            self._file: Any = _forward_reader(soundfile)(path)
        except soundfile.LibsndfileError as error:
            raise UnknownFormatError(_reason(error)) from error
        except TypeError as error:  # headerless formats, told by the file's ending
            raise UnknownFormatError("it has no header that tells rate and format") from error
        try:
            check_format(str(path), self._file.samplerate, self._file.channels)
        except CorruptFileError:
            self._file.close()
            raise
        # libsndfile says the largest number it knows where a header does not tell.
        told = 0 <= self._file.frames < 1 << 62
        log_text = str(self._file.extra_info)
        duration = _claimed_frames(self._file.frames, log_text) / self._file.samplerate if told else None
        self._cut_off = all(sign in log_text for sign in _CUT_OFF_OGG)
        encoding = f"{self._file.format}, {self._file.subtype}"
        self.info = AudioInfo(str(path), self._file.samplerate, self._file.channels, duration, encoding)

    def blocks(self, start: float) -> Iterator[Samples]:
        frames = max(1, _BLOCK_VALUES // self.info.channels)
        block = np.empty((frames, self.info.channels), np.float32)
        skip = self._seek(round(start * self.info.sample_rate))
        while True:
            try:
                read = self._file.read(dtype="float32", always_2d=True, out=block)
            except (self._error, RuntimeError) as error:
                raise CorruptFileError(_reason(error)) from error
            if not len(read):
                break
            if skip < len(read):
                yield read[skip:]
            skip = max(0, skip - len(read))
        if self._cut_off:
            raise CorruptFileError("its last page is not whole")

    def _seek(self, frame: int) -> int:
        """Go to a frame; returns how many are left to be read over, where the file cannot be entered anywhere."""
        if frame == 0:
            return 0
        if self._file.format in ("MPEG", "MP3") or (self.info.duration is not None and frame >= self._file.frames):
            return frame
        try:
            self._file.seek(frame)
        except (self._error, RuntimeError):
            return frame
        return 0

    def close(self) -> None:
        self._file.close()


class ArrayDecoder:
    """Samples in memory: (frames,) or (frames, channels), floats from -1 to 1 or integers over their whole range.

    Raises:
        InvalidSettingError: it is not such an array.
    """

    def __init__(self, array: npt.NDArray[Any], sample_rate: int) -> None:
        if array.ndim not in (1, 2) or array.dtype.kind not in "fiu":
            raise InvalidSettingError(
                f"an array of sound has shape (samples,) or (samples, channels) and holds numbers, not {array.dtype} "
                f"of shape {array.shape}"
            )
        self._array = array[:, None] if array.ndim == 1 else array
        check_format("array", sample_rate, self._array.shape[1])
        duration = len(array) / sample_rate
        self.info = AudioInfo("array", sample_rate, self._array.shape[1], duration, str(array.dtype))

    def blocks(self, start: float) -> Iterator[Samples]:
        step = max(1, _BLOCK_VALUES // self.info.channels)
        for first in range(round(start * self.info.sample_rate), len(self._array), step):
            yield _to_float(self._array[first : first + step])

    def close(self) -> None:
        pass


def _to_float(block: npt.NDArray[Any]) -> Samples:
    kind = block.dtype
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            return block.astype(np.float32)
    half = float(1 << (8 * kind.itemsize - 1))
    values = block.astype(np.float64) / half
    return (values - 1 if kind.kind == "u" else values).astype(np.float32)


def _claimed_frames(frames: int, log_text: str) -> int:
    """How many frames a file was to have, of which libsndfile counts those that are there; its log tells of some."""
    found = _CUT_OFF.search(log_text)
    if found is None:
        return frames
    claimed, there = int(found["claimed"] or found["told"]), int(found["there"] or found["frames"])
    return frames * claimed // there if 0 < there < claimed < _UNKNOWN_BYTES else frames


def _reason(error: Exception) -> str:
    """What libsndfile says, without the file's name."""
    text = str(getattr(error, "error_string", None) or error)
    if "not a regular file" in text:  # it is one: what libsndfile says where it tried mp3 in vain
        return "Format not recognised"
    return text.strip().removeprefix("Error : ").rstrip(".") or type(error).__name__
