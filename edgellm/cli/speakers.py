"""Speakers for ``edgellm transcribe``: its flags, and what they ask for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from edgellm.cli.console import ProgressDisplay
from edgellm.cli.options import Function, collect_into, collected
from edgellm.errors import InvalidSettingError

if TYPE_CHECKING:
    from edgellm.audio import AudioSource
    from edgellm.diarization import Diarizer, SpeakerCount, Voice
    from edgellm.speech.results import Transcript
    from edgellm.speech.settings import TranscriptionSettings

_GROUP = "speakers"


def speaker_options(function: Function) -> Function:
    """Add --diarize, --speakers, --min-speakers, --max-speakers and --channels."""
    collect = collect_into(_GROUP)
    count = click.IntRange(1)
    options = (
        click.option("--diarize", is_flag=True, help="Say who speaks.", expose_value=False, callback=collect),
        click.option("--speakers", type=count, help="How many speak, if known.", expose_value=False, callback=collect),
        click.option("--min-speakers", type=count, help="How many at least.", expose_value=False, callback=collect),
        click.option("--max-speakers", type=count, help="How many at most.", expose_value=False, callback=collect),
        click.option(
            "--channels", is_flag=True, help="Each channel is a speaker.", expose_value=False, callback=collect
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


@dataclass(frozen=True)
class SpeakerWishes:
    """What the flags ask for."""

    diarize: bool
    known: SpeakerCount
    channels: bool

    @property
    def any(self) -> bool:
        """Whether speakers are wanted at all."""
        return self.diarize or self.channels

    def adapt(self, settings: TranscriptionSettings) -> TranscriptionSettings:
        """Settings for a transcription: telling who says which word needs the words."""
        return replace(settings, word_timestamps=True) if self.any else settings


def given_speakers() -> SpeakerWishes:
    """The flags given on the command line.

    Raises:
        InvalidSettingError: they contradict each other.
    """
    values = collected(_GROUP)
    numbers = [values.get(name) for name in ("speakers", "min_speakers", "max_speakers")]
    from edgellm.diarization.speakers import SpeakerCount

    known = SpeakerCount(*numbers)
    diarize, channels = bool(values.get("diarize")), bool(values.get("channels"))
    if diarize and channels:
        raise InvalidSettingError("--diarize and --channels are two ways to tell speakers", "give one of them")
    if known != SpeakerCount() and not diarize:
        raise InvalidSettingError("a number of speakers was given without --diarize", "add --diarize")
    return SpeakerWishes(diarize, known, channels)


class SpeakerTeller:
    """Puts speakers into transcripts; loads what that needs when it is first used."""

    def __init__(self, wishes: SpeakerWishes, threads: int | None, offline: bool) -> None:
        self._wishes, self._threads, self._offline = wishes, threads, offline
        self._stack = ExitStack()
        self._diarizer: Diarizer | None = None
        self._voices: list[Voice] = []

    def __enter__(self) -> SpeakerTeller:
        if self._wishes.diarize:
            from edgellm.diarization import Diarizer, Voices

            with ProgressDisplay() as display:
                loaded = Diarizer.load(threads=self._threads, progress=display, offline=self._offline)
            self._diarizer = self._stack.enter_context(loaded)
            self._voices = Voices().all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def transcript(self, path: Path, transcribe: Callable[[AudioSource], Transcript]) -> Transcript:
        """The transcript of a file with its speakers.

        Args:
            path: the sound.
            transcribe: makes a transcript of a sound.
        """
        if self._wishes.channels:
            return self._by_channel(path, transcribe)
        transcript = transcribe(path)
        if self._diarizer is None:
            return transcript
        from edgellm.diarization import assign_speakers

        with ProgressDisplay() as display:
            found = self._diarizer.run(path, self._wishes.known, self._voices, progress=display)
        return assign_speakers(transcript, found)

    def _by_channel(self, path: Path, transcribe: Callable[[AudioSource], Transcript]) -> Transcript:
        from edgellm.audio import open_audio
        from edgellm.diarization import merge_channels
        from edgellm.diarization.pipeline import speaker_name

        with open_audio(path, split_channels=True) as reader:
            sound = np.concatenate([*reader.blocks(), np.zeros((0, reader.info.channels), np.float32)])
        channels = [np.ascontiguousarray(sound[:, number]) for number in range(sound.shape[1])]
        return merge_channels(
            [transcribe(channel) for channel in channels], [speaker_name(number) for number in range(len(channels))]
        )
