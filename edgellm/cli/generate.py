"""``edgellm generate``: continue a text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from edgellm.cli import loading
from edgellm.cli.console import cancel_on_interrupt, clean
from edgellm.cli.options import given_model, model_options, prompt_options, read_prompt
from edgellm.cli.results import completion_object, speed_line, to_json
from edgellm.cli.settings import generation_options, given_settings
from edgellm.results import Completion, Step

INTERRUPTED = 130


@click.command("generate")
@click.argument("model")
@prompt_options
@click.option(
    "--logprobs",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="With --json: the N most probable tokens of every step.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option("--timings", is_flag=True, help="Tell the speed on stderr afterwards.")
@generation_options
@model_options
def generate_command(
    model: str, prompt: str | None, file: Path | None, logprobs: int, as_json: bool, timings: bool
) -> None:
    """Continue a text with MODEL, as it is, without a chat template.

    The text comes from --prompt, --file or standard input. Names of special tokens in it stand for these tokens.
    """
    if logprobs and not as_json:
        raise click.UsageError("--logprobs needs --json")
    text = read_prompt(prompt, file)
    with loading.open_model(given_model(model)) as llm, cancel_on_interrupt() as cancel:
        settings = given_settings(llm.sampling)
        ids = llm.tokenize(text)
        steps = llm.stream(
            ids,
            max_tokens=settings.max_tokens,
            sampling=settings.sampling,
            stop=settings.stop,
            logprobs=logprobs,
            cancel=cancel,
        )
        completion = Completion.from_steps(ids, steps if as_json else _printed(steps))
    if as_json:
        click.echo(to_json(completion_object(model, completion, logprobs > 0)))
    if timings:
        click.echo(speed_line(completion.timings), err=True)
    if completion.finish_reason == "cancelled":
        raise click.exceptions.Exit(INTERRUPTED)


def _printed(steps: Iterator[Step]) -> Iterator[Step]:
    """The same steps, their text shown as it comes."""
    for step in steps:
        click.echo(clean(step.text), nl=False)
        yield step
    click.echo()
