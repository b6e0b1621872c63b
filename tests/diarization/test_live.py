"""Speakers of live text: what is given out is right, soon, complete and never taken back."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from recordings import Recording

from edgellm.audio import load_audio
from edgellm.cli.main import edgellm
from edgellm.diarization import Diarizer, LiveDiarizer, LiveSpeakers, SpeakerCount
from edgellm.diarization.assignment import best_pairs
from edgellm.speech.live import LiveUpdate
from edgellm.speech.results import Word

RATE = 16_000
PIECE = RATE // 5
_FIRM_AFTER = 1.0


class Talk:
    """Words of a conversation, each four tenths of a second of somebody's turn, which transcription makes firm a second
    after they were said. The clock is the sound: computing takes no time.
    """

    def __init__(
        self, recording: Recording, diarizer: Diarizer, known: SpeakerCount | None = None, seconds: float = 99
    ) -> None:
        self.sound = load_audio(recording.path, end=seconds)
        self.words, self.truth = [], []
        for turn in sorted(recording.turns):
            for start in np.arange(turn.start, min(turn.end, seconds) - 0.4, 0.4):
                self.words.append(Word(start, start + 0.4, f" w{len(self.words)}", 1.0))
                self.truth.append(turn.speaker)
        self.now = 0.0
        self.speakers = LiveSpeakers(LiveDiarizer(diarizer, known), lambda: self.now)

    def hear(self) -> list[LiveUpdate]:
        given: list[LiveUpdate] = []
        waiting = list(self.words)
        for first in range(0, len(self.sound), PIECE):
            piece = self.sound[first : first + PIECE]
            self.now += len(piece) / RATE
            firm = [word for word in waiting if word.end + _FIRM_AFTER < self.now]
            waiting = waiting[len(firm) :]
            news = [LiveUpdate("firm", tuple(firm), (_FIRM_AFTER,) * len(firm))] if firm else []
            news.append(LiveUpdate("partial", tuple(waiting[:2])))
            given += self.speakers.push(piece, news)
        end = LiveUpdate("firm", tuple(waiting), (_FIRM_AFTER,) * len(waiting))
        return [*given, *self.speakers.finish([end, LiveUpdate("end")])]


@pytest.mark.parametrize(("name", "least"), [("made_2_clean", 0.97), ("made_3_short", 0.93)])
def test_words_get_the_right_speaker_soon(
    diarizer: Diarizer,
    conversations: dict[str, Recording],
    name: str,
    least: float,
) -> None:
    talk = Talk(conversations[name], diarizer)
    given = talk.hear()
    firm = [update for update in given if update.kind == "firm"]
    words = [word for update in firm for word in update.words]
    assert [word.text for word in words] == [word.text for word in talk.words]
    assert all(len({word.speaker for word in update.words}) == 1 for update in firm)
    assert all(update.speaker == update.words[0].speaker for update in firm)
    found = sorted({str(word.speaker) for word in words})
    truth = sorted(set(talk.truth))
    assert found == [f"SPEAKER_{number:02d}" for number in range(len(truth))]
    counts = Counter((str(word.speaker), true) for word, true in zip(words, talk.truth, strict=True))
    shared = np.array([[counts[one, other] for other in truth] for one in found], np.float64)
    right = sum(shared[row, column] for row, column in best_pairs(shared))
    assert right >= least * len(words)
    delays = [delay for update in firm for delay in update.delays]
    assert _FIRM_AFTER <= min(delays) <= max(delays) < _FIRM_AFTER + 4
    assert given[-1].kind == "end"
    # Words that wait are shown: none is missing from what is given out and what may still change.
    partial = next(update for update in given if update.kind == "partial" and len(update.words) > 3)
    place = given.index(partial)
    before = [word.text for update in given[:place] if update.kind == "firm" for word in update.words]
    assert [*before, *(word.text for word in partial.words)] == [
        word.text for word in talk.words[: len(before) + len(partial.words)]
    ]


def test_number_of_speakers_is_kept_to(diarizer: Diarizer, conversations: dict[str, Recording]) -> None:
    talk = Talk(conversations["made_2_clean"], diarizer, SpeakerCount(at_most=1), 13)
    assert {word.speaker for update in talk.hear() if update.kind == "firm" for word in update.words} == {"SPEAKER_00"}


def test_silence_and_nothing(diarizer: Diarizer) -> None:
    live = LiveDiarizer(diarizer)
    assert live.present().turns == ()
    for _ in range(12):
        assert live.push(np.zeros(RATE, np.float32)).turns == ()
    assert live.finish().turns == ()
    assert LiveDiarizer(diarizer).finish().turns == ()
    speakers = LiveSpeakers(LiveDiarizer(diarizer))
    heard = LiveUpdate("firm", (Word(0.1, 0.3, " hm", 1.0),), (0.1,))
    (update,) = speakers.finish([heard])  # words that nobody seems to have said
    assert (update.text, update.speaker) == (" hm", None)


def test_known_before_ten_seconds(diarizer: Diarizer, conversations: dict[str, Recording]) -> None:
    live = LiveDiarizer(diarizer)
    found = live.push(load_audio(conversations["made_1_1"].path)[: 3 * RATE])
    assert found.speakers == ("SPEAKER_00",)
    assert all(turn.end <= 3 for turn in found.turns)


@pytest.mark.slow
def test_listen(
    diarizer: Diarizer,
    conversations: dict[str, Recording],
    tiny_en_path: Path,
    silero_vad_path: Path,
) -> None:
    """The command line on a conversation from a pipe, with the real recognizer."""
    samples = (load_audio(conversations["made_2_clean"].path)[: 14 * RATE] * 32767).astype("<i2").tobytes()
    command = ["listen", "--stdin-pcm", "--diarize", "--offline", "--model", os.fspath(tiny_en_path)]
    result = CliRunner().invoke(edgellm, command, input=samples, catch_exceptions=False)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert all(line.startswith(("[SPEAKER_00]: ", "[SPEAKER_01]: ")) for line in lines)
    assert len({line[:12] for line in lines}) == 2
