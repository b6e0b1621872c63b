"""Sound in the containers of films and phones, m4a, mp4, webm and so on, read by the optional package av."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.audio.decoders import AudioInfo, Samples, check_format
from edgellm.errors import CorruptFileError, EdgeLLMError

_SNIFFED = 16


def container_of(path: Path) -> str | None:
    """Which reader of FFmpeg a file is for, judged by its first bytes; None if it is none of those known here.

    The reader is always named, so that FFmpeg never takes a file for a playlist that makes it open other addresses.
    """
    with path.open("rb") as file:
        head = file.read(_SNIFFED)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mp4"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[:2] in (b"\xff\xf1", b"\xff\xf9"):
        return "aac"
    if head[:2] == b"\x0b\x77":
        return "ac3"
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    return None


_MAGIC = {
    b"\x1a\x45\xdf\xa3": "matroska",
    b"\x30\x26\xb2\x75": "asf",
    b"FLV": "flv",
    b"#!AMR": "amr",
    b"OggS": "ogg",
    b"fLaC": "flac",
    b"ID3": "mp3",
    b"\xff\xfb": "mp3",
    b"\xff\xf3": "mp3",
    b"\xff\xf2": "mp3",
    b"\x47\x40": "mpegts",
    b"MAC ": "ape",
    b"wvpk": "wv",
    b"TTA1": "tta",
}


class ContainerDecoder:
    """The first sound track of a container.

    Raises:
        EdgeLLMError: the package av is missing.
        CorruptFileError: the file is damaged, or has no sound in it.
    """

    def __init__(self, path: Path, container: str) -> None:
        try:
            import av
        except ImportError as error:
            raise EdgeLLMError(
                f"reading {path}, which is {_DESCRIPTIONS.get(container, container)}, needs the package av",
                "pip install 'edgellm[av]', or convert it to wav, flac, ogg or mp3",
            ) from error
        self._av = av
        self._path = path
        try:
            self._container: Any = av.open(str(path.resolve()), format=container, metadata_errors="ignore")
        except (av.FFmpegError, OSError, ValueError) as error:
            raise CorruptFileError(_reason(error)) from error
        try:
            self._stream, self.info = self._describe(container)
        except BaseException:
            self._container.close()
            raise

    def _describe(self, container: str) -> tuple[Any, AudioInfo]:
        if not self._container.streams.audio:
            raise CorruptFileError("it has no sound track")
        stream = self._container.streams.audio[0]
        context = stream.codec_context
        if context is None or not context.sample_rate:
            raise CorruptFileError("the format of its sound track is unknown")
        check_format(str(self._path), context.sample_rate, context.channels)
        duration = None
        if stream.duration is not None and stream.time_base:
            duration = float(stream.duration * stream.time_base)
        elif self._container.duration:
            duration = self._container.duration / 1e6
        name = f"{container}, {context.name}"
        return stream, AudioInfo(str(self._path), context.sample_rate, context.channels, duration, name)

    def blocks(self, start: float) -> Iterator[Samples]:
        av, rate = self._av, self.info.sample_rate
        to_float = av.AudioResampler(format="fltp", layout=self._stream.codec_context.layout, rate=rate)
        if start > 0:
            with suppress(av.FFmpegError):  # then all before is read over
                self._container.seek(int(start * 1e6), backward=True)
        try:
            for frame in self._container.decode(self._stream):
                first = float(frame.time) if frame.time is not None else 0.0
                skip = max(0, round((start - first) * rate)) if start > 0 else 0
                if skip >= frame.samples:
                    continue
                for plain in to_float.resample(frame):
                    yield np.ascontiguousarray(plain.to_ndarray().T[skip:], np.float32)
        except (av.FFmpegError, ValueError, OSError) as error:
            raise CorruptFileError(_reason(error)) from error

    def close(self) -> None:
        self._container.close()


_DESCRIPTIONS = {
    "mp4": "MPEG-4 (m4a, mp4, mov)",
    "matroska": "Matroska (webm, mkv)",
    "asf": "ASF (wma, wmv)",
    "aac": "AAC",
    "amr": "AMR",
    "mpegts": "an MPEG transport stream",
}


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).strip().rstrip(".")
