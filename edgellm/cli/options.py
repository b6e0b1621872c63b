"""The options that several commands share. What they collect lies in the click context, so no command repeats them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from edgellm.errors import EdgeLLMError

Function = TypeVar("Function", bound=Callable[..., Any])
Backend = Literal["cpu", "reference"]
CacheType = Literal["auto", "f16", "q8_0", "f32"]


@dataclass(frozen=True)
class ModelOptions:
    """Which model to load, and how."""

    model: str
    backend: Backend = "cpu"
    threads: int | None = None
    context: int | None = None
    cache_type: CacheType = "auto"
    offline: bool = False
    lora: tuple[str, ...] = ()


def collect_into(group: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """A callback that puts a given option into the context instead of the command's arguments."""

    def collect(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value is not None and value != ():
            ctx.meta.setdefault(f"edgellm.{group}", {})[param.name] = value

    return collect


def collected(group: str) -> dict[str, Any]:
    values = click.get_current_context().meta.get(f"edgellm.{group}", {})
    assert isinstance(values, dict)
    return values


def model_options(function: Function) -> Function:
    """Add --context, --threads, --cache-type, --backend, --lora and --offline."""
    collect = collect_into("model")
    options = (
        click.option(
            "--context",
            type=click.IntRange(min=1),
            help="Most tokens of prompt and answer together; by default what the model was made for, if memory allows.",
            expose_value=False,
            callback=collect,
        ),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            help="Threads to compute with; by default one for each core.",
            expose_value=False,
            callback=collect,
        ),
        click.option(
            "--cache-type",
            type=click.Choice(["auto", "f16", "q8_0", "f32"]),
            help="Number format of the cache; auto: f16 (BitNet: f32); q8_0 takes half the memory, f32 twice as much.",
            expose_value=False,
            callback=collect,
        ),
        click.option(
            "--backend",
            type=click.Choice(["cpu", "reference"]),
            help="cpu: compiled kernels; reference: plain NumPy, slow and exact.",
            expose_value=False,
            callback=collect,
        ),
        click.option(
            "--lora",
            metavar="PATH[:SCALE]",
            multiple=True,
            help="A LoRA adapter in GGUF format, and how much of it to add, 1 by default; may be given several times.",
            expose_value=False,
            callback=collect,
        ),
        offline_option(collect),
    )
    for option in reversed(options):
        function = option(function)
    return function


def offline_option(callback: Callable[[click.Context, click.Parameter, Any], None]) -> Callable[[Function], Function]:
    return click.option("--offline", is_flag=True, help="Never use the network.", expose_value=False, callback=callback)


def given_model(model: str) -> ModelOptions:
    """The model options given on the command line."""
    return ModelOptions(model, **collected("model"))


def prompt_options(function: Function) -> Function:
    """Add --prompt and --file, which together with standard input say where a text comes from."""
    function = click.option(
        "-f", "--file", type=click.Path(path_type=Path), help="Read the text from this file; - is standard input."
    )(function)
    return click.option("-p", "--prompt", help="The text itself.")(function)


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The text that --prompt, --file or standard input gives.

    Raises:
        click.UsageError: none was given, or two.
        EdgeLLMError: the file cannot be read or is not text.
    """
    if prompt is not None and file is not None:
        raise click.UsageError("--prompt and --file exclude each other")
    if prompt is not None:
        return require_unicode(prompt)
    if file is None and sys.stdin.isatty():
        raise click.UsageError("no text: give --prompt TEXT or --file FILE, or pipe one in")
    if file is None or str(file) == "-":
        return read_stdin()
    return read_text_file(file)


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, which stand for bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_unicode(text: str) -> str:
    """The text itself; EdgeLLMError if it cannot be encoded."""
    if not is_unicode(text):
        raise EdgeLLMError(f"the text {text[:40]!a} is not valid Unicode", "give it as UTF-8")
    return text


def read_stdin() -> str:
    """All of standard input.

    Raises:
        EdgeLLMError: it is not UTF-8.
    """
    content = sys.stdin.buffer.read()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EdgeLLMError(f"standard input is not UTF-8 text: {error.reason} at byte {error.start}") from error


def read_text_file(path: Path, limit: int = 64 << 20) -> str:
    """The text in a file.

    Raises:
        EdgeLLMError: it cannot be read, is larger than ``limit`` bytes, or is not UTF-8 text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise EdgeLLMError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > limit:
        raise EdgeLLMError(f"{path} is larger than {limit >> 20} MB, more than any context holds")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EdgeLLMError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if "\0" in text:
        raise EdgeLLMError(f"{path} is not text: it holds zero bytes")
    return text
