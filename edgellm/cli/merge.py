"""``edgellm merge``: LoRA adapters merged into a model file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgellm.cli.console import ProgressDisplay, clean
from edgellm.cli.loading import parse_adapter
from edgellm.hub.files import format_bytes


@click.command("merge")
@click.argument("model")
@click.argument("adapters", metavar="ADAPTER[:SCALE]...", nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="File to write.")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["auto", "f32", "f16", "bf16", "q8_0"], case_sensitive=False),
    default="auto",
    show_default=True,
    help="Type of the weights that change; auto: the one they have.",
)
@click.option("--offline", is_flag=True, help="Never use the network.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def merge_command(
    model: str, adapters: tuple[str, ...], output: Path, kind: str, offline: bool, force: bool, as_json: bool
) -> None:
    """Write MODEL with LoRA adapters merged into its weights, each times its scale (1 unless given).

    ADAPTER is a GGUF file; edgellm convert makes one of an adapter from Hugging Face. Weights that no adapter changes
    are copied as they are.
    """
    from edgellm.convert import merge
    from edgellm.hub import resolve

    with ProgressDisplay() as display:
        path = resolve(model, display, offline)
        done = merge(path, [parse_adapter(text) for text in adapters], output, kind.lower(), force, display)
    if as_json:
        from edgellm.cli.results import to_json

        click.echo(to_json({**asdict(done), "path": str(done.path)}))
    else:
        size = f"{done.architecture}, changed weights {done.type}, {format_bytes(done.size_bytes)}"
        click.echo(clean(f"{done.path} ({size}) in {done.seconds:.1f} s"))
