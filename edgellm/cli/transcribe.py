"""``edgellm transcribe``: sound files to text."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgellm.cli import loading
from edgellm.cli.console import ProgressDisplay, clean, make_folder, notice, one_line, quiet_libraries
from edgellm.cli.options import given_model
from edgellm.cli.speakers import SpeakerTeller, channel_option, given_speakers, speaker_options
from edgellm.cli.speech_options import (
    COMMAND_SETTINGS,
    given_shape,
    given_transcription,
    speech_model_options,
    transcription_options,
)
from edgellm.errors import EdgeLLMError
from edgellm.speech.formats import FORMATS, LineShape
from edgellm.speech.formats.subtitles import named, timestamp
from edgellm.speech.results import Segment, Transcript

if TYPE_CHECKING:
    from edgellm.audio import AudioSource
    from edgellm.speech.settings import TranscriptionSettings
    from edgellm.speech.transcriber import Transcriber

FAILED = 1


@click.command("transcribe", context_settings=COMMAND_SETTINGS)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-f",
    "--format",
    "formats",
    metavar="NAME,...",
    help=f"Also write files, in these formats: {', '.join(FORMATS)}, or all.",
)
@click.option(
    "-o",
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder for the files, made if it is not there; the current one by default.",
)
@click.option("--timestamps", is_flag=True, help="Show the times of each segment on the screen.")
@click.option("-q", "--quiet", is_flag=True, help="Show no text on the screen, only problems.")
@speaker_options
@channel_option
@speech_model_options
@transcription_options
def transcribe_command(
    files: tuple[Path, ...], model: str, formats: str | None, output_dir: Path, timestamps: bool, quiet: bool
) -> None:
    """Turn the speech in sound FILEs into text: on the screen as it comes, and into files with --format.

    wav, flac, ogg and mp3 are read, and with the package av m4a, mp4, webm and others. A file that cannot be read is
    named and left out; the exit status is then 1.
    """
    wishes = given_speakers()
    settings, shape = wishes.adapt(given_transcription()), given_shape()
    options = given_model(model)
    outputs = output_paths(files, parse_formats(formats), output_dir)
    if formats:
        make_folder(output_dir)
    failures = 0
    told = quiet or wishes.any  # who speaks is known in the end: the text is shown then
    with (
        loading.open_transcriber(options, settings.vad_filter) as transcriber,
        SpeakerTeller(wishes, options.threads, options.offline) as teller,
        quiet_libraries(),
    ):
        for path in files:
            if len(files) > 1 and not quiet:
                notice(f"{path}:")
            try:
                transcript = teller.transcript(
                    path, partial(_transcribe, transcriber, path, settings, timestamps, told)
                )
                if wishes.any and not quiet:
                    for segment in transcript.segments:
                        click.echo(shown(segment, timestamps))
                write_all(transcript, outputs[path], shape)
            except (EdgeLLMError, OSError) as error:
                failures += 1
                _tell_failure(path, error)
    if failures:
        raise click.exceptions.Exit(FAILED)


def parse_formats(text: str | None) -> tuple[str, ...]:
    """The formats named in a list.

    Raises:
        click.BadParameter: one of them does not exist.
    """
    names = [name.strip().lower() for name in (text or "").split(",") if name.strip()]
    for name in names:
        if name not in FORMATS and name != "all":
            raise click.BadParameter(f"{name!r} is none of {', '.join(FORMATS)}, all", param_hint="--format")
    return tuple(FORMATS) if "all" in names else tuple(dict.fromkeys(names))


def output_paths(files: Sequence[Path], formats: Sequence[str], folder: Path) -> dict[Path, dict[str, Path]]:
    """Where the outputs of each file go: named after it, with its ending where two would have the same name.

    Raises:
        click.UsageError: two files would be written to one, or a sound would be overwritten.
    """
    stems = [path.stem for path in dict.fromkeys(files)]
    names = {path: path.stem if stems.count(path.stem) == 1 else path.name for path in files}
    outputs = {path: {name: folder / f"{names[path]}.{name}" for name in formats} for path in files}
    taken: dict[Path, Path] = {}
    for path, targets in outputs.items():
        for target in targets.values():
            other = taken.setdefault(target, path)
            if other != path:
                raise click.UsageError(f"{other} and {path} would both be written to {target}")
            if any(target.resolve() == sound.resolve() for sound in files):
                raise click.UsageError(f"{target} is one of the sounds: choose another --output-dir")
    return outputs


def write_all(transcript: Transcript, targets: dict[str, Path], shape: LineShape) -> None:
    """Write a transcript in every format that is wanted."""
    for name, path in targets.items():
        transcript.write(path, name, shape)


def _transcribe(
    transcriber: Transcriber,
    path: Path,
    settings: TranscriptionSettings,
    timestamps: bool,
    quiet: bool,
    sound: AudioSource,
) -> Transcript:
    """One file; its text is shown as it comes, and how fast it was afterwards."""
    began = time.monotonic()
    with ProgressDisplay() as display:

        def heard(done: float, whole: float | None) -> None:
            if whole is not None:
                display("transcribe", int(done), int(whole))

        segments = transcriber.stream(sound, settings, heard=heard)
        for segment in segments:
            if not quiet:
                _show(display, shown(segment, timestamps))
        transcript: Transcript = segments.transcript
    if not quiet:
        seconds = max(1e-9, time.monotonic() - began)
        speed = f"{transcript.duration:.1f} s in {seconds:.1f} s, {transcript.duration / seconds:.1f} times real time"
        notice(f"{path}: {speed}" if transcript.segments else f"{path}: no speech; {speed}")
    return transcript


def shown(segment: Segment, timestamps: bool) -> str:
    """A segment as a line on the screen."""
    times = ""
    if timestamps:
        times = f"[{timestamp(segment.start, '.')} --> {timestamp(segment.end, '.')}] "
    return times + named(segment.speaker) + one_line(segment.text)


def _show(display: ProgressDisplay, line: str) -> None:
    """On a terminal above the progress bar; else on standard output, where it may be a program's input."""
    if sys.stdout.isatty() and display.drawing:
        display.say(line)
    else:
        click.echo(line)


def _tell_failure(path: Path, error: Exception) -> None:
    if isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    else:
        text = str(error)
    text = one_line(text)
    click.echo(f"error: {text if str(path) in text else f'{clean(str(path))}: {text}'}", err=True)
