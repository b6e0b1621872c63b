"""``edgellm fit``: which type of a model fits into memory."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from edgellm.cli.console import number
from edgellm.cli.loading import find_model
from edgellm.cli.options import ModelOptions
from edgellm.cli.split import size_option
from edgellm.hub.files import format_bytes

if TYPE_CHECKING:
    from edgellm.evaluation.fit import Fit, FitReport


@click.command("fit")
@click.argument("model")
@click.option("--context", type=click.IntRange(min=1), help="Tokens of prompt and answer; by default 4096 at most.")
@click.option(
    "--memory", metavar="SIZE", callback=size_option, help="Memory to use, such as 8G; by default what is free."
)
@click.option("--cache-type", type=click.Choice(["auto", "f16", "q8_0", "f32"]), default="auto", help="As elsewhere.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads to compute with; by default one for each core.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--offline", is_flag=True, help="Never use the network.")
def fit_command(
    model: str,
    context: int | None,
    memory: int | None,
    cache_type: str,
    threads: int | None,
    as_json: bool,
    offline: bool,
) -> None:
    """Tell which type of MODEL fits into memory, and what each takes: weights, cache and scratch memory.

    MODEL is any file of it; the sizes of other types are those that edgellm quantize would write. Perplexities are
    those that edgellm perplexity measured on this machine, of any file of the model.
    """
    from edgellm.evaluation.fit import FitSettings, fit

    path = find_model(ModelOptions(model, offline=offline))
    report = fit(path, FitSettings(context, memory, cache_type, threads))
    if as_json:
        from edgellm.cli.results import to_json

        click.echo(to_json({"model": model, **asdict(report)}))
    else:
        _print(report)


def _print(report: FitReport) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    heads = ("type", "bits", "file", "weights", "cache", "scratch", "in all", "fits", "longest context", "perplexity")
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left")
    for one in report.types:
        table.add_row(*cells(one, report))
    console.print(table)
    console.print(
        f"{format_bytes(report.memory)} of memory; a context of {number(report.context)} tokens, cache "
        f"{report.cache_type}; the program itself takes {format_bytes(report.program)}"
    )
    if report.measure is not None:
        text, context, windows = report.measure
        console.print(f"perplexity on text {text[:8]}, {windows} windows of {context} tokens")
    else:
        console.print("no perplexity was measured yet: edgellm perplexity MODEL TEXT")
    if report.best is None:
        console.print("no type fits: take a smaller model, a shorter --context or --cache-type q8_0")
    else:
        console.print(f"the type with most bits that fits: {report.best}")


def cells(one: Fit, report: FitReport) -> list[str]:
    """A row of the table."""
    perplexity = ""
    if one.perplexity is not None:
        cost = "" if not one.cost else f" ({100 * one.cost:+.1f} %)"
        perplexity = f"{one.perplexity:.3f}{cost}"
    return [
        f"{one.type} (this file)" if one.is_file else one.type,
        f"{one.bits_per_weight:.2f}",
        format_bytes(one.file_bytes),
        format_bytes(one.weights),
        format_bytes(one.cache),
        format_bytes(one.scratch),
        format_bytes(one.total),
        "yes" if one.fits else "no",
        number(one.longest_context),
        perplexity,
    ]
