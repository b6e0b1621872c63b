"""Speakers for ``edgellm transcribe`` and ``listen``: their flags, and what they ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

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
    """Add --diarize, --speakers, --min-speakers and --max-speakers."""
    collect = collect_into(_GROUP)
    count = click.IntRange(1)
    options = [
        click.option("--diarize", is_flag=True, help="Say who speaks.", expose_value=False, callback=collect),
        click.option("--speakers", type=count, help="How many speak, if known.", expose_value=False, callback=collect),
        click.option("--min-speakers", type=count, help="How many at least.", expose_value=False, callback=collect),
        click.option("--max-speakers", type=count, help="How many at most.", expose_value=False, callback=collect),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def channel_option(function: Function) -> Function:
    """Add --channels."""
    collect = collect_into(_GROUP)
    return click.option(
        "--channels", is_flag=True, help="Each channel is a speaker.", expose_value=False, callback=collect
    )(function)


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


@contextmanager
def open_diarizer(threads: int | None, offline: bool) -> Iterator[tuple[Diarizer, list[Voice]]]:
    """What tells speakers apart, and the voices that are known."""
    from edgellm.diarization import Diarizer, Voices

    with ProgressDisplay() as display:
        loaded = Diarizer.load(threads=threads, progress=display, offline=offline)
    with loaded:
        yield loaded, Voices().all()


class SpeakerTeller:
    """Puts speakers into transcripts; loads what that needs when it is first used."""

    def __init__(self, wishes: SpeakerWishes, threads: int | None, offline: bool) -> None:
        self._wishes, self._threads, self._offline = wishes, threads, offline
        self._stack = ExitStack()
        self._diarizer: Diarizer | None = None
        self._voices: list[Voice] = []

    def __enter__(self) -> SpeakerTeller:
        if self._wishes.diarize:
            opened = open_diarizer(self._threads, self._offline)
            self._diarizer, self._voices = self._stack.enter_context(opened)
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
        from edgellm.audio import Channel, open_audio
        from edgellm.diarization import merge_channels
        from edgellm.diarization.pipeline import speaker_name

        with open_audio(path) as reader:
            count = reader.info.channels
        return merge_channels(
            [transcribe(Channel(path, number)) for number in range(count)],
            [speaker_name(number) for number in range(count)],
        )
