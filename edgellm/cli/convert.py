"""``edgellm convert``: a checkpoint from Hugging Face into a GGUF file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgellm.cli.console import ProgressDisplay, clean, notice
from edgellm.convert.settings import TYPES, ConvertSettings
from edgellm.hub.files import format_bytes


@click.command("convert")
@click.argument("source", metavar="MODEL")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; by default NAME-TYPE.gguf here.")
@click.option(
    "--type",
    "kind",
    type=click.Choice(TYPES, case_sensitive=False),
    default="auto",
    show_default=True,
    help="Type of the matrices; auto: as they are stored, ternary ones as tq2_0.",
)
@click.option("--base", metavar="MODEL", help="Of a LoRA adapter: the .gguf file or the folder of its model.")
@click.option("--name", help="The model's name in the file; by default the folder's.")
@click.option("--pre-tokenizer", help="Name of the way text is cut into words, if it is not recognised.")
@click.option("--offline", is_flag=True, help="Never use the network.")
@click.option("--threads", type=click.IntRange(min=1), help="How many threads convert; by default one for each core.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def convert_command(
    source: str,
    output: Path | None,
    kind: str,
    base: str | None,
    name: str | None,
    pre_tokenizer: str | None,
    offline: bool,
    threads: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Convert MODEL, a folder in Hugging Face's format or hf:owner/repo, into a GGUF file.

    The folder holds config.json, tokenizer.json or tokenizer.model, and the .safetensors files. Names and keys are
    those of llama.cpp's converter, so other programs read the file too. Nothing appears under the output's name
    before it is complete.

    Whisper's speech models are also read in OpenAI's format (a .pt file, of which nothing is executed, with the model's
    tokenizer.json beside it), CTranslate2's (a folder with model.bin) and whisper.cpp's (a ggml .bin file).

    A folder with adapter_config.json is a LoRA adapter: it becomes a file for --lora, and --base names its model.
    """
    from edgellm.convert import convert, convert_adapter, convert_whisper, is_adapter, is_whisper

    settings = ConvertSettings(kind.lower(), force, name, pre_tokenizer, offline, threads)
    with ProgressDisplay() as display:
        if is_whisper(source) and base is None:
            done = convert_whisper(source, output, settings, display)
        elif not is_adapter(source) and base is None:
            done = convert(source, output, settings, display)
        elif base is None:
            raise click.UsageError(f"{source} is a LoRA adapter: name the model that it is for with --base")
        else:
            done = convert_adapter(source, base, output, settings, display)
    for text in done.notices:
        notice(f"note: {text}")
    if as_json:
        from edgellm.cli.results import to_json

        click.echo(to_json({**asdict(done), "path": str(done.path)}))
    else:
        rate = format_bytes(done.size_bytes / max(done.seconds, 1e-9))
        size = f"{done.architecture}, {done.type}, {done.tensors} tensors, {format_bytes(done.size_bytes)}"
        click.echo(clean(f"{done.path} ({size}) in {done.seconds:.1f} s, {rate}/s"))
