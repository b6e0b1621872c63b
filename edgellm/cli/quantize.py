"""``edgellm quantize``: a model file with fewer bits for each weight."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.console import ProgressDisplay, clean, number
from edgellm.hub.files import format_bytes

if TYPE_CHECKING:
    from edgellm.quantize import Quantized


def _pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Regular expressions and types, each given as REGEX=TYPE."""
    pairs = []
    for value in values:
        pattern, equals, kind = value.rpartition("=")
        if not equals or not pattern:
            raise click.BadParameter(f"{value!r} is not of the form REGEX=TYPE, such as attn_v=Q6_K")
        pairs.append((pattern, kind))
    return tuple(pairs)


@click.command("quantize")
@click.argument("model")
@click.argument("output", type=click.Path(path_type=Path))
@click.argument("kind", metavar="TYPE")
@click.option(
    "--imatrix",
    "importance",
    metavar="FILE_OR_TEXT",
    help="An importance matrix (edgellm imatrix or llama.cpp made it), or a text to make one from.",
)
@click.option(
    "--gptq",
    metavar="TEXT",
    type=click.Path(),
    help="Compensate rounding errors by what the model computes on this text (GPTQ): better than plain rounding, slow.",
)
@click.option(
    "--chunks",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Chunks of 512 tokens to read of a text, at most.",
)
@click.option(
    "--tensor-type",
    "tensor_types",
    metavar="REGEX=TYPE",
    multiple=True,
    callback=_pairs,
    help="Type of the tensors whose names the expression is found in; may be given several times.",
)
@click.option("--output-type", metavar="TYPE", help="Type of the output matrix.")
@click.option("--embedding-type", metavar="TYPE", help="Type of the token embedding.")
@click.option("--pure", is_flag=True, help="Give all matrices the same type.")
@click.option("--keep-split", is_flag=True, help="Write as many files as the model has.")
@click.option("--allow-requantize", is_flag=True, help="Quantize what is quantized already, which adds to its errors.")
@click.option("--dry-run", is_flag=True, help="Only tell the size and each tensor's type.")
@click.option("--threads", type=click.IntRange(min=1), help="How many threads quantize; by default one for each core.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--offline", is_flag=True, help="Never use the network.")
def quantize_command(
    model: str,
    output: Path,
    kind: str,
    importance: str | None,
    gptq: str | None,
    chunks: int,
    tensor_types: tuple[tuple[str, str], ...],
    output_type: str | None,
    embedding_type: str | None,
    pure: bool,
    keep_split: bool,
    allow_requantize: bool,
    dry_run: bool,
    threads: int | None,
    force: bool,
    as_json: bool,
    offline: bool,
) -> None:
    """Write MODEL, quantized, into OUTPUT: a file, or a folder for it.

    TYPE is one of llama.cpp's mixtures, such as Q4_K_M: Q8_0 Q6_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K_M Q4_K_S Q4_1 Q4_0
    IQ4_NL IQ4_XS Q3_K_L Q3_K_M Q3_K_S Q2_K TQ2_0 TQ1_0, or F32, F16, BF16. Tensors get the types that llama.cpp gives
    them; where a row is not a whole number of blocks, one with smaller blocks. Nothing appears under the output's name
    before it is complete.
    """
    from edgellm.hub import resolve
    from edgellm.quantize import QuantizeSettings, quantize

    settings = QuantizeSettings(
        kind,
        importance=importance,
        gptq=gptq,
        chunks=chunks,
        tensor_types=tensor_types,
        output_type=output_type,
        embedding_type=embedding_type,
        pure=pure,
        keep_split=keep_split,
        allow_requantize=allow_requantize,
        force=force,
        threads=threads,
    )
    with ProgressDisplay() as display:
        path = resolve(model, display, offline)
        done = quantize(path, output, settings, display, dry_run)
    if as_json:
        from edgellm.cli.results import to_json

        click.echo(to_json(_object(done, dry_run)))
        return
    if dry_run:
        _print_tensors(done)
    _print_sum(done, dry_run)


def _object(done: Quantized, dry_run: bool) -> dict[str, Any]:
    return {
        "paths": [str(path) for path in done.paths],
        "type": done.type,
        "dry_run": dry_run,
        "size_bytes": done.size_bytes,
        "source_bytes": done.source_bytes,
        "parameters": done.parameters,
        "bits_per_weight": round(done.bits_per_weight, 4),
        "seconds": round(done.seconds, 3),
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "source_type": tensor.source_type,
                "type": tensor.type,
                "size_bytes": tensor.size_bytes,
            }
            for tensor in done.tensors
        ],
    }


def _print_tensors(done: Quantized) -> None:
    width = max((len(tensor.name) for tensor in done.tensors), default=0)
    for tensor in done.tensors:
        shape = " x ".join(map(str, tensor.shape))
        change = tensor.type if tensor.type == tensor.source_type else f"{tensor.source_type} -> {tensor.type}"
        click.echo(clean(f"{tensor.name:{width}}  {shape:>16}  {change:16}  {format_bytes(tensor.size_bytes):>10}"))


def _print_sum(done: Quantized, dry_run: bool) -> None:
    paths = ", ".join(str(path) for path in done.paths[:1]) + (" ..." if len(done.paths) > 1 else "")
    size = f"{done.type}, {done.bits_per_weight:.2f} bits a weight, {format_bytes(done.size_bytes)}"
    if dry_run:
        click.echo(clean(f"{paths} would take {number(done.size_bytes)} bytes ({size})"))
        return
    rate = format_bytes(done.source_bytes / max(done.seconds, 1e-9))
    click.echo(clean(f"{paths} ({size}, was {format_bytes(done.source_bytes)}) in {done.seconds:.1f} s, {rate}/s"))
