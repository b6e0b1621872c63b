"""Speech to text: the public face of the Whisper models."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from edgellm.audio import SAMPLE_RATE, AudioSource, open_audio
from edgellm.errors import EdgeLLMError
from edgellm.speech.ahead import ahead
from edgellm.speech.model import Backend, Progress, WhisperModel
from edgellm.speech.packing import Window, cut_speech, pack
from edgellm.speech.results import Segment, SegmentStream, Transcript, TranscriptionTimings
from edgellm.speech.settings import TranscriptionSettings
from edgellm.speech.tracks import PackedTrack, StreamTrack, Track
from edgellm.speech.voice_activity import VoiceActivityDetector, VoiceActivityModel
from edgellm.speech.windows import Beginning, Clock, Running, WindowDecoder, transcribe_tracks

Samples = npt.NDArray[np.float32]

_WINDOWS_AHEAD = 4
"""That are cut out while others are transcribed."""
Heard = Callable[[float, float | None], None]
"""Called with the seconds of sound that were read so far, and how many there are, if that is known; by any thread."""


class Transcriber:
    """A loaded speech model that transcribes. Made by ``Transcriber.load``; used by one thread at a time.

    Attributes:
        model: the Whisper model.
    """

    def __init__(self, model: WhisperModel) -> None:
        self.model = model
        self._voice_activity: VoiceActivityModel | None = None

    @classmethod
    def load(
        cls,
        model: str | Path = "tiny.en",
        *,
        backend: Backend = "cpu",
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Transcriber:
        """Load a model, downloading it first if need be; see ``WhisperModel.load``."""
        return cls(WhisperModel.load(model, backend=backend, threads=threads, progress=progress))

    def transcribe(
        self,
        source: AudioSource,
        settings: TranscriptionSettings | None = None,
        *,
        sample_rate: int = SAMPLE_RATE,
        heard: Heard | None = None,
    ) -> Transcript:
        """What is said in a sound.

        Args:
            source: a file of any common format, or an array of samples (samples,) or (samples, channels).
            settings: how to transcribe.
            sample_rate: of an array.
            heard: told how far it is.

        Raises:
            CorruptFileError: it is no sound file, or a damaged one.
            InvalidSettingError: a setting does not go with the model or the sound.
            EdgeLLMError: the file cannot be read, or a package is missing.
        """
        return self.stream(source, settings, sample_rate=sample_rate, heard=heard).transcript

    def stream(
        self,
        source: AudioSource,
        settings: TranscriptionSettings | None = None,
        *,
        sample_rate: int = SAMPLE_RATE,
        heard: Heard | None = None,
    ) -> SegmentStream:
        """The segments as they are ready; see ``transcribe``."""
        if self.model.closed:
            raise EdgeLLMError("the transcriber is closed")
        return SegmentStream(self._run(source, settings or TranscriptionSettings(), sample_rate, heard))

    def transcribe_window(
        self, window: Window, settings: TranscriptionSettings, known: Beginning | None = None, cut_off: bool = False
    ) -> list[Segment]:
        """What is said in a window that was packed with speech, as in one of a file.

        Args:
            window: with its place in the sound.
            settings: how to transcribe; those of voice activity do not count.
            known: what it is known to begin with.
            cut_off: somebody is speaking at its end.
        """
        if self.model.closed:
            raise EdgeLLMError("the transcriber is closed")
        track = PackedTrack(window, cut_off)
        decoder = WindowDecoder(self.model, settings, settings.condition_on_previous_text is not False, Clock())
        running = Running(track, decoder.history(first=True), True, known)
        while not running.done:
            decoder.advance([running])
        return [replace(segment, id=number) for number, segment in enumerate(running.ready)]

    def close(self) -> None:
        """Give memory and threads back; a second call does nothing."""
        self.model.close()

    def __enter__(self) -> Transcriber:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- one transcription --------------------------------------------------------------------------------------

    def _run(
        self, source: AudioSource, settings: TranscriptionSettings, sample_rate: int, heard: Heard | None
    ) -> Generator[Segment, None, Transcript]:
        begun = time.perf_counter()
        clock, sound = Clock(), _Sound(heard)
        side_by_side = settings.vad_filter and not settings.condition_on_previous_text and settings.batch_size > 1
        tracks = self._tracks(source, settings, sample_rate, sound)
        first = next(tracks, None)
        decoder: WindowDecoder | None = None
        segments: list[Segment] = []
        if first is not None:
            tracks = itertools.chain([first], tracks)
            condition = settings.condition_on_previous_text is not False
            decoder = WindowDecoder(self.model, settings, condition, clock)
            at_once = settings.batch_size if side_by_side else 1
            with closing(ahead(tracks, _WINDOWS_AHEAD)) if settings.vad_filter else nullcontext(tracks) as windows:
                for segment in transcribe_tracks(decoder, windows, at_once, shared=not side_by_side):
                    segments.append(segment)
                    yield segment
        timings = TranscriptionTimings(
            time.perf_counter() - begun, sound.seconds_cutting, clock.features, clock.encoder, clock.decoder,
            clock.alignment, sound.speech if settings.vad_filter else None,
        )  # fmt: skip
        language, probability = (decoder.language if decoder else None) or (settings.language or "en", 1.0)
        return Transcript(
            tuple(segments), language, probability, sound.duration, settings.task, self.model.name, timings
        )  # fmt: skip

    def _tracks(
        self, source: AudioSource, settings: TranscriptionSettings, sample_rate: int, sound: _Sound
    ) -> Iterator[Track]:
        """The parts of the sound that are to be transcribed, cut at silence if that is wanted."""
        for start, end in settings.clips:
            with open_audio(source, start=start, end=end, sample_rate=sample_rate) as reader:
                blocks = sound.counted(reader.blocks(), start, reader.duration)
                if not settings.vad_filter:
                    yield StreamTrack(blocks, start)
                    continue
                detector = VoiceActivityDetector(self._detector_model(), settings.vad_parameters)
                pieces = cut_speech(blocks, detector, round(start * SAMPLE_RATE))
                windows = sound.cutting(pack(pieces, self.model.window_samples))
                for window in windows:
                    sound.speech += len(window.samples) / SAMPLE_RATE
                    yield PackedTrack(window)

    def _detector_model(self) -> VoiceActivityModel:
        if self._voice_activity is None:
            self._voice_activity = VoiceActivityModel.load()
        return self._voice_activity


class _Sound:
    """What is known of a sound while it is read.

    Attributes:
        duration: seconds read, what clips leave out before them included.
        speech: seconds that voice activity kept.
        seconds_cutting: time spent on reading and on finding speech.
    """

    def __init__(self, heard: Heard | None) -> None:
        self.duration = 0.0
        self.speech = 0.0
        self.seconds_cutting = 0.0
        self._heard = heard

    def counted(self, blocks: Iterator[Samples], start: float, whole: float | None) -> Iterator[Samples]:
        """The same blocks, counted."""
        count = 0
        for block in blocks:
            yield block
            count += len(block)
            self.duration = max(self.duration, start + count / SAMPLE_RATE)
            if self._heard is not None:
                self._heard(self.duration, whole)

    def cutting(self, items: Iterator[Window]) -> Iterator[Window]:
        """The same items, with the time that they took."""
        while True:
            begun = time.perf_counter()
            item = next(items, None)
            self.seconds_cutting += time.perf_counter() - begun
            if item is None:
                return
            yield item
