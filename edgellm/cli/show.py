"""``edgellm show``: what is in a model file, in short."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.console import clean, escaped, number
from edgellm.cli.loading import find_model
from edgellm.cli.options import ModelOptions
from edgellm.errors import EdgeLLMError
from edgellm.hub.files import format_bytes

if TYPE_CHECKING:
    from edgellm.gguf import GGUFFile
    from edgellm.inspection import Summary


@click.command("show")
@click.argument("model")
@click.option("--template", is_flag=True, help="Print the chat template and nothing else.")
@click.option("--metadata", is_flag=True, help="Print every key of the file.")
@click.option("--tensors", is_flag=True, help="Print every tensor.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all of it.")
@click.option("--offline", is_flag=True, help="Never use the network.")
def show_command(model: str, template: bool, metadata: bool, tensors: bool, as_json: bool, offline: bool) -> None:
    """Tell what is in the file of MODEL: architecture, size, quantization, context, tokenizer, licence.

    ``edgellm inspect`` tells all of it.
    """
    path = find_model(ModelOptions(model, offline=offline))
    from edgellm.cli import inspect
    from edgellm.gguf import open_gguf
    from edgellm.inspection import summarize

    with open_gguf(path) as file:
        if template:
            click.echo(clean(_template(file)))
        elif as_json:
            from edgellm.cli.results import to_json

            click.echo(to_json(_as_object(file)))
        elif metadata or tensors:
            for line in [
                *(inspect.key_lines(file) if metadata else ()),
                *(inspect.tensor_lines(file, None) if tensors else ()),
            ]:
                click.echo(line)
        else:
            for line in summary_lines(summarize(file)):
                click.echo(line)


def _template(file: GGUFFile) -> str:
    template = file.metadata.get("tokenizer.chat_template")
    if not isinstance(template, str):
        raise EdgeLLMError(f"{file.path.name} has no chat template", "edgellm falls back to a common one and says so")
    return template


def summary_lines(summary: Summary) -> list[str]:
    """The lines of ``edgellm show``, those that the file has something to tell for."""
    shares = ", ".join(f"{share.tensors} {share.type} ({format_bytes(share.size_bytes)})" for share in summary.types)
    names = summary.templates
    has_template = (
        f"yes{'' if len(names) == 1 else ': ' + ', '.join(names)} (--template prints it)" if names else "none"
    )
    bits = f"{summary.bits_per_weight:.2f} bits per weight"
    values = {
        "name": summary.name,
        "type": None if summary.kind == "model" else summary.kind,
        "architecture": summary.architecture or "unknown",
        "file": ", ".join(map(str, summary.paths)),
        "size": format_bytes(summary.size_bytes),
        "parameters": number(summary.parameters),
        "quantization": f"{summary.quantization}, {bits}" if summary.quantization else bits,
        "tensors": shares or "none",
        "context": _count(summary.context_length),
        "layers": _count(summary.layers),
        "width": _count(summary.width),
        "heads": _heads(summary),
        "vocabulary": _count(summary.vocabulary),
        "tokenizer": summary.tokenizer,
        "chat template": has_template,
        "license": summary.license,
    }
    return [f"{name:<14} {_shortened(value)}" for name, value in values.items() if value]


def _heads(summary: Summary) -> str | None:
    if summary.heads is None:
        return None
    return f"{_range(summary.heads)} ({_range(summary.kv_heads or summary.heads)} for keys and values)"


def _range(count: int | tuple[int, ...]) -> str:
    """A number, or the least and the greatest of those of the layers."""
    if isinstance(count, int):
        return number(count)
    return f"{number(min(count))} to {number(max(count))}"


def _shortened(text: str, length: int = 200) -> str:
    text = escaped(" ".join(text[: 2 * length].split()))
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _count(value: int | None) -> str | None:
    return None if value is None else number(value)


def _as_object(file: GGUFFile) -> dict[str, Any]:
    """Everything, for programs. Long arrays are given by their length."""
    from edgellm.cli.inspect import json_value, summary_object
    from edgellm.inspection import keys, summarize

    summary = summarize(file)
    return {
        **summary_object(summary),
        "metadata": {key.name: json_value(key) for key in keys(file, 64)},
        "tensors": [
            {"name": name, "type": info.type.name, "shape": list(info.shape), "size_bytes": info.size_bytes}
            for name, info in file.tensors.items()
        ],
        "tensor_types": {share.type: {"count": share.tensors, "bytes": share.size_bytes} for share in summary.types},
    }
