"""``edgellm perplexity`` and ``edgellm kl``: how good a model is, and how far from the one it was made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgellm.cli.console import ProgressDisplay, number
from edgellm.cli.loading import open_model
from edgellm.cli.options import ModelOptions, collect_into, collected, offline_option, read_text_file

if TYPE_CHECKING:
    from edgellm.evaluation.divergence import Divergence
    from edgellm.evaluation.perplexity import Perplexity

Function = TypeVar("Function", bound=Callable[..., Any])
TEXT_LIMIT = 1 << 30


def evaluation_options(function: Function) -> Function:
    """Add --threads, --cache-type, --backend, --offline and --json."""
    collect = collect_into("model")
    hidden: Any = {"expose_value": False, "callback": collect}
    options = (
        click.option("--threads", type=click.IntRange(min=1), help="Threads to compute with.", **hidden),
        click.option(
            "--cache-type",
            type=click.Choice(["auto", "f16", "q8_0", "f32"]),
            help="Number format of the cache; auto: f16 (BitNet: f32).",
            **hidden,
        ),
        click.option(
            "--backend",
            type=click.Choice(["cpu", "reference"]),
            help="cpu: compiled kernels; reference: plain NumPy, slow and exact.",
            **hidden,
        ),
        offline_option(collect),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def window_options(function: Function) -> Function:
    """Add --context and --windows."""
    function = click.option("--windows", type=click.IntRange(min=1), help="How many windows, from the beginning.")(
        function
    )
    return click.option(
        "--context",
        type=click.IntRange(min=8),
        default=512,
        show_default=True,
        help="Tokens of a window, of which the second half is scored.",
    )(function)


def evaluated_model(model: str, context: int | None) -> ModelOptions:
    """The options of a model that is to be loaded with a context."""
    return replace(ModelOptions(model, **collected("model")), context=context)


@click.command("perplexity")
@click.argument("model")
@click.argument("text", type=click.Path(path_type=Path))
@window_options
@click.option(
    "--lora", metavar="PATH[:SCALE]", multiple=True, help="A LoRA adapter to apply; may be given several times."
)
@evaluation_options
def perplexity_command(
    model: str, text: Path, context: int, windows: int | None, lora: tuple[str, ...], as_json: bool
) -> None:
    """Measure how well MODEL predicts the text in the file TEXT; less is better.

    The text is cut into windows, each computed from nothing, and the second half of each is scored, as llama.cpp does
    it, so that figures compare. Figures of models with different vocabularies do not.
    """
    content = read_text_file(text, TEXT_LIMIT)
    from edgellm.evaluation.perplexity import measure_perplexity
    from edgellm.evaluation.windows import WindowSettings

    settings = WindowSettings(context, windows)
    options = replace(evaluated_model(model, context), lora=lora)
    with open_model(options) as llm, ProgressDisplay() as display:
        found = measure_perplexity(llm, content, settings, display)
        if not lora:
            _remember(llm.model_path, content, found)
    if as_json:
        from edgellm.cli.results import to_json

        rate = round(found.tokens_per_second, 1)
        click.echo(to_json({"model": model, **asdict(found), "tokens_per_second": rate}))
        return
    click.echo(f"perplexity {found.perplexity:.4f} ± {found.standard_error:.4f}")
    click.echo(
        f"{number(found.windows)} windows of {number(found.context)} tokens, {number(found.tokens)} tokens scored, "
        f"{found.seconds:.1f} s, {found.tokens_per_second:.0f} tok/s"
    )


def _remember(path: Path, content: str, found: Perplexity) -> None:
    """Keep the figure for ``edgellm fit``."""
    from edgellm.evaluation.records import remember
    from edgellm.gguf import open_gguf

    with open_gguf(path) as file:
        remember(file, content, found)


@click.command("kl")
@click.argument("base")
@click.argument("model")
@click.argument("text", type=click.Path(path_type=Path))
@window_options
@evaluation_options
def kl_command(base: str, model: str, text: Path, context: int, windows: int | None, as_json: bool) -> None:
    """Measure how far MODEL is from BASE, the model it was made from, on the text in the file TEXT.

    Both run side by side on the windows that ``edgellm perplexity`` takes. The divergence of Kullback and Leibler says
    how much is lost of what BASE would predict: 0 if nothing.
    """
    content = read_text_file(text, TEXT_LIMIT)
    from edgellm.evaluation.divergence import measure_divergence
    from edgellm.evaluation.windows import WindowSettings

    settings = WindowSettings(context, windows)
    with (
        open_model(evaluated_model(base, context)) as original,
        open_model(evaluated_model(model, context)) as llm,
        ProgressDisplay() as display,
    ):
        found = measure_divergence(original, llm, content, settings, display)
    if as_json:
        from edgellm.cli.results import to_json

        click.echo(to_json({"base": base, "model": model, **asdict(found)}))
        return
    for line in divergence_lines(found):
        click.echo(line)


def divergence_lines(found: Divergence) -> list[str]:
    """The figures for people."""
    return [
        f"KL divergence        {found.mean:.6f} ± {found.mean_error:.6f} (mean), {found.median:.6f} (median), "
        f"{found.percentile_99:.6f} (99 %), {found.maximum:.6f} (most)",
        f"perplexity           {found.perplexity:.4f}, base {found.base_perplexity:.4f}; "
        f"log of the ratio {found.log_ratio:.6f} ± {found.log_ratio_error:.6f}",
        f"right token          probability {100 * found.mean_change:+.3f} % (mean), "
        f"{100 * found.rms_change:.3f} % (root of the mean square)",
        f"same best token      {100 * found.same_best:.2f} ± {100 * found.same_best_error:.2f} %",
        f"{number(found.windows)} windows of {number(found.context)} tokens, {number(found.tokens)} tokens scored, "
        f"{found.seconds:.1f} s",
    ]
