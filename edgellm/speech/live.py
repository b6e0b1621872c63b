"""Speech to text while it is spoken: sound goes in as it comes, firm and partial text comes out.

Voice activity finds utterances. While one goes on, it is transcribed again and again, with those before it as far as a
window has room for them; ``Agreement`` makes words firm that are sure. When it is over, there is one thorough pass,
which is that of a file. Words that are not sure wait for what is said next, and then longer, since what is late already
may as well be right; but where most words have to, less is asked of them.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgellm.audio import SAMPLE_RATE
from edgellm.errors import InvalidSettingError
from edgellm.speech.agreement import Agreement
from edgellm.speech.live_window import LiveWindow
from edgellm.speech.packing import Window
from edgellm.speech.results import Segment, Transcript, Word
from edgellm.speech.settings import TranscriptionSettings
from edgellm.speech.voice_activity import VoiceActivityDetector, VoiceActivityModel, VoiceActivitySettings
from edgellm.speech.windows import Beginning

Samples = npt.NDArray[np.float32]

LIVE_VOICE_ACTIVITY = VoiceActivitySettings(max_speech_duration_s=30.0, min_silence_duration_ms=500, speech_pad_ms=200)
"""Pauses of half a second end an utterance, as they do in a file."""

_PORTION = SAMPLE_RATE // 10
_SHORTEST = SAMPLE_RATE // 2
"""Less than half a second is not worth a hypothesis."""
_LAST = 5 * SAMPLE_RATE
"""What is kept of speech without words that has become too long."""
_REMEMBERED = 60 * SAMPLE_RATE
"""For so long it is known when sound came in: words are firm by then."""
_SEARCHED = 8.0
"""Seconds of sound whose words a hypothesis looks for; those before are the last one's. Utterances are heard whole."""
_TEMPERATURES = 2
"""That are tried on an utterance: all of them would take seconds."""
_LATELY = 1000
"""Words of which it counts how long they took: some six minutes."""
_FEW = 8
_MOST_LATE = 0.5
"""Share of words that may take longer than they should."""
_PROMPT_CHARACTERS = 200
_SENTENCE_ENDS = (".", "?", "!", "。", "？", "！")


class CanTranscribe(Protocol):
    """What live transcription needs of a transcriber."""

    def transcribe(self, source: Samples, settings: TranscriptionSettings) -> Transcript: ...

    def transcribe_window(
        self, window: Window, settings: TranscriptionSettings, known: Beginning | None, cut_off: bool
    ) -> list[Segment]: ...


@dataclass(frozen=True)
class LiveSettings:
    """How text becomes firm.

    Attributes:
        step: seconds of new sound between hypotheses, at least; a slow machine takes what time it needs.
        margin: words that end within so many seconds of the end of the sound may go on, and are not firm.
        hypotheses: that must agree on a word to make it firm.
        sure: how sure a word must be (`agreement.sureness`) not to wait, with all that follows it.
        overdue: seconds after which a word that waits must be `surer`.
        surer: how sure it must be then.
        patience: seconds after which a word that was waited for is firm in any case.
        silence: seconds without speech after which all words are firm.
        delay: seconds; where more than half of the words took longer lately, half of `sure` is enough for all of them.
        longest: seconds that are transcribed anew at most; what is firm is let go before.

    Raises:
        InvalidSettingError: a setting is out of range.
    """

    step: float = 0.4
    margin: float = 0.6
    hypotheses: int = 2
    sure: float = 0.2
    overdue: float = 4.0
    surer: float = 0.8
    patience: float = 25.0
    silence: float = 3.0
    delay: float = 1.9
    longest: float = 30.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("step", 0.1, 10), ("margin", 0, 5), ("hypotheses", 2, 5), ("sure", 0, 1), ("surer", 0, 1),
            ("overdue", 0, 30), ("patience", 0, 30), ("silence", 0, 30), ("delay", 0, 30), ("longest", 5, 30),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise InvalidSettingError(f"{name} is {getattr(self, name)}", f"use {low} to {high}")


@dataclass(frozen=True)
class LiveUpdate:
    """News of an utterance.

    Attributes:
        kind: ``firm`` words are new and final; ``partial`` ones replace the partial ones before; ``end``: it is over.
        words: with times in seconds since the sound began.
        delays: for each firm word, seconds between the moment it was heard whole and now.
    """

    kind: Literal["firm", "partial", "end"]
    words: tuple[Word, ...] = ()
    delays: tuple[float, ...] = ()

    @property
    def text(self) -> str:
        """The words joined."""
        return "".join(word.text for word in self.words)

    @property
    def speaker(self) -> str | None:
        """Who said the first word, where speakers are told apart."""
        return self.words[0].speaker if self.words else None


class LiveTranscription:
    """One live sound.

    Args:
        transcriber: not used by others meanwhile.
        voice_activity: finds utterances.
        settings: of transcription; voice activity and word times are seen to here.
        live: how text becomes firm.
        clock: seconds, for delays.
    """

    def __init__(
        self,
        transcriber: CanTranscribe,
        voice_activity: VoiceActivityModel,
        settings: TranscriptionSettings,
        live: LiveSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transcriber, self._clock = transcriber, clock
        self._live = live or LiveSettings()
        activity = settings.vad_parameters
        padding = min(activity.speech_pad_ms, activity.min_silence_duration_ms // 2)
        self._padding = padding * SAMPLE_RATE // 1000
        self._detector = VoiceActivityDetector(voice_activity, replace(activity, speech_pad_ms=padding))
        self._settings = replace(settings, vad_filter=False, word_timestamps=True, clip_timestamps=())
        self._window = LiveWindow(round(self._live.longest * SAMPLE_RATE))
        self._agreement = Agreement(self._live.hypotheses, self._live.sure, self._live.surer)
        self._settled: list[Word] = []
        """What the last thorough pass said."""
        self._said: list[Segment] = []
        """What the last hypothesis said of the window as it is."""
        self._ends: deque[float] = deque()
        """Seconds at which utterances ended of which words may still change."""
        self._said_until = 0.0
        """Second at which the last utterance ended."""
        self._shown = False
        """Whether there is text that no end was told of."""
        self._prompt = ""
        self._heard = 0
        """Sample up to which the last hypothesis went."""
        self._arrivals: deque[tuple[int, float]] = deque()
        self._delays: deque[float] = deque(maxlen=_LATELY)

    def warm_up(self) -> None:
        """Transcribe a second of nothing, so that the first words need not wait for what is prepared once."""
        self._transcriber.transcribe(np.zeros(SAMPLE_RATE, np.float32), self._settings)

    @property
    def seconds(self) -> float:
        """Of sound that came in so far."""
        return self._detector.samples / SAMPLE_RATE

    def push(self, samples: Samples, more_waiting: bool = False) -> Iterator[LiveUpdate]:
        """Take more 16 kHz samples; gives what is new.

        Args:
            samples: any number of them.
            more_waiting: there is more sound already, so that a hypothesis for this alone would be late.
        """
        for first in range(0, len(samples), _PORTION):
            portion = samples[first : first + _PORTION]
            ended = self._detector.push(portion)
            self._keep(portion)
            if ended:
                yield from self._end(ended[-1].end)
            elif self._is_over():
                yield from self._end(None)
            self._begin(self._detector.speaking_since)
            yield from self._go_on(more_waiting or first + _PORTION < len(samples))
            if self._window.speaking_since is None:
                yield from self._news(self._agreement.wait(self._waited_until()))

    def finish(self) -> Iterator[LiveUpdate]:
        """The sound is over; gives what is left to say."""
        ended = self._detector.flush()
        if ended:
            self._begin(ended[-1].start)
            yield from self._end(ended[-1].end)
        else:
            yield from self._end(None)
        yield from self._news(self._agreement.wait(math.inf))

    def _keep(self, portion: Samples) -> None:
        self._window.push(portion, self._detector.settled)
        self._arrivals.append((self._detector.samples, self._clock()))
        while len(self._arrivals) > 1 and self._arrivals[0][0] < self._detector.samples - _REMEMBERED:
            self._arrivals.popleft()

    def _is_over(self) -> bool:
        """Whether what seemed an utterance was too short to be one."""
        detector = self._detector
        silent = detector.speaking_since is None and detector.settled > detector.silent_since
        return self._window.speaking_since is not None and silent

    def _begin(self, start: int | None) -> None:
        if start is not None and self._window.speaking_since is None:
            self._window.begin(start)
            self._heard = start

    def _go_on(self, more_waiting: bool) -> Iterator[LiveUpdate]:
        """Another hypothesis, if it is time for one."""
        window, agreement, end = self._window, self._agreement, self._window.end
        full = window.spoken > self._live.longest * SAMPLE_RATE
        due = end - self._heard >= self._live.step * SAMPLE_RATE and window.spoken >= _SHORTEST
        if not due or (more_waiting and not full):
            return
        surely = min(end, self._detector.silent_since + self._padding)
        firm = self._make_room(surely)
        if not window.has_room(end):
            end = surely
        words = self._hypothesis(end, going_on=True)
        self._heard = window.end
        heard = end / SAMPLE_RATE - self._live.margin
        firm += self._agree(words, heard)
        if full and not self._firm_end(agreement):  # nothing to let go of: agreement is waited for no longer
            firm += agreement.finish([word for word in words if word.end < end / SAMPLE_RATE - 2])
        yield from self._news(firm)
        if not firm:
            yield LiveUpdate("partial", tuple(agreement.partial))
        if full:
            self._let_go(agreement)

    def _end(self, end: int | None) -> Iterator[LiveUpdate]:
        """The utterance is over: at ``end``, or it was none."""
        window = self._window
        if window.speaking_since is None:
            return
        if end is None or end <= window.speaking_since:
            yield from self._cancel()
            return
        firm = self._make_room(end)
        self._settled = self._hypothesis(end, going_on=False)
        window.close(end)
        self._said_until = end / SAMPLE_RATE
        self._ends.append(self._said_until)
        firm += self._agree(self._settled, self._said_until)
        yield from self._news(firm)

    def _cancel(self) -> Iterator[LiveUpdate]:
        """It was no utterance: what was said before it is left."""
        self._window.cancel()
        self._said = []
        self._agreement.restore(self._settled)
        yield from self._news([])
        partial = self._agreement.partial
        if self._shown:
            yield LiveUpdate("partial", tuple(partial)) if partial else LiveUpdate("end")
        self._shown = bool(partial)

    def _agree(self, hypothesis: Sequence[Word], heard_until: float) -> list[Word]:
        """The words that this hypothesis makes firm."""
        overdue = self.seconds - self._live.overdue
        return self._agreement.update(hypothesis, heard_until, self._waited_until(), overdue, self._is_late())

    def _waited_until(self) -> float:
        """Second of the sound up to which words were waited for long enough."""
        silent = self._window.speaking_since is None and self.seconds - self._said_until > self._live.silence
        return math.inf if silent else self.seconds - self._live.patience

    def _is_late(self) -> bool:
        """Whether too many words took too long lately, or have by now."""
        waiting = (self.seconds - word.end for word in self._agreement.partial)
        lately = [*self._delays, *(age for age in waiting if age > self._live.delay)][-_LATELY:]
        late = sum(delay > self._live.delay for delay in lately)
        return len(lately) >= _FEW and late > _MOST_LATE * len(lately)

    def _news(self, firm: Sequence[Word]) -> Iterator[LiveUpdate]:
        """Words that became firm, by utterances, with the ends of these, and what may still change behind them."""
        partial = self._agreement.partial
        told = bool(firm)
        while self._ends:
            count = sum(1 for _ in takewhile(lambda word: word.start < self._ends[0], firm))
            if count == len(firm) and partial and partial[0].start < self._ends[0]:
                break
            if count:
                yield self._firm(firm[:count])
            if self._shown or count:
                yield LiveUpdate("end")
            firm, self._shown = firm[count:], False
            self._ends.popleft()
        if firm:
            yield self._firm(firm)
        if told and (firm or partial):
            yield LiveUpdate("partial", tuple(partial))
        self._shown = self._shown or bool(firm or partial)

    def _make_room(self, end: int) -> list[Word]:
        """Let go of utterances that are over if need be; returns what became firm by that.

        Args:
            end: of what is surely said in the utterance that goes on. Silence behind it may turn out to be a pause,
                for which there need be no room in a window, as there need not in a file's.
        """
        if not self._window.make_room(end):
            return []
        firm, settled = self._agreement.firm, self._settled
        left = self._agreement.finish(settled) if settled and not (firm and firm[-1].end > settled[-1].end) else []
        self._forget(self._window.begins)
        return left

    def _forget(self, sample: int) -> None:
        """Firm words before that sample are not looked for any more in what is heard."""
        self._settled, self._said = [], []
        dropped = self._agreement.drop_before(sample / SAMPLE_RATE)
        self._prompt = (self._prompt + "".join(word.text for word in dropped))[-_PROMPT_CHARACTERS:]

    def _hypothesis(self, end: int, going_on: bool) -> list[Word]:
        """The words from the beginning of what is kept to sample ``end``, with times in the sound.

        Args:
            end: up to which it is heard.
            going_on: somebody is speaking there; else it is heard with all that a file gets.
        """
        tried = self._settings.temperature[: 1 if going_on else _TEMPERATURES]
        settings = replace(self._settings, temperature=tried, best_of=1)
        if self._prompt and settings.condition_on_previous_text:
            settings = replace(settings, initial_prompt=self._prompt)
        known = self._known(end / SAMPLE_RATE - _SEARCHED) if going_on else None
        self._said = self._transcriber.transcribe_window(self._window.packed(end), settings, known, going_on)
        return self._words()

    def _words(self) -> list[Word]:
        """Those of the last hypothesis."""
        return [word for segment in self._said for word in segment.words or _guessed(segment)]

    def _known(self, until: float) -> Beginning | None:
        """What the last hypothesis said up to that second."""
        count = sum(1 for _ in takewhile(lambda word: word.end < until, self._words()))
        return Beginning(tuple(self._said), count) if count else None

    def _firm_end(self, agreement: Agreement) -> float | None:
        """Where firm words end in an utterance that has become too long: of a sentence if there is one."""
        begin = self._window.start / SAMPLE_RATE
        firm = [word for word in agreement.firm if word.end > begin + 1]
        sentences = [word for word in firm if word.text.rstrip().endswith(_SENTENCE_ENDS)]
        return (sentences or firm)[-1].end if firm else None

    def _let_go(self, agreement: Agreement) -> None:
        """Drop the sound of words that are firm; where there is none, all but the last seconds."""
        cut = self._firm_end(agreement)
        sample = self._window.end - _LAST if cut is None else round(cut * SAMPLE_RATE)
        self._window.let_go(sample)
        self._forget(sample)

    def _firm(self, words: Sequence[Word]) -> LiveUpdate:
        now = self._clock()
        delays = tuple(max(0.0, now - self._arrival(word)) for word in words)
        self._delays.extend(delays)
        return LiveUpdate("firm", tuple(words), delays)

    def _arrival(self, word: Word) -> float:
        """When the sound came in with which the word was whole."""
        sample = word.end * SAMPLE_RATE
        return next((when for count, when in self._arrivals if count >= sample), self._clock())


def _guessed(segment: Segment) -> tuple[Word, ...]:
    """The words of a segment that has only a text: its time is shared by their letters."""
    texts = segment.text.split()
    letters = max(1, sum(map(len, texts)))
    words, start = [], segment.start
    for text in texts:
        end = start + (segment.end - segment.start) * len(text) / letters
        words.append(Word(start, end, f" {text}", 1.0))
        start = end
    return tuple(words)
