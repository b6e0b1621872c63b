"""``edgellm tokenize``: the tokens of a text."""

from __future__ import annotations

from pathlib import Path

import click

from edgellm.cli.console import clean
from edgellm.cli.loading import find_model
from edgellm.cli.options import ModelOptions, prompt_options, read_prompt


@click.command("tokenize")
@click.argument("model")
@click.argument("text", required=False)
@prompt_options
@click.option(
    "--special/--no-special", default=True, help="Read names of special tokens as these tokens; add the first."
)
@click.option("--show", is_flag=True, help="One token a line, with its text.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--offline", is_flag=True, help="Never use the network.")
def tokenize_command(
    model: str,
    text: str | None,
    prompt: str | None,
    file: Path | None,
    special: bool,
    show: bool,
    as_json: bool,
    offline: bool,
) -> None:
    """Show the tokens of a text as MODEL sees it: of TEXT, or what --prompt, --file or standard input gives."""
    if text is not None and prompt is not None:
        raise click.UsageError("TEXT and --prompt exclude each other")
    text = read_prompt(prompt if text is None else text, file)
    path = find_model(ModelOptions(model, offline=offline))
    from edgellm.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(path)
    ids = tokenizer.encode_prompt(text) if special else tokenizer.encode(text, add_special=False, parse_special=False)
    pieces = [tokenizer.token_bytes(token) for token in ids] if show or as_json else []
    if as_json:
        from edgellm.cli.results import to_json

        texts = [piece.decode("utf-8", "replace") for piece in pieces]
        click.echo(to_json({"model": model, "count": len(ids), "ids": ids, "texts": texts}))
    elif show:
        for token, piece in zip(ids, pieces, strict=True):
            click.echo(f"{token:>7}  {clean(repr(piece.decode('utf-8', 'backslashreplace')))}")
    else:
        click.echo(" ".join(str(token) for token in ids))
