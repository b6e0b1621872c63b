"""``edgellm inspect``: all that a model file holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.console import ProgressDisplay, clean, escaped, notice, number
from edgellm.cli.loading import find_model
from edgellm.cli.options import ModelOptions
from edgellm.errors import TemplateError
from edgellm.hub.files import format_bytes

if TYPE_CHECKING:
    from edgellm.gguf import GGUFFile
    from edgellm.inspection import Hashes, KeyValue, Summary, TemplateExample

_LONG = 200
"""Characters of a text that are shown."""
_FEW = 8
"""Values of an array that are shown; the rest is counted."""
_WIDEST = 48
"""Columns that a name may take before it pushes the rest of its line to the right."""


@click.command("inspect")
@click.argument("model")
@click.option("--metadata", is_flag=True, help="Only the keys (and what else is asked for).")
@click.option("--tensors", is_flag=True, help="Only the tensors.")
@click.option("--hashes", is_flag=True, help="Only the tensors, with the SHA-256 of their data, and of the files.")
@click.option("--template", is_flag=True, help="Only the chat template, rendered on an example.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--offline", is_flag=True, help="Never use the network.")
def inspect_command(
    model: str, metadata: bool, tensors: bool, hashes: bool, template: bool, as_json: bool, offline: bool
) -> None:
    """Print what the file of MODEL holds: keys, tensors, and the chat template rendered on an example conversation.

    Without any of the options: all but the hashes, for which the whole file has to be read.
    """
    path = find_model(ModelOptions(model, offline=offline))
    from edgellm.gguf import open_gguf
    from edgellm.inspection import hash_data

    everything = not (metadata or tensors or hashes or template)
    with open_gguf(path) as file:
        found: Hashes | None = None
        if hashes:
            with ProgressDisplay() as display:
                found = hash_data(file, display)
        sections = _sections(metadata or everything, tensors or hashes or everything, template or everything)
        if as_json:
            from edgellm.cli.results import to_json

            click.echo(to_json(_as_object(file, sections, found, strict=template)))
        else:
            _print(file, sections, found, strict=template)


def _sections(metadata: bool, tensors: bool, template: bool) -> tuple[str, ...]:
    wanted = {"metadata": metadata, "tensors": tensors, "template": template}
    return tuple(name for name, is_wanted in wanted.items() if is_wanted)


def _print(file: GGUFFile, sections: tuple[str, ...], hashes: Hashes | None, strict: bool) -> None:
    """The sections one after the other, with headings if there are several."""
    headings = {
        "metadata": f"metadata: {number(len(file.metadata))} keys",
        "tensors": f"tensors: {number(len(file.tensors))}",
        "template": "chat template",
    }
    for section in sections:
        if len(sections) > 1:
            click.echo(f"{'' if section == sections[0] else chr(10)}{headings[section]}\n")
        if section == "metadata":
            lines = key_lines(file)
        elif section == "tensors":
            lines = tensor_lines(file, hashes)
        else:
            lines = _template_lines(file, strict)
        for line in lines:
            click.echo(line)
    if hashes is not None:
        click.echo()
        for path, digest in zip(file.paths, hashes.files, strict=True):
            click.echo(f"{digest}  {escaped(str(path))}")


def key_lines(file: GGUFFile) -> Iterator[str]:
    """One line for each key: name, type, value."""
    from edgellm.inspection import keys

    names = [escaped(name) for name in file.metadata]
    width = min(_WIDEST, max(map(len, names), default=0))
    for name, key in zip(names, keys(file, _FEW), strict=True):
        yield f"{name:<{width}}  {key.type:<16}  {_value(key)}"


def _value(key: KeyValue) -> str:
    if key.length is None:
        return _shortened(key.value, _LONG)
    shown = ", ".join(_shortened(item, 40) for item in key.value)
    more = ", ..." if key.length > len(key.value) else ""
    return f"[{shown}{more}] ({number(key.length)} values)"


def _shortened(value: object, length: int) -> str:
    """A value in Python's notation, in which no character does anything to a terminal."""
    text = escaped(repr(value[: length + 1] if isinstance(value, str) else value))
    return text if len(text) <= length else f"{text[: length - 3]}..."


def tensor_lines(file: GGUFFile, hashes: Hashes | None) -> Iterator[str]:
    """One line for each tensor: name, type, shape, size, bits per weight, hash."""
    from edgellm.inspection import tensors

    names = [escaped(name) for name in file.tensors]
    width = min(_WIDEST, max(map(len, names), default=0))
    for name, tensor in zip(names, tensors(file, hashes), strict=True):
        shape = " x ".join(map(str, tensor.shape))
        size, bits = format_bytes(tensor.size_bytes), f"{tensor.bits_per_weight:.3g} bits"
        line = f"{name:<{width}}  {tensor.type:<8} {shape:<18} {size:>10} {bits:>10}"
        yield line if tensor.sha256 is None else f"{line}  {tensor.sha256}"


def _template_lines(file: GGUFFile, strict: bool) -> Iterator[str]:
    """The prompt for the example conversation; ``strict``: a template that fails is an error."""
    from edgellm.inspection import EXAMPLE, template_example

    try:
        example = template_example(file)
    except TemplateError as error:
        if strict:
            raise
        yield escaped(f"{error}")
        return
    if example.warning:
        notice(f"note: {example.warning}")
    if len(example.messages) < len(EXAMPLE):
        notice("note: the template takes no system message")
    if len(example.names) > 1:
        notice(f"note: there are several templates, {', '.join(example.names)}; this is {example.name}")
    yield clean(example.text)


def summary_object(summary: Summary) -> dict[str, Any]:
    """A summary for programs."""
    fields = asdict(summary)
    paths = [str(path) for path in fields.pop("paths")]
    return {"path": paths[0], "paths": paths, **fields}


def json_value(key: KeyValue) -> Any:
    """A value for programs; long arrays are given by their length and first values."""
    if key.length is not None and key.length > len(key.value):
        return {"length": key.length, "first": _finite(key.value[:_FEW])}
    return _finite(key.value)


def _finite(value: Any) -> Any:
    """Infinite and undefined numbers as text: JSON knows neither."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and value - value != 0 else value


def _as_object(file: GGUFFile, sections: tuple[str, ...], hashes: Hashes | None, strict: bool) -> dict[str, Any]:
    from edgellm.inspection import keys, summarize, tensors

    told = summary_object(summarize(file))
    if "metadata" in sections:
        told["metadata"] = {
            key.name: {"type": key.type, "length": key.length, "value": _finite(key.value)} for key in keys(file, _FEW)
        }
    if "tensors" in sections:
        told["tensors"] = [{**asdict(tensor), "path": str(tensor.path)} for tensor in tensors(file, hashes)]
    if hashes is not None:
        told["sha256"] = {str(path): digest for path, digest in zip(file.paths, hashes.files, strict=True)}
    if "template" in sections:
        told["template"] = _template_object(file, strict)
    return told


def _template_object(file: GGUFFile, strict: bool) -> dict[str, Any]:
    from edgellm.inspection import template_example

    try:
        example: TemplateExample = template_example(file)
    except TemplateError as error:
        if strict:
            raise
        return {"error": str(error)}
    return {"error": None, **asdict(example), "messages": [dict(message) for message in example.messages]}
