"""``edgellm warmup``: compile kernels beforehand."""

from __future__ import annotations

import time

import click

from edgellm.cli import loading
from edgellm.cli.options import given_model, model_options


@click.command("warmup")
@click.argument("model", default="smollm2")
@model_options
def warmup_command(model: str) -> None:
    """Compile the kernels that MODEL needs on this CPU, so that its first use does not wait for it."""
    from edgellm.folders import kernels_folder

    began = time.monotonic()
    with loading.open_model(given_model(model)) as llm:
        llm.generate(llm.tokenize("warm"), max_tokens=1)
    click.echo(f"{model} is ready ({time.monotonic() - began:.1f} s); its kernels are in {kernels_folder()}")
