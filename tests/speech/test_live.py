"""Live transcription: every word comes once, in order, soon, and as it would from the whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spoken_codes import CodeTranscriber, LoudIsSpeech, utter

from edgellm.errors import InvalidSettingError
from edgellm.speech.live import LIVE_VOICE_ACTIVITY, LiveSettings, LiveTranscription, LiveUpdate
from edgellm.speech.packing import Window, cut_speech, lay_out
from edgellm.speech.results import Segment, Transcript, Word
from edgellm.speech.settings import TranscriptionSettings
from edgellm.speech.voice_activity import VoiceActivityDetector
from edgellm.speech.windows import Beginning


class Talk:
    """A live transcription whose clock is the sound itself: computing takes no time."""

    def __init__(
        self, live: LiveSettings | None = None, transcriber: CodeTranscriber | None = None, **changes: object
    ) -> None:
        self.transcriber = transcriber or CodeTranscriber()
        chosen = TranscriptionSettings(vad_parameters=LIVE_VOICE_ACTIVITY, language="en", **changes)  # type: ignore[arg-type]
        self.now = 0.0
        self.live = LiveTranscription(self.transcriber, LoudIsSpeech(), chosen, live, lambda: self.now)

    def hear(self, sound: np.ndarray, size: int = 800) -> list[LiveUpdate]:
        return list(self._hear(sound, size))

    def _hear(self, sound: np.ndarray, size: int) -> Iterator[LiveUpdate]:
        for first in range(0, len(sound), size):
            part = sound[first : first + size]
            self.now += len(part) / 16_000
            yield from self.live.push(part)
        yield from self.live.finish()


def firm(updates: list[LiveUpdate]) -> list[str]:
    return "".join(update.text for update in updates if update.kind == "firm").split()


def test_an_utterance() -> None:
    talk = Talk()
    updates = talk.hear(utter(range(20)))
    assert firm(updates) == [f"w{code}" for code in range(20)]
    assert updates[-1].kind == "end"
    delays = [delay for update in updates for delay in update.delays]
    assert len(delays) == 20
    assert np.median(delays) < 1.7
    assert max(delays) < 2.2
    times = [(word.start, word.end) for update in updates if update.kind == "firm" for word in update.words]
    assert np.allclose(times, [(0.4 * i, 0.4 * i + 0.3) for i in range(20)], atol=0.01)


def test_partial_text_runs_ahead_of_firm_text() -> None:
    updates = Talk().hear(utter(range(10)))
    said: list[str] = []
    for update in updates:
        if update.kind == "firm":
            said += update.text.split()
        elif update.kind == "partial" and update.words:
            assert all(word.startswith(("w", "cut")) for word in update.text.split())
            assert update.text.split()[0] not in said
    assert any(update.kind == "partial" and update.text for update in updates)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(0.7, 3)), min_size=1, max_size=4),
    st.integers(100, 40_000),
    st.sampled_from([0.3, 0.5, 2.0]),
)
def test_every_word_once_and_in_order(phrases: list[tuple[int, float]], size: int, step: float) -> None:
    codes = iter(range(1000))
    parts = [([next(codes) % 250 for _ in range(count)], silence) for count, silence in phrases]
    sound = np.concatenate([np.zeros(8000, np.float32), *(utter(words, silence) for words, silence in parts)])
    talk = Talk(LiveSettings(step=step))
    updates = talk.hear(sound, size)
    assert firm(updates) == [f"w{code}" for words, _ in parts for code in words]
    assert sum(update.kind == "end" for update in updates) == len(parts)
    assert max(talk.transcriber.lengths) <= 30


def test_a_long_utterance_is_not_transcribed_from_its_beginning_again() -> None:
    talk = Talk(LiveSettings(longest=6))
    updates = talk.hear(utter([code % 250 for code in range(300)]))
    assert firm(updates) == [f"w{code % 250}" for code in range(300)]
    assert max(talk.transcriber.lengths) < 8.5


def test_an_utterance_is_heard_with_those_before_it() -> None:
    talk = Talk()
    sound = np.concatenate([utter(range(10), 1.5), utter(range(10, 20), 6.0), utter(range(20, 30), 1.5)])
    assert firm(talk.hear(sound)) == [f"w{code}" for code in range(30)]
    lasts = [length for length, given in zip(talk.transcriber.lengths, talk.transcriber.settings, strict=True)
             if len(given.temperature) > 1]  # fmt: skip
    assert len(lasts) == 3
    assert lasts[0] < 5
    assert 4 + 1.5 + 4 <= lasts[1] < 11
    assert lasts[1] + 4 <= lasts[2] < lasts[1] + 5  # a long pause is left out


def test_loud_sound_without_words_is_let_go() -> None:
    talk = Talk()
    most = 0
    for _ in range(180):
        assert all(update.kind == "partial" for update in talk.live.push(np.full(16_000, 0.55, np.float32)))
        most = max(most, talk.live._window.kept)
    assert most <= 31 * 16_000
    assert max(talk.transcriber.lengths) <= 30
    assert firm(talk.hear(utter(range(5)))) == [f"w{code}" for code in range(5)]


def test_sound_that_waits_is_not_looked_at_piece_by_piece() -> None:
    talk = Talk()
    sound = utter(range(30))
    updates = list(talk.live.push(sound, more_waiting=True)) + list(talk.live.finish())
    assert firm(updates) == [f"w{code}" for code in range(30)]
    assert len(talk.transcriber.lengths) == 1


def test_too_short_to_be_speech() -> None:
    talk = Talk()
    click = np.concatenate([np.zeros(16_000), np.full(1500, 0.9), np.zeros(32_000)]).astype(np.float32)
    assert firm(talk.hear(click)) == []


def test_silence_costs_nothing() -> None:
    talk = Talk()
    assert talk.hear(np.zeros(16_000 * 60, np.float32)) == []
    assert talk.transcriber.lengths == []
    assert talk.live._window.kept < 3 * 16_000
    assert talk.live.seconds == 60


def test_the_last_hypothesis_is_that_of_a_file() -> None:
    talk = Talk(beam_size=5)
    talk.hear(utter(range(10)))
    heard = talk.transcriber
    assert heard.cut_off == [True] * (len(heard.lengths) - 1) + [False]
    assert [len(given.temperature) for given in heard.settings] == [1] * (len(heard.lengths) - 1) + [2]
    assert all(given.beam_size == 5 and given.word_timestamps for given in heard.settings)


class WindowTranscriber(CodeTranscriber):
    """Keeps the windows of utterances that were over."""

    def __init__(self) -> None:
        super().__init__()
        self.windows: list[Window] = []

    def transcribe_window(
        self, window: Window, settings: TranscriptionSettings, known: Beginning | None, cut_off: bool
    ) -> list[Segment]:
        if not cut_off:
            self.windows.append(window)
        return super().transcribe_window(window, settings, known, cut_off)


NEARLY_FULL = st.tuples(st.integers(25, 40), st.floats(0.6, 2.6)).map(
    lambda first: [first, (round((29.2 - 0.4 * first[0] - first[1]) / 0.4), 1.0), (5, 1.0)]
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0.6, 2.6)), min_size=3, max_size=8) | NEARLY_FULL)
def test_utterances_are_heard_at_last_in_the_windows_of_a_file(phrases: list[tuple[int, float]]) -> None:
    transcriber = WindowTranscriber()
    sound = np.concatenate([np.zeros(8000, np.float32), *(utter(range(count), rest) for count, rest in phrases)])
    Talk(transcriber=transcriber).hear(sound)
    detector = VoiceActivityDetector(LoudIsSpeech(), LIVE_VOICE_ACTIVITY)
    heard = {window.time_map.stretches: window.samples for window in transcriber.windows}
    for window in lay_out(cut_speech([sound], detector)):
        assert np.array_equal(heard[window.time_map.stretches], window.samples)


class UnsureTranscriber(CodeTranscriber):
    """Is not sure of one word, and hears it right, as sure as told, only once so many seconds of sound follow it."""

    def __init__(self, code: int, later: float, sure: float = 0.1) -> None:
        super().__init__()
        self.word, self.later, self.sure = f" w{code}", later, sure

    def transcribe(self, source: np.ndarray, settings: TranscriptionSettings) -> Transcript:
        transcript = super().transcribe(source, settings)
        segments = []
        for segment in transcript.segments:
            words = tuple(self._heard(word, len(source) / 16_000) for word in segment.words)
            segments.append(replace(segment, words=words))
        return replace(transcript, segments=tuple(segments))

    def _heard(self, word: Word, seconds: float) -> Word:
        if word.text != self.word:
            return word
        if seconds - word.end < self.later:
            return replace(word, text=" what", probability=0.1)
        return replace(word, probability=self.sure)


def test_a_word_that_is_not_sure_waits_for_what_follows() -> None:
    talk = Talk(LiveSettings(patience=6.0, delay=30.0), transcriber=UnsureTranscriber(5, later=3.0))
    updates = talk.hear(utter(range(40)))
    assert firm(updates) == [f"w{code}" for code in range(40)]
    delays = [delay for update in updates for delay in update.delays]
    assert max(delays[:4]) < 2
    assert 5.5 < delays[5] < 7.5
    assert delays[5] > delays[7] > delays[10] > delays[15]  # those behind it waited with it
    assert max(delays[30:]) < 2


def test_a_word_that_is_late_must_be_surer() -> None:
    for surer, first, last in ((0.0, 3.0, 5.0), (0.8, 5.5, 7.5)):
        live = LiveSettings(overdue=2.0, surer=surer, patience=6.0, delay=30.0)
        updates = Talk(live, UnsureTranscriber(5, later=3.0, sure=0.5)).hear(utter(range(40)))
        assert firm(updates) == [f"w{code}" for code in range(40)]
        delays = [delay for update in updates for delay in update.delays]
        assert first < delays[5] < last
        assert max(*delays[:4], *delays[30:]) < 2


def test_a_word_that_stays_unsure_is_told_in_the_end() -> None:
    expected = ["what" if code == 5 else f"w{code}" for code in range(8)]
    for silence, most in ((3.0, 5.0), (20.0, 6.6)):
        talk = Talk(LiveSettings(silence=silence, patience=6.0, delay=30.0), transcriber=UnsureTranscriber(5, later=99))
        updates = talk.hear(utter(range(8), silence=12))
        assert firm(updates) == expected
        delays = [delay for update in updates for delay in update.delays]
        assert most - 1 < delays[5] < most
        assert updates[-1].kind != "firm"
    assert firm(Talk(transcriber=UnsureTranscriber(5, later=99)).hear(utter(range(8), silence=0.1))) == expected


class DoubtfulTranscriber(CodeTranscriber):
    """Is not sure of words that have a number that four divides."""

    def transcribe(self, source: np.ndarray, settings: TranscriptionSettings) -> Transcript:
        transcript = super().transcribe(source, settings)
        changed = [
            replace(word, probability=0.27 if word.text[2:].isdigit() and int(word.text[2:]) % 4 == 0 else 0.99)
            for segment in transcript.segments
            for word in segment.words
        ]
        return replace(
            transcript, segments=tuple(replace(segment, words=tuple(changed)) for segment in transcript.segments)
        )


def test_where_many_words_wait_fewer_have_to() -> None:
    def median(delay: float) -> float:
        talk = Talk(LiveSettings(sure=0.3, delay=delay, patience=8.0), transcriber=DoubtfulTranscriber())
        updates = talk.hear(utter(range(120), silence=0.2))
        assert firm(updates) == [f"w{code}" for code in range(120)]
        return float(np.median([delay for update in updates for delay in update.delays]))

    assert median(1.8) < 2.0
    assert median(30.0) > 4.0


def test_the_end_of_an_utterance_is_told_behind_its_words() -> None:
    """Though its last word is sure only when the next utterance goes on."""
    talk = Talk(transcriber=UnsureTranscriber(9, later=4.0))
    updates = talk.hear(np.concatenate([utter(range(10), 1.0), utter(range(10, 30), 1.0)]))
    told = [update.text.split() if update.kind == "firm" else "end" for update in updates if update.kind != "partial"]
    assert told.count("end") == 2
    assert [word for words in told[: told.index("end")] for word in words] == [f"w{code}" for code in range(10)]
    assert firm(updates) == [f"w{code}" for code in range(30)]
    assert told[-1] == "end"


def test_noise_behind_an_utterance_takes_nothing_of_it() -> None:
    talk = Talk(transcriber=UnsureTranscriber(5, later=99))
    click = np.concatenate([np.full(2500, 0.9), np.zeros(32_000)]).astype(np.float32)
    updates = talk.hear(np.concatenate([utter(range(6), 1.5), click]))
    assert firm(updates) == ["w0", "w1", "w2", "w3", "w4", "what"]


@pytest.mark.parametrize("bad", [{"step": 0}, {"step": float("nan")}, {"longest": 60}, {"margin": -1}, {"sure": 1.5}])
def test_settings_out_of_range(bad: dict[str, float]) -> None:
    with pytest.raises(InvalidSettingError):
        LiveSettings(**bad)


def test_what_was_heard_long_ago_is_not_searched_for_again() -> None:
    talk = Talk()
    talk.hear(utter(range(40)))
    known = [0 if beginning is None else beginning.words for beginning in talk.transcriber.known]
    assert known[:-1] == sorted(known[:-1])
    assert 15 < max(known) < 22  # of 40 words in 16 s, those before the last eight seconds
    assert known[-1] == 0  # an utterance that is over is heard as a file is
