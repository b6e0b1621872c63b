"""Windows of several tracks decoded side by side: prompts, fallback to other temperatures, silence, and segments."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from edgellm.audio import SAMPLE_RATE
from edgellm.speech.alignment import TimedWord, fit_to_segment, merge_punctuation, shorten
from edgellm.speech.decoding import Decoded, Request
from edgellm.speech.hallucination import TimedSegment, believable
from edgellm.speech.model import WhisperModel
from edgellm.speech.results import Segment, Word
from edgellm.speech.segmentation import REST_SECONDS, Part, compression_ratio, ends_complete, split
from edgellm.speech.settings import TranscriptionSettings
from edgellm.speech.tokens import SECONDS_PER_TIMESTAMP
from edgellm.speech.tracks import Track

_SHORTEST = 0.2
"""Seconds at a track's end that are not worth a window."""
_FRAMES_PER_SECOND = 100


@dataclass
class Clock:
    """Seconds spent on each stage."""

    features: float = 0.0
    encoder: float = 0.0
    decoder: float = 0.0
    alignment: float = 0.0


@dataclass
class History:
    """What was said so far, as tokens.

    Attributes:
        tokens: the first ``prompted`` of them are the initial prompt.
        begins: what stands before is not given to later windows.
    """

    tokens: list[int] = field(default_factory=list)
    prompted: int = 0
    begins: int = 0


@dataclass(frozen=True)
class Beginning:
    """What a track is known to begin with: so many words of these segments of an earlier look at it."""

    segments: tuple[Segment, ...]
    words: int

    def tokens(self, text: Callable[[Sequence[int]], str]) -> tuple[int, ...]:
        """Of the words, with the timestamps before them; signs behind the last one may still change.

        Args:
            text: of tokens.
        """
        left = self.words
        found: list[int] = []
        for segment in self.segments:
            if segment.seek != self.segments[0].seek or not segment.words:
                break
            length = len("".join(word.text for word in segment.words[:left]))
            end = next((end for end in range(len(segment.tokens)) if len(text(segment.tokens[:end])) >= length), None)
            found += segment.tokens[: end if left <= len(segment.words) else None]
            left -= len(segment.words)
            if left <= 0:
                break
        while found and not any(map(str.isalnum, text(found[-1:]))):
            found.pop()
        return tuple(found)


@dataclass
class Running:
    """A track that is being transcribed; ``seek`` and ``spoken_until`` are seconds within it."""

    track: Track
    history: History
    first: bool
    """Whether it is the sound's first."""
    known: Beginning | None = None
    seek: float = 0.0
    spoken_until: float = 0.0
    done: bool = False
    ready: list[Segment] = field(default_factory=list)


@dataclass(frozen=True)
class Heard:
    """A window that was read: the track it is of, its length in seconds, and the code of its language."""

    running: Running
    window: int
    seconds: float
    language: str

    @property
    def spoken(self) -> float:
        """Seconds up to which there may be speech."""
        return min(self.seconds, self.running.track.speech_end - self.running.seek)


class WindowDecoder:
    """Transcribes tracks, up to ``settings.batch_size`` at once.

    Args:
        model: the model.
        settings: how to transcribe.
        condition: whether windows get the text before them in their history.
        clock: gets the seconds spent.

    Attributes:
        language: code and probability of the language: as set, else that of the first window, once it was heard.
    """

    def __init__(self, model: WhisperModel, settings: TranscriptionSettings, condition: bool, clock: Clock) -> None:
        self._model, self._settings, self._condition, self._clock = model, settings, condition, clock
        self.language: tuple[str, float] | None = None if settings.language is None else (settings.language, 1.0)
        self._tokens = model.tokens
        self._decoder = model.decoder(settings)
        self._aligner = self._decoder.aligner(model.graphs.alignment_heads)
        self._half = model.graphs.decoder.context_length // 2 - 1
        if settings.language is not None or not self._tokens.multilingual:
            self._start_sequence(settings.language or "en")  # refuses what the model cannot do
        self._initial = self._tokens.encode(f" {settings.initial_prompt.strip()}") if settings.initial_prompt else []
        self._hotwords = self._tokens.encode(f" {settings.hotwords.strip()}") if settings.hotwords else []
        self._prefix = self._tokens.encode(f" {settings.prefix.strip()}")[: self._half] if settings.prefix else []

    def history(self, first: bool) -> History:
        """A new one; that of the sound's first track begins with the initial prompt."""
        return History(list(self._initial), len(self._initial)) if first else History()

    def advance(self, tracks: Iterable[Running]) -> None:
        """One window more of each track; each is encoded as soon as it is there."""
        heard = [window for number, running in enumerate(tracks) if (window := self._hear(number, running))]
        if not heard:
            return
        begun = time.perf_counter()
        requests = [self._request(window) for window in heard]
        results = self._decode(requests)
        self._clock.decoder += time.perf_counter() - begun
        for window, result in zip(heard, results, strict=True):
            self._take(window, result)

    def _hear(self, number: int, running: Running) -> Heard | None:
        """Read and encode the next window of a track."""
        samples = running.track.read(running.seek, self._model.window_samples)
        left = min(len(samples) / SAMPLE_RATE, running.track.speech_end - running.seek)
        if left < _SHORTEST and (running.seek > 0 or not len(samples)):
            running.done = True
            return None
        begun = time.perf_counter()
        frames = self._model.spectrogram(samples, silence_follows=running.track.cut_off)
        read = time.perf_counter()
        self._model.encode(frames, number)
        self._clock.features += read - begun
        self._clock.encoder += time.perf_counter() - read
        return Heard(running, number, len(samples) / SAMPLE_RATE, self._language_of(number))

    def _language_of(self, number: int) -> str:
        """The code of the language of a window that is encoded."""
        if self.language is not None and not self._settings.multilingual:
            return self.language[0]
        found = next(iter(self._model.detect_language(number).items()))
        if self.language is None:
            self.language = found
        return found[0]

    # -- decoding -----------------------------------------------------------------------------------------------

    def _start_sequence(self, language: str) -> list[int]:
        settings = self._settings
        return self._tokens.start_sequence(language, settings.task, not settings.without_timestamps)

    def _request(self, heard: Heard) -> Request:
        """The prompt of a window: hotwords and text before it, the start of a transcript, a prefix."""
        running, history = heard.running, heard.running.history
        at_first = running.first and running.seek == 0
        before = history.tokens[history.begins :] if self._condition or at_first else []
        if self._settings.carry_initial_prompt and self._initial:
            before = [*self._initial, *before[history.prompted if history.begins == 0 else 0 :]]
        prefix = self._prefix if at_first else []
        hot = [] if prefix else self._hotwords[: self._half]
        room = self._half - len(hot) - len(prefix)
        kept = before[-room:] if room > 0 else []
        if self._settings.carry_initial_prompt and len(before) > room > len(self._initial):
            kept = [*self._initial, *before[len(self._initial) - room :]]
        prompt = [self._tokens.previous, *hot, *kept] if hot or kept else []
        start = len(prompt)
        prompt += self._start_sequence(heard.language)
        if prefix and not self._settings.without_timestamps:
            prefix = [self._tokens.timestamps, *prefix]
        goes_on = 0
        if running.track.full:
            goes_on = self._tokens.timestamps + math.ceil((heard.spoken - REST_SECONDS) / SECONDS_PER_TIMESTAMP)
        known = running.known
        said = () if known is None or running.seek > 0 else known.tokens(self._tokens.text)
        # What was said after a shorter prompt may be too long after this one: then all of it is searched for again.
        if known is None or not said or len(prompt) + len(said) >= self._model.graphs.decoder.context_length:
            return Request(heard.window, tuple(prompt), start, goes_on, tuple(prefix))
        score = known.segments[0].average_log_probability * len(said)
        return Request(heard.window, tuple(prompt), start, goes_on, said, score)

    def _decode(self, requests: Sequence[Request]) -> list[Decoded]:
        """Decode at the first temperature; what fails, at the next ones. Where all fail, the likeliest is taken."""
        tried: list[list[Decoded]] = [[] for _ in requests]
        waiting = list(range(len(requests)))
        for temperature in self._settings.temperature:
            found = self._decoder.decode([requests[number] for number in waiting], temperature)
            for number, result in zip(waiting, found, strict=True):
                tried[number].append(result)
            waiting = [number for number in waiting if self._has_failed(tried[number][-1])]
            if not waiting:
                break
        return [self._likeliest(results) if number in waiting else results[-1] for number, results in enumerate(tried)]

    def _likeliest(self, results: Sequence[Decoded]) -> Decoded:
        """Of several that failed; one that does not repeat itself if there is one (faster-whisper)."""
        sound = [result for result in results if not self._repeats_itself(result)]
        return max(sound or results, key=lambda result: result.average_log_probability)

    def _has_failed(self, result: Decoded) -> bool:
        """Whether text repeats itself or is improbable, unless it is silence."""
        settings = self._settings
        limit, improbable = settings.logprob_threshold, False
        if limit is not None:
            improbable = result.average_log_probability < limit
        silent = settings.no_speech_threshold is not None and (
            result.no_speech_probability > settings.no_speech_threshold and (improbable or limit is None)
        )
        if silent:
            return False
        return improbable or self._repeats_itself(result)

    def _repeats_itself(self, result: Decoded) -> bool:
        ratio = self._settings.compression_ratio_threshold
        return ratio is not None and compression_ratio(self._tokens.text(result.tokens)) > ratio

    def _is_silence(self, result: Decoded) -> bool:
        threshold, limit = self._settings.no_speech_threshold, self._settings.logprob_threshold
        if threshold is None or result.no_speech_probability <= threshold:
            return False
        return limit is None or result.average_log_probability <= limit

    # -- segments -----------------------------------------------------------------------------------------------

    def _take(self, heard: Heard, result: Decoded) -> None:
        """Segments of a decoded window, and where its track goes on."""
        running = heard.running
        if self._is_silence(result):
            running.seek += heard.seconds
            return
        seconds = heard.spoken if running.track.full else heard.seconds
        parts, advance = split(result.tokens, self._tokens.timestamps, seconds, running.track.full)
        words: dict[Part, TimedSegment] = {}
        if self._settings.word_timestamps:
            words = self._words(heard, result, parts)
            parts, advance = self._heard_words(heard, result, parts, words, advance)
        segments = self._segments(heard, result, parts, words)
        running.ready += segments
        history = running.history
        for segment in segments:
            history.tokens += segment.tokens
        if result.temperature > self._settings.prompt_reset_on_temperature:
            history.begins = len(history.tokens)
        running.seek += advance if advance > 0 else heard.seconds

    def _heard_words(
        self, heard: Heard, result: Decoded, parts: list[Part], words: dict[Part, TimedSegment], advance: float
    ) -> tuple[list[Part], float]:
        """The segments that are believed, and where to go on: behind the last word if more words follow it."""
        running, threshold = heard.running, self._settings.hallucination_silence_threshold
        timed = [words.get(part, TimedSegment(part.start, part.end, ())) for part in parts]
        last = next((segment.end for segment in reversed(timed) if segment.words), 0.0)
        if last > 0 and not running.track.full and not ends_complete(result.tokens, self._tokens.timestamps):
            advance = last
        if threshold is not None:
            whole = self._model.window_samples / SAMPLE_RATE
            end = heard.spoken if heard.spoken < whole else None
            count, behind = believable(timed, running.spoken_until - running.seek, whole, end, threshold)
            parts, timed, advance = parts[:count], timed[:count], advance if behind is None else behind
        last = next((segment.end for segment in reversed(timed) if segment.words), 0.0)
        if last > 0:
            running.spoken_until = running.seek + last
        return parts, advance

    def _segments(
        self, heard: Heard, result: Decoded, parts: Sequence[Part], words: dict[Part, TimedSegment]
    ) -> list[Segment]:
        ratio = compression_ratio(self._tokens.text(result.tokens).strip())
        track, seek = heard.running.track, heard.running.seek
        found = []
        for part in parts:
            text, timed = self._tokens.text(part.tokens), words.get(part)
            if not text.strip() or part.start >= part.end:
                continue
            placed = tuple(self._placed(heard.running, word) for word in timed.words) if timed else ()
            if placed:
                begin, finish = placed[0].start, max(placed[0].start, placed[-1].end)
            else:
                begin = track.start_time(seek + min(part.start, heard.seconds))
                finish = max(begin, track.end_time(seek + min(part.end, heard.seconds)))
            found.append(
                Segment(
                    0, begin, finish, text, part.tokens, result.temperature, result.average_log_probability, ratio,
                    result.no_speech_probability, placed, round(track.start_time(seek) * _FRAMES_PER_SECOND),
                )
            )  # fmt: skip
        return found

    def _words(self, heard: Heard, result: Decoded, parts: Sequence[Part]) -> dict[Part, TimedSegment]:
        """Of each segment its words."""
        begun = time.perf_counter()
        settings, tokens, running = self._settings, self._tokens, heard.running
        start = tokens.start_sequence(heard.language, settings.task, timestamps=False)
        pairs = zip(result.tokens, result.log_probabilities, strict=True)
        spoken = [(token, score) for token, score in pairs if token < tokens.end]
        text = [token for token, _ in spoken]
        aligned = self._aligner.align(
            heard.window, start, text, [score for _, score in spoken], heard.seconds, heard.language
        )
        aligned, median = shorten(aligned)
        aligned = merge_punctuation(aligned, settings.prepend_punctuations, settings.append_punctuations)
        found: dict[Part, TimedSegment] = {}
        number, until = 0, running.spoken_until - running.seek
        for part in parts:
            left = sum(token < tokens.end for token in part.tokens)
            own: list[TimedWord] = []
            while left > 0 and number < len(aligned):
                own.append(aligned[number])
                left -= len(aligned[number].tokens)
                number += 1
            if own:
                own, first, until = fit_to_segment(own, part.start, part.end, until, median)
                found[part] = TimedSegment(first, until, tuple(own))
        self._clock.alignment += time.perf_counter() - begun
        return found

    @staticmethod
    def _placed(running: Running, word: TimedWord) -> Word:
        """A word in times of the sound."""
        start, end = running.track.word_times(running.seek + word.start, running.seek + word.end)
        return Word(start, end, word.text, word.probability)


def transcribe_tracks(decoder: WindowDecoder, tracks: Iterator[Track], at_once: int, shared: bool) -> Iterator[Segment]:
    """The segments of tracks in their order.

    Args:
        decoder: decodes windows.
        tracks: what to transcribe.
        at_once: tracks that are transcribed side by side.
        shared: whether each track goes on with the text of the one before.
    """
    running: list[Running] = []
    common = decoder.history(first=True)
    first = True
    number = 0

    def going() -> Iterator[Running]:
        """Those that go on, and new ones in the places of those that are done."""
        nonlocal first
        active = [one for one in running if not one.done]
        yield from active
        for track in itertools.islice(tracks, at_once - len(active)):
            running.append(Running(track, common if shared else decoder.history(first), first))
            first = False
            yield running[-1]

    while True:
        decoder.advance(going())
        if not running:
            return
        while running:
            for segment in running[0].ready:
                yield replace(segment, id=number)
                number += 1
            running[0].ready = []
            if not running[0].done:
                break
            running.pop(0)
