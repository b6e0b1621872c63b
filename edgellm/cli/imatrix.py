"""``edgellm imatrix``: which columns of a model's matrices matter most, from a text."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgellm.cli.console import ProgressDisplay, clean, number
from edgellm.hub.files import format_bytes


@click.command("imatrix")
@click.argument("model")
@click.argument("text", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="File to write.")
@click.option(
    "--context", type=click.IntRange(min=16, max=2048), default=512, show_default=True, help="Tokens in a chunk."
)
@click.option("--chunks", type=click.IntRange(min=1), help="Read so many chunks at most; by default the whole text.")
@click.option(
    "--merge",
    "others",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Add another importance matrix of the model; may be given several times.",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--offline", is_flag=True, help="Never use the network.")
def imatrix_command(
    model: str,
    text: Path,
    output: Path,
    context: int,
    chunks: int | None,
    others: tuple[Path, ...],
    force: bool,
    as_json: bool,
    offline: bool,
) -> None:
    """Make an importance matrix of MODEL from the file TEXT, for edgellm quantize --imatrix.

    TEXT should be like what the model is to be used for; some hundred kilobytes do. The file is llama.cpp's GGUF
    format, so that its tools read it, and theirs is read here.
    """
    from edgellm.hub import resolve
    from edgellm.quantize.imatrix import make_file

    with ProgressDisplay() as display:
        path = resolve(model, display, offline)
        done = make_file(output, path, text, [str(other) for other in others], context, chunks, force, display)
    if as_json:
        from edgellm.cli.results import to_json

        click.echo(to_json({**asdict(done), "path": str(done.path), "seconds": round(done.seconds, 3)}))
    else:
        size = f"{number(done.entries)} entries, {number(done.chunks)} chunks, {format_bytes(done.size_bytes)}"
        click.echo(clean(f"{done.path} ({size}) in {done.seconds:.1f} s"))
