"""``edgellm split`` and ``join``: a GGUF file into shards, and back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgellm.cli.console import ProgressDisplay, clean, number
from edgellm.cli.loading import find_model
from edgellm.cli.options import ModelOptions
from edgellm.hub.files import format_bytes

if TYPE_CHECKING:
    from edgellm.splitting import Written

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def size_option(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A number of bytes such as 2G or 500M; the units are powers of ten, as llama.cpp's tool has them."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([KMGT]?)B?", value, re.IGNORECASE | re.ASCII)
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise click.BadParameter(f"{value!r} is not a size such as 2G or 500M")
    return size


@click.command("split")
@click.argument("model")
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--max-size", metavar="SIZE", callback=size_option, help="No shard is larger: 2G, 500M (powers of ten).")
@click.option("--max-tensors", type=click.IntRange(min=1), help="No shard holds more tensors.")
@click.option("--force", is_flag=True, help="Replace existing files.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--offline", is_flag=True, help="Never use the network.")
def split_command(
    model: str,
    output: Path,
    max_size: int | None,
    max_tensors: int | None,
    force: bool,
    as_json: bool,
    offline: bool,
) -> None:
    """Split MODEL into shards OUTPUT-00001-of-0000N.gguf, each a GGUF file as llama.cpp makes them.

    OUTPUT is a folder, or a path with the beginning of the shards' names. All shards appear together once they are
    complete, or none does. Any of them, named as a model, loads all.
    """
    if (max_size is None) == (max_tensors is None):
        raise click.UsageError("give either --max-size or --max-tensors")
    from edgellm.splitting import SplitSettings, split

    path = find_model(ModelOptions(model, offline=offline))
    with ProgressDisplay() as display:
        written = split(path, output, SplitSettings(max_size, max_tensors, force), display)
    _report(written, as_json)


@click.command("join")
@click.argument("model", metavar="FIRST_SHARD")
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--offline", is_flag=True, help="Never use the network.")
def join_command(model: str, output: Path, force: bool, as_json: bool, offline: bool) -> None:
    """Join the shards of a split model into the file OUTPUT, or into a file in the folder OUTPUT.

    FIRST_SHARD is the file name-00001-of-0000N.gguf, or another name of a split model. All shards are checked before
    anything is written, and nothing appears under the name of the output before it is complete.
    """
    from edgellm.splitting import join

    path = find_model(ModelOptions(model, offline=offline))
    with ProgressDisplay() as display:
        written = join(path, output, force, display)
    _report(written, as_json)


def _report(written: Written, as_json: bool) -> None:
    """The files that were made, one a line, and how fast."""
    files = list(zip(written.paths, written.sizes, written.tensors, strict=True))
    if as_json:
        from edgellm.cli.results import to_json

        listed = [{"path": str(path), "size_bytes": size, "tensors": count} for path, size, count in files]
        click.echo(to_json({"files": listed, "size_bytes": written.size_bytes, "seconds": round(written.seconds, 3)}))
        return
    for path, size, count in files:
        click.echo(clean(f"{path} ({number(count)} tensors, {format_bytes(size)})"))
    rate = format_bytes(written.size_bytes / max(written.seconds, 1e-9))
    click.echo(f"{format_bytes(written.size_bytes)} in {written.seconds:.1f} s, {rate}/s")
