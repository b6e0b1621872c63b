"""``edgellm diarize``: who spoke when in sound files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgellm.cli.console import ProgressDisplay, clean, make_folder, notice, one_line, quiet_libraries
from edgellm.errors import EdgeLLMError

if TYPE_CHECKING:
    from edgellm.diarization import Diarization, Diarizer, SpeakerCount, Voice

FORMATS = ("txt", "rttm", "json", "csv", "tsv")
FAILED = 1


@click.command("diarize")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-f", "--format", "kind", type=click.Choice(FORMATS), default="txt", show_default=True, help="Of the output."
)
@click.option(
    "-o",
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write a file for each sound into this folder, made if it is not there, rather than print.",
)
@click.option("--speakers", type=click.IntRange(1), help="How many speak, if that is known.")
@click.option("--min-speakers", type=click.IntRange(1), help="How many speak at least.")
@click.option("--max-speakers", type=click.IntRange(1), help="How many speak at most.")
@click.option("--channels", is_flag=True, help="Each channel of the sound is a speaker.")
@click.option("--exclusive", is_flag=True, help="One speaker at a time: no turns that overlap.")
@click.option("--no-voices", is_flag=True, help="Number speakers who are known by edgellm voices, too.")
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw a picture of one sound: a .svg or .png file."
)
@click.option("-t", "--threads", type=click.IntRange(1), help="All cores by default.")
@click.option("--offline", is_flag=True, help="Never use the network.")
def diarize_command(
    files: tuple[Path, ...],
    kind: str,
    output_dir: Path | None,
    speakers: int | None,
    min_speakers: int | None,
    max_speakers: int | None,
    channels: bool,
    exclusive: bool,
    no_voices: bool,
    plot: Path | None,
    threads: int | None,
    offline: bool,
) -> None:
    """Tell who speaks when in sound FILEs.

    Speakers are numbered in the order in which they first speak; those added with edgellm voices are called by their
    names. A file that cannot be read is named and left out; the exit status is then 1.
    """
    from edgellm.diarization import Diarizer, SpeakerCount, Voices

    known = SpeakerCount(speakers, min_speakers, max_speakers)
    if channels and known != SpeakerCount():
        raise click.UsageError("with --channels each channel is a speaker: their number cannot be given")
    if plot is not None and len(files) > 1:
        raise click.UsageError("--plot draws one sound: give one FILE")
    if plot is not None and plot.suffix.lower() not in (".svg", ".png"):
        raise click.BadParameter(f"{plot.name} is neither .svg nor .png", param_hint="--plot")
    targets = output_paths(files, kind, output_dir)
    if output_dir is not None:
        make_folder(output_dir)
    failures = 0
    with ProgressDisplay() as display:
        diarizer = Diarizer.load(threads=threads, progress=display, offline=offline)
    voices = [] if no_voices else Voices().all()
    with diarizer, quiet_libraries():
        for path in files:
            try:
                found = _diarize(diarizer, path, known, voices, channels, plot)
                _deliver(render(found, kind, path.stem, exclusive), targets[path])
            except (EdgeLLMError, OSError) as error:
                failures += 1
                notice(f"error: {_named(path, error)}")
    if failures:
        raise click.exceptions.Exit(FAILED)


def _named(path: Path, error: EdgeLLMError | OSError) -> str:
    if isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    else:
        text = str(error)
    return text if str(path) in text else f"{path}: {text}"


def output_paths(files: tuple[Path, ...], kind: str, folder: Path | None) -> dict[Path, Path | None]:
    """Where the output of each file goes; None: to standard output.

    Raises:
        click.UsageError: two would go to one file, or a sound would be overwritten.
    """
    targets: dict[Path, Path | None] = {path: folder / f"{path.stem}.{kind}" if folder else None for path in files}
    written = [target for target in targets.values() if target is not None]
    if len(set(written)) < len(written):
        raise click.UsageError("two of the sounds have the same name: diarize them one by one")
    if any(target.resolve() == path.resolve() for target in written for path in files):
        raise click.UsageError("a sound would be overwritten: choose another --output-dir")
    return targets


def _diarize(
    diarizer: Diarizer, path: Path, known: SpeakerCount, voices: list[Voice], channels: bool, plot: Path | None
) -> Diarization:
    from edgellm.diarization.plot import Envelope
    from edgellm.diarization.plot import plot as draw

    began = time.monotonic()
    envelope = Envelope()
    with ProgressDisplay() as display:
        heard = envelope.push if plot is not None else None
        found = diarizer.run(path, known, voices, channels, display, heard)
    if plot is not None:
        draw(found, envelope.points(), plot)
    seconds = max(1e-9, time.monotonic() - began)
    speed = f"{found.duration:.1f} s in {seconds:.1f} s, {found.duration / seconds:.1f} times real time"
    notice(f"{path}: {len(found.speakers) or 'no'} speaker{'s' * (len(found.speakers) != 1)}; {speed}")
    return found


def _deliver(text: str, target: Path | None) -> None:
    from edgellm.hub.files import write_atomically

    if target is None:
        click.echo(clean(text), nl=False)
    else:
        write_atomically(target, text)


def render(found: Diarization, kind: str, name: str, exclusive: bool) -> str:
    """The turns in one of `FORMATS`."""
    import csv
    import io

    from edgellm.diarization import format_rttm

    turns = found.exclusive if exclusive else found.turns
    if kind == "rttm":
        return format_rttm(turns, name)
    if kind == "json":
        listed = [{"start": round(t.start, 3), "end": round(t.end, 3), "speaker": t.speaker} for t in turns]
        whole = {"duration": round(found.duration, 3), "speakers": list(found.speakers), "turns": listed}
        return json.dumps(whole, ensure_ascii=False, indent=2) + "\n"
    if kind in ("csv", "tsv"):
        output = io.StringIO()
        writer = csv.writer(output, delimiter="," if kind == "csv" else "\t", lineterminator="\n")
        writer.writerow(("start", "end", "speaker"))
        writer.writerows((f"{t.start:.3f}", f"{t.end:.3f}", t.speaker) for t in turns)
        return output.getvalue()
    return "".join(f"[{_clock(t.start)} --> {_clock(t.end)}] {one_line(t.speaker)}\n" for t in turns)


def _clock(seconds: float) -> str:
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    return f"{minutes}:{rest // 10:02d}.{rest % 10}"
