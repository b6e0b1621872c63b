"""``edgellm voices``: the voices that diarization calls by name."""

from __future__ import annotations

from pathlib import Path

import click

from edgellm.cli.console import ProgressDisplay, clean, notice


@click.group("voices")
def voices_command() -> None:
    """Add, list and remove known voices.

    A profile holds how a voice sounds, as 192 numbers, and nothing of what was said.
    """


@voices_command.command("add")
@click.argument("name")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--offline", is_flag=True, help="Never use the network.")
def add_voice(name: str, files: tuple[Path, ...], offline: bool) -> None:
    """Learn the voice NAME from sound FILEs in which only this person speaks."""
    import numpy as np

    from edgellm.diarization import Diarizer, Voices
    from edgellm.diarization.voices import check_name

    check_name(name)
    with ProgressDisplay() as display:
        with Diarizer.load(progress=display, offline=offline) as diarizer:
            embeddings = [diarizer.embed_voice(path) for path in files]
        mean = np.mean(embeddings, axis=0)
        path = Voices().add(name, mean / np.linalg.norm(mean))
    click.echo(clean(str(path)))


@voices_command.command("list")
def list_voices() -> None:
    """List the known voices."""
    from edgellm.diarization import Voices

    voices = Voices()
    found = voices.all()
    for voice in found:
        click.echo(clean(voice.name))
    if not found:
        notice("no voices are known; add one with: edgellm voices add NAME sample.wav")


@voices_command.command("rm")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def remove_voices(names: tuple[str, ...]) -> None:
    """Forget voices."""
    from edgellm.diarization import Voices

    for name in names:
        Voices().remove(name)
        click.echo(clean(f"removed {name}"))
