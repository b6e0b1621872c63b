"""How to transcribe: the options of openai-whisper with its names and defaults, and some of faster-whisper's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from edgellm.errors import InvalidSettingError
from edgellm.languages import LANGUAGES, OTHER_NAMES
from edgellm.speech.voice_activity import VoiceActivitySettings

Task = Literal["transcribe", "translate"]
MOST_BEAMS = 15
_DEFAULT_PREPEND = "\"'“¿([{-"
_DEFAULT_APPEND = "\"'.。,，!！?？:：”)]}、"


@dataclass(frozen=True)
class TranscriptionSettings:
    """How to transcribe.

    Attributes:
        language: code or name; None detects it in the first window.
        multilingual: detect it in each window.
        task: "transcribe", or "translate" into English.
        beam_size: hypotheses kept at temperature 0; 1 is greedy.
        best_of: samples at other temperatures, of which the likeliest is taken. Each token is drawn from the 16
            likeliest.
        patience: factor on how many finished hypotheses end a beam search (Kasai et al. 2022).
        length_penalty: alpha of ``((5 + length) / 6) ** alpha`` (Wu et al. 2016), by which the log-probabilities of
            hypotheses are divided; None divides by the length.
        temperature: tried one after another while the text repeats itself or is improbable.
        compression_ratio_threshold: text that zlib shrinks by more counts as repetition; None: no such check.
        logprob_threshold: text whose tokens have a lower mean log-probability counts as failed; None: no such check.
        no_speech_threshold: a window this likely to be silence, and improbable as text, is left out; None: none is.
        condition_on_previous_text: give each window the text before it as a prompt. None: where several are decoded
            at once, which cannot know each other's text, only what goes on in the same window.
        prompt_reset_on_temperature: text decoded at a higher temperature is not given to later windows.
        initial_prompt: text before the first window: names, spelling, style.
        carry_initial_prompt: give it to every window.
        prefix: text that the first window begins with.
        hotwords: words to expect; given to every window where there is no prefix.
        suppress_tokens: ids never chosen; -1 stands for symbols that are not spoken.
        suppress_blank: a window does not begin with a space or with its end.
        without_timestamps: text alone, one segment a window.
        max_initial_timestamp: seconds within which the first segment of a window begins.
        word_timestamps: find the times of each word.
        hallucination_silence_threshold: with word_timestamps, leave out what looks invented beside so many seconds of
            silence, and go on behind the silence; None: believe all.
        prepend_punctuations: signs that belong to the word after them.
        append_punctuations: signs that belong to the word before them.
        clip_timestamps: seconds (start, end, start, end, ...) of the parts to transcribe; the last end may be left
            out.
        repetition_penalty: above 1 makes tokens that were used already less likely.
        no_repeat_ngram_size: no sequence of so many tokens occurs twice in a window; 0: no such rule.
        vad_filter: cut out what is not speech.
        vad_parameters: when sound counts as speech.
        batch_size: windows decoded at once.
        seed: of the samples at temperatures above 0.

    Raises:
        InvalidSettingError: a setting is not known or out of range.
    """

    language: str | None = None
    multilingual: bool = False
    task: Task = "transcribe"
    beam_size: int = 5
    best_of: int = 5
    patience: float = 1.0
    length_penalty: float | None = None
    temperature: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio_threshold: float | None = 2.4
    logprob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    condition_on_previous_text: bool | None = None
    prompt_reset_on_temperature: float = 0.5
    initial_prompt: str | None = None
    carry_initial_prompt: bool = False
    prefix: str | None = None
    hotwords: str | None = None
    suppress_tokens: tuple[int, ...] = (-1,)
    suppress_blank: bool = True
    without_timestamps: bool = False
    max_initial_timestamp: float | None = 1.0
    word_timestamps: bool = False
    hallucination_silence_threshold: float | None = None
    prepend_punctuations: str = _DEFAULT_PREPEND
    append_punctuations: str = _DEFAULT_APPEND
    clip_timestamps: tuple[float, ...] = ()
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    vad_filter: bool = True
    vad_parameters: VoiceActivitySettings = field(default_factory=VoiceActivitySettings)
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "language", _language(self.language))
        temperatures: object = self.temperature
        if isinstance(temperatures, int | float):
            temperatures = (temperatures,)
        object.__setattr__(self, "temperature", tuple(map(float, temperatures)))  # type: ignore[call-overload]
        object.__setattr__(self, "clip_timestamps", tuple(float(value) for value in self.clip_timestamps))
        object.__setattr__(self, "suppress_tokens", tuple(int(value) for value in self.suppress_tokens))
        if self.task not in get_args(Task):
            raise InvalidSettingError(f"task is {self.task!r}", f"use one of {', '.join(get_args(Task))}")
        _check_count("beam_size", self.beam_size, MOST_BEAMS)
        _check_count("best_of", self.best_of, MOST_BEAMS)
        _check_count("batch_size", self.batch_size, 64)
        for name, low, high in (
            ("patience", 0.01, 100.0), ("length_penalty", 0.0, 1.0), ("compression_ratio_threshold", 0.0, 1e6),
            ("logprob_threshold", -1e6, 0.0),
            ("no_speech_threshold", 0.0, 1.0),
            ("max_initial_timestamp", 0.0, 30.0),
            ("repetition_penalty", 0.01, 100.0),
            ("no_repeat_ngram_size", 0, 1000), ("prompt_reset_on_temperature", 0.0, 100.0),
            ("hallucination_silence_threshold", 0.0, 3600.0),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InvalidSettingError(f"{name} is {value}", f"use {low:g} to {high:g}")
        if not self.temperature or not all(0 <= value <= 10 for value in self.temperature):
            raise InvalidSettingError(f"temperature is {self.temperature}", "use one or more values from 0 to 10")
        if self.hallucination_silence_threshold is not None and not self.word_timestamps:
            raise InvalidSettingError("hallucination_silence_threshold needs word_timestamps")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise InvalidSettingError(f"seed is {self.seed!r}", "use a whole number from 0 on")
        self._check_clips(self.clip_timestamps)

    @staticmethod
    def _check_clips(clips: Sequence[float]) -> None:
        ordered = all(first <= second for first, second in itertools.pairwise(clips))
        if not ordered or not all(math.isfinite(value) and value >= 0 for value in clips):
            raise InvalidSettingError(f"clip_timestamps is {clips}", "give seconds in rising order")

    @property
    def clips(self) -> tuple[tuple[float, float | None], ...]:
        """The parts to transcribe, in seconds; None is the end of the sound."""
        starts, ends = self.clip_timestamps[::2], (*self.clip_timestamps[1::2], None)
        return tuple(zip(starts, ends, strict=False)) or ((0.0, None),)


def _language(given: str | None) -> str | None:
    """The code of a language."""
    if given is None or given == "auto":
        return None
    name = str(given).lower()
    by_name = {language: code for code, language in LANGUAGES.items()} | OTHER_NAMES
    code = name if name in LANGUAGES else by_name.get(name)
    if code is None:
        import difflib

        near = difflib.get_close_matches(name[:40], [*LANGUAGES, *by_name], n=1)
        hint = f"did you mean {near[0]}?" if near else f"use a code such as {', '.join(list(LANGUAGES)[:6])}"
        raise InvalidSettingError(f"language {name[:40]!r} is not known", hint)
    return code


def _check_count(name: str, value: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidSettingError(f"{name} is {value!r}", f"use 1 to {most}")
