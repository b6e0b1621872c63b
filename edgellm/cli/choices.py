"""``edgellm choices``: how often a model prefers the right ending of texts, as in HellaSwag."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import click

from edgellm.cli.console import ProgressDisplay, number
from edgellm.cli.loading import open_model
from edgellm.cli.options import given_model, read_text_file
from edgellm.cli.perplexity import evaluation_options


@click.command("choices")
@click.argument("model")
@click.argument("tasks", type=click.Path(path_type=Path))
@click.option("--most", type=click.IntRange(min=1), help="How many tasks, from the first; by default all.")
@click.option("--context", type=click.IntRange(min=1), help="Most tokens of a context and an ending together.")
@evaluation_options
def choices_command(model: str, tasks: Path, most: int | None, context: int | None, as_json: bool) -> None:
    """Measure how often MODEL prefers the right ending of each text in the file TASKS.

    TASKS has six lines a task, as llama.cpp's HellaSwag files: a context, the number of the right ending (from 0),
    and four endings. Or it has an object in JSON a line, with ctx, endings and label, as the original data set.
    """
    from edgellm.evaluation.multiple_choice import measure_choices, parse_tasks

    parsed = parse_tasks(read_text_file(tasks))
    with open_model(replace(given_model(model), context=context)) as llm, ProgressDisplay() as display:
        found = measure_choices(llm, parsed, most, display)
    if as_json:
        from edgellm.cli.results import to_json

        click.echo(to_json({"model": model, **asdict(found)}))
        return
    click.echo(
        f"right {100 * found.accuracy:.2f} % (95 %: {100 * found.low:.2f} to {100 * found.high:.2f} %) by the mean of "
        f"an ending's tokens, {100 * found.accuracy_of_sums:.2f} % by whole endings"
    )
    click.echo(f"{number(found.tasks)} tasks, {number(found.tokens)} tokens scored, {found.seconds:.1f} s")
