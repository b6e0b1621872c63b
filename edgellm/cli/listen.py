"""``edgellm listen``: speech to text while it is spoken."""

from __future__ import annotations

import statistics
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import click

from edgellm.audio import SAMPLE_RATE
from edgellm.audio.capture import Capture, capture_microphone, capture_pcm
from edgellm.cli import loading
from edgellm.cli.console import cancel_on_interrupt, clean, notice
from edgellm.cli.options import given_model
from edgellm.cli.results import to_json
from edgellm.cli.speakers import given_speakers, open_diarizer, speaker_options
from edgellm.cli.speech_options import (
    COMMAND_SETTINGS,
    given_transcription,
    speech_model_options,
    transcription_options,
)
from edgellm.speech.formats.subtitles import named
from edgellm.speech.live import LIVE_VOICE_ACTIVITY, LiveSettings, LiveTranscription, LiveUpdate

if TYPE_CHECKING:
    import threading

    from rich.live import Live
    from rich.text import Text

    from edgellm.diarization import LiveSpeakers

_RECENT = 50
"""Delays that the one shown is the median of."""


@click.command("listen", context_settings=COMMAND_SETTINGS)
@click.option("--stdin-pcm", is_flag=True, help="Read raw samples from a pipe: 16 bits little-endian, one channel.")
@click.option(
    "--rate",
    type=int,
    default=SAMPLE_RATE,
    show_default=True,
    help="With --stdin-pcm: samples per second.",
)
@click.option("--device", help="The microphone: a part of its name, or its number in `python -m sounddevice`.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line for every piece of news.")
@click.option("--step", type=float, default=LiveSettings.step, show_default=True,
              help="Seconds of new sound after which the text is looked at again.")  # fmt: skip
@speaker_options
@speech_model_options
@transcription_options
def listen_command(stdin_pcm: bool, rate: int, device: str | None, as_json: bool, step: float, model: str) -> None:
    """Turn speech into text while it is spoken: from the microphone, or with --stdin-pcm from a pipe.

    Text that may still change is shown dimmed; it becomes firm when two hypotheses in a row agree on it and it is not
    improbable, or after 25 s, or when nobody has spoken for 3 s. In a pipe only firm text is written. With --diarize
    text is firm when it is known who speaks, some two seconds later. Ctrl-C ends it.
    """
    settings, wishes = given_transcription({}, LIVE_VOICE_ACTIVITY), given_speakers()
    if stdin_pcm and sys.stdin is None:
        raise click.UsageError("--stdin-pcm reads samples from a pipe, and standard input is closed")
    if stdin_pcm and sys.stdin.isatty():
        raise click.UsageError("--stdin-pcm reads samples from a pipe, and standard input is a terminal")
    live_settings = LiveSettings(step=step)
    options = given_model(model)
    with ExitStack() as stack:
        transcriber = stack.enter_context(loading.open_transcriber(options, voice_activity=True))
        from edgellm.speech.voice_activity import VoiceActivityModel

        live = LiveTranscription(transcriber, VoiceActivityModel.load(), settings, live_settings)
        live.warm_up()
        speakers = None
        if wishes.diarize:
            from edgellm.diarization import LiveDiarizer, LiveSpeakers

            diarizer, voices = stack.enter_context(open_diarizer(options.threads, options.offline))
            speakers = LiveSpeakers(LiveDiarizer(diarizer, wishes.known, voices))
        source = capture_pcm(sys.stdin.buffer, rate) if stdin_pcm else capture_microphone(_device(device))
        view: View = JsonView() if as_json else TerminalView() if sys.stdout.isatty() else PlainView()
        with source, view, cancel_on_interrupt() as cancel:
            if not stdin_pcm:
                notice("listening; Ctrl-C ends it")
            for update in updates(live, source, cancel, speakers):
                view.show(update)
        if source.lost_seconds:
            notice(f"{source.lost_seconds:.1f} s of sound were lost: this machine is too slow for {model}")
        view.summarise()


def updates(
    live: LiveTranscription, source: Capture, cancel: threading.Event, speakers: LiveSpeakers | None = None
) -> Iterator[LiveUpdate]:
    """What is new, until the source ends or the user has enough; with who said it, if that is wanted."""
    while not cancel.is_set():
        samples = source.read()
        if samples is None:
            break
        news = live.push(samples, source.waiting)
        yield from speakers.push(samples, news) if speakers else news
    yield from speakers.finish(live.finish()) if speakers else live.finish()


def _device(text: str | None) -> str | int | None:
    return int(text) if text is not None and text.isdecimal() else text


class View(Protocol):
    """Shows what is new."""

    def __enter__(self) -> View: ...
    def __exit__(self, *error: object) -> None: ...
    def show(self, update: LiveUpdate) -> None: ...
    def summarise(self) -> None: ...


class Delays:
    """How long after being spoken text became firm, word by word."""

    def __init__(self) -> None:
        self._all: deque[float] = deque(maxlen=100_000)

    def take(self, update: LiveUpdate) -> None:
        self._all.extend(update.delays)

    @property
    def recent(self) -> float | None:
        """Median of the last ones; None while there are none."""
        return statistics.median(list(self._all)[-_RECENT:]) if self._all else None

    def line(self) -> str | None:
        """All of it in one line."""
        if not self._all:
            return None
        ordered = sorted(self._all)
        slow = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
        return f"text was firm {statistics.median(ordered):.2f} s after being spoken (median), 95 % within {slow:.2f} s"


class PlainView:
    """Firm text alone, a line for each utterance, and for each speaker in it."""

    def __init__(self) -> None:
        self._delays = Delays()
        self._in_line = False
        self._speaker: str | None = None

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *error: object) -> None:
        if self._in_line:
            click.echo()

    def show(self, update: LiveUpdate) -> None:
        self._delays.take(update)
        if update.kind == "firm":
            if self._in_line and update.speaker != self._speaker:
                click.echo()
                self._in_line = False
            text = clean(update.text)
            click.echo(text if self._in_line else named(update.speaker) + text.lstrip(), nl=False)
            self._in_line, self._speaker = True, update.speaker
        elif update.kind == "end" and self._in_line:
            click.echo()
            self._in_line = False
        sys.stdout.flush()

    def summarise(self) -> None:
        if line := self._delays.line():
            notice(line)


class JsonView:
    """Every piece of news as a JSON object on a line of its own."""

    def __enter__(self) -> JsonView:
        return self

    def __exit__(self, *error: object) -> None: ...

    def show(self, update: LiveUpdate) -> None:
        click.echo(to_json(update_object(update)))
        sys.stdout.flush()

    def summarise(self) -> None: ...


def update_object(update: LiveUpdate) -> dict[str, Any]:
    """What ``--json`` prints of a piece of news."""
    if update.kind == "end":
        return {"type": "end"}
    shown: dict[str, Any] = {"type": update.kind, "text": update.text}
    if update.words:
        shown |= {"start": round(update.words[0].start, 3), "end": round(update.words[-1].end, 3)}
    if update.kind == "firm":
        shown |= {"speaker": update.speaker} if update.speaker is not None else {}
        words = [word.to_dict() for word in update.words]
        shown |= {"words": [word | {"delay": round(d, 3)} for word, d in zip(words, update.delays, strict=True)]}
    return shown


class TerminalView:
    """The utterance that goes on, what may change of it dimmed, and how far text lags; above it what was said."""

    def __init__(self) -> None:
        self._delays = Delays()
        self._firm = ""
        self._partial = ""
        self._speaker: str | None = None
        self._live: Live | None = None

    def __enter__(self) -> TerminalView:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(), transient=True, auto_refresh=False)
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end()
        if self._live is not None:
            self._live.stop()

    def show(self, update: LiveUpdate) -> None:
        self._delays.take(update)
        if update.kind == "firm":
            if self._firm and update.speaker != self._speaker:
                self._end()
            start = "" if self._firm else named(update.speaker)
            text = clean(update.text)
            self._firm, self._partial = self._firm + (start + text.lstrip() if start else text), ""
            self._speaker = update.speaker
        elif update.kind == "partial":
            self._partial = clean(update.text)
        else:
            self._end()
        if self._live is not None:
            self._live.update(self._picture(), refresh=True)

    def summarise(self) -> None:
        if line := self._delays.line():
            notice(line)

    def _end(self) -> None:
        """Move what was said above the part that is drawn anew."""
        said, self._firm, self._partial = self._firm.strip(), "", ""
        if self._live is not None:
            self._live.update(self._picture())
            if said:
                self._live.console.print(said, highlight=False, markup=False)

    def _picture(self) -> Text:
        from rich.text import Text

        delay = self._delays.recent
        lag = "" if delay is None else f"  [{delay:.1f} s behind]"
        return Text.assemble(
            self._firm.lstrip(), (self._partial if self._firm else self._partial.lstrip(), "dim"), (lag, "dim")
        )
