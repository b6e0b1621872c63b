"""Opening a sound: any file or array becomes a stream of 16 kHz float32 blocks, in bounded memory."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgellm.audio.containers import ContainerDecoder, container_of
from edgellm.audio.decoders import (
    SAMPLE_RATE,
    ArrayDecoder,
    AudioInfo,
    Decoder,
    Samples,
    SoundFileDecoder,
    UnknownFormatError,
)
from edgellm.audio.resampling import Resampler
from edgellm.errors import CorruptFileError, EdgeLLMError, InvalidSettingError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Channel:
    """One channel of a file or an array, counted from 0."""

    source: str | os.PathLike[str] | npt.NDArray[Any]
    number: int


AudioSource = str | os.PathLike[str] | npt.NDArray[Any] | Channel
"""A path, or samples: (samples,) or (samples, channels); or one channel of either."""

_LONGEST_SECONDS = 1e7
_DAMAGED = "it may be damaged or cut off: fetch or save it again"


class AudioReader:
    """A sound being read, once, from its beginning to its end.

    Attributes:
        info: what the source says of itself.
        start: where reading began, in seconds of the source.
        samples_read: how many 16 kHz samples were given out so far.
    """

    def __init__(
        self, decoder: Decoder, start: float, end: float | None, split_channels: bool, channel: int | None = None
    ) -> None:
        self.info: AudioInfo = decoder.info
        self.start = start
        self.samples_read = 0
        self._decoder = decoder
        self._end = end
        self._channel = channel
        self._split = split_channels and self.info.channels > 1 and channel is None
        self._columns = split_channels
        self._begun = False
        self._all_numbers = True

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._decoder.close()

    @property
    def duration(self) -> float | None:
        """Seconds that will be read, as far as the source tells; None if it does not."""
        whole = self.info.duration
        if whole is None:
            return None
        return max(0.0, (whole if self._end is None else min(whole, self._end)) - self.start)

    def blocks(self, samples: int = SAMPLE_RATE) -> Iterator[Samples]:
        """The sound in blocks of ``samples`` samples, the last one shorter.

        Each is float32 from -1 to 1, of shape (samples,), or (samples, channels) where channels were to be split.

        Raises:
            CorruptFileError: nothing can be read, or there is nothing in it. Where a file breaks off later, a
                warning is logged and the sound ends there.
            InvalidSettingError: it ends before ``start``.
        """
        if self._begun:
            raise EdgeLLMError("a sound can be read once", "open it again")
        self._begun = True
        for block in _regrouped(self._resampled(), samples):
            self.samples_read += len(block)
            yield block if self._columns else block[:, 0]

    def _resampled(self) -> Iterator[Samples]:
        resampler = Resampler(self.info.sample_rate, self.info.channels if self._split else 1)
        for block in self._decoded():
            yield np.clip(resampler.push(block), -1.0, 1.0)  # the filter overshoots at full scale
        yield np.clip(resampler.flush(), -1.0, 1.0)

    def _decoded(self) -> Iterator[Samples]:
        """What is wanted of the source at its own rate: (frames, 1), or all channels."""
        rate, decoded = self.info.sample_rate, 0
        left = None if self._end is None else round((self._end - self.start) * rate)
        try:
            for block in self._decoder.blocks(self.start):
                if left is not None:
                    block = block[: left - decoded]
                decoded += len(block)
                yield self._tidied(block)
                if left is not None and decoded >= left:
                    return
        except CorruptFileError as error:
            if not decoded:
                problem = f"breaks off before {self.start:g} s" if self.start > 0 else "cannot be decoded"
                raise CorruptFileError(
                    f"{self.info.name} {problem}: {error.message}", error.hint or _DAMAGED
                ) from error
            self._warn(decoded, error.message)
            return
        if not decoded:
            raise self._nothing()
        expected = self.duration
        if expected is not None and decoded / rate < min(0.98 * expected, expected - 0.5):
            self._warn(decoded, f"its header speaks of {self.start + expected:.2f} s")

    def _tidied(self, block: Samples) -> Samples:
        """Values that are no numbers are silence, what is too loud is clipped; one channel, or the mean of all."""
        if self._channel is not None:
            block = block[:, self._channel : self._channel + 1]
        clipped = np.clip(block, -1.0, 1.0)
        if np.isnan(np.dot(clipped.ravel(), clipped.ravel())):  # one pass, without a temporary array
            np.nan_to_num(clipped, copy=False, nan=0.0)
            if self._all_numbers:
                self._all_numbers = False
                log.warning("%s holds values that are no numbers; they count as silence", self.info.name)
        if self._split or clipped.shape[1] == 1:
            return clipped
        return np.asarray(clipped @ np.full((clipped.shape[1], 1), 1 / clipped.shape[1], np.float32), np.float32)

    def _warn(self, decoded: int, reason: str) -> None:
        seconds = self.start + decoded / self.info.sample_rate
        log.warning("%s breaks off after %.2f s: %s", self.info.name, seconds, reason)

    def _nothing(self) -> EdgeLLMError:
        name, whole = self.info.name, self.info.duration
        if whole is not None and whole > self.start > 0:
            return CorruptFileError(f"{name} breaks off before {self.start:g} s: its header speaks of {whole:.2f} s")
        if self.start > 0:
            length = "" if whole is None else f", which is {whole:.2f} s long"
            return InvalidSettingError(f"nothing is left of {name}{length} after {self.start:g} s")
        return CorruptFileError(f"{self.info.name} holds no sound")


def open_audio(
    source: AudioSource,
    *,
    start: float = 0.0,
    end: float | None = None,
    split_channels: bool = False,
    sample_rate: int = SAMPLE_RATE,
) -> AudioReader:
    """Open a sound of any rate and number of channels; its blocks come at 16 kHz.

    Args:
        source: a file (wav, flac, ogg, mp3 by soundfile; m4a, mp4, webm and so on by av), or an array.
        start: seconds of the source to leave out at its beginning.
        end: second of the source to stop at; None reads to its end.
        split_channels: give blocks (samples, channels) rather than the mean of the channels.
        sample_rate: of an array; files bring their own.

    Raises:
        CorruptFileError: it is no sound file, or a damaged one.
        InvalidSettingError: start or end are no times, or the source is neither a path nor an array of sound.
        EdgeLLMError: a package is missing, or the file cannot be read.
    """
    _check_range(start, end)
    whole, channel = (source.source, source.number) if isinstance(source, Channel) else (source, None)
    decoder = _open_source(whole, sample_rate)
    if channel is not None and not 0 <= channel < decoder.info.channels:
        decoder.close()
        raise InvalidSettingError(f"{decoder.info.name} has no channel {channel}: it has {decoder.info.channels}")
    return AudioReader(decoder, start, end, split_channels, channel)


def load_audio(source: AudioSource, start: float = 0.0, end: float | None = None) -> Samples:
    """A whole sound, or a range of it in seconds, as 16 kHz mono float32 samples.

    Takes 64 kB a second; :func:`open_audio` reads long files block by block.

    Raises:
        CorruptFileError: it is no sound file, or a damaged one.
        InvalidSettingError: start or end are no times in it.
        EdgeLLMError: a package is missing, or the file cannot be read.
    """
    with open_audio(source, start=start, end=end) as reader:
        blocks = list(reader.blocks())
    return np.concatenate(blocks) if blocks else np.empty(0, np.float32)


def _check_range(start: float, end: float | None) -> None:
    for name, value in (("start", start), ("end", end)):
        if value is not None and not 0 <= value <= _LONGEST_SECONDS:
            raise InvalidSettingError(f"{name} is a time in seconds, 0 or later, not {value}")
    if end is not None and not (math.isfinite(end) and end > start):
        raise InvalidSettingError(f"the end, {end:g} s, does not lie after the start, {start:g} s")


def _open_source(source: object, sample_rate: int) -> Decoder:
    """A list is refused rather than converted: of whole numbers it does not tell how loud they can be."""
    if isinstance(source, np.ndarray):
        return ArrayDecoder(source, sample_rate)
    if isinstance(source, str | os.PathLike):
        return _open_file(Path(source))
    raise InvalidSettingError(
        f"a sound is the path of one file or a NumPy array of samples, not a {type(source).__name__}",
        "np.asarray(samples, np.float32) makes an array of samples from -1 to 1",
    )


def _open_file(path: Path) -> Decoder:
    try:
        if not path.is_file():
            raise EdgeLLMError(
                f"{path} is not a file" if path.exists() else f"there is no file {path}", "name a sound file"
            )
        if path.stat().st_size == 0:
            raise CorruptFileError(f"{path} is empty", "is it still being written?")
        return _decoder(path)
    except OSError as error:
        raise EdgeLLMError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # a zero byte in its name
        raise EdgeLLMError(f"cannot read {str(path)!r}: {error}") from error


def _decoder(path: Path) -> Decoder:
    """libsndfile where it can; else FFmpeg, for the containers that are known here."""
    container = container_of(path)
    try:
        return SoundFileDecoder(path)
    except UnknownFormatError as error:
        if container is None:
            raise CorruptFileError(
                f"{path} is not a sound file that can be read: {error.message}",
                "wav, flac, ogg and mp3 can, and with the package av m4a, mp4 and webm",
            ) from error
    try:
        return ContainerDecoder(path, container)
    except CorruptFileError as error:
        message = error.message if str(path) in error.message else f"{path} cannot be decoded: {error.message}"
        raise CorruptFileError(message, error.hint or _DAMAGED) from error


def _regrouped(blocks: Iterable[Samples], size: int) -> Iterator[Samples]:
    """The same samples in blocks of ``size``, the last one shorter."""
    waiting: list[Samples] = []
    count = 0
    for block in blocks:
        waiting.append(block)
        count += len(block)
        if count >= size:
            joined = np.concatenate(waiting)
            whole = count - count % size
            yield from (joined[first : first + size] for first in range(0, whole, size))
            waiting, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(waiting)
