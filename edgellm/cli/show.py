"""``edgellm show``: what is in a model file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.console import clean, number
from edgellm.cli.loading import find_model
from edgellm.cli.options import ModelOptions
from edgellm.errors import EdgeLLMError
from edgellm.hub.files import format_bytes

if TYPE_CHECKING:
    from edgellm.gguf import GGUFFile

_FEW = 8
"""Values of an array that are shown; the rest is counted."""
_LONG = 200
"""Characters of a text that are shown."""


@click.command("show")
@click.argument("model")
@click.option("--template", is_flag=True, help="Print the chat template and nothing else.")
@click.option("--metadata", is_flag=True, help="Print every key of the file.")
@click.option("--tensors", is_flag=True, help="Print every tensor.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all of it.")
@click.option("--offline", is_flag=True, help="Never use the network.")
def show_command(model: str, template: bool, metadata: bool, tensors: bool, as_json: bool, offline: bool) -> None:
    """Tell what is in the file of MODEL: size, architecture, tensor types, metadata, chat template."""
    path = find_model(ModelOptions(model, offline=offline))
    from edgellm.gguf import open_gguf

    with open_gguf(path) as file:
        if template:
            click.echo(clean(_template(file)))
        elif as_json:
            from edgellm.cli.results import to_json

            click.echo(to_json(_as_object(file)))
        elif metadata or tensors:
            for line in [*(_metadata_lines(file) if metadata else ()), *(_tensor_lines(file) if tensors else ())]:
                click.echo(clean(line))
        else:
            for name, value in _summary(file).items():
                click.echo(clean(f"{name:<14} {value}"))


def _template(file: GGUFFile) -> str:
    template = file.metadata.get("tokenizer.chat_template")
    if not isinstance(template, str):
        raise EdgeLLMError(f"{file.path.name} has no chat template", "edgellm falls back to a common one and says so")
    return template


def _summary(file: GGUFFile) -> dict[str, str]:
    """The lines of ``edgellm show``, those that the file has something to tell for."""
    from edgellm.gguf import StringArray

    metadata = file.metadata
    architecture = str(metadata.get("general.architecture", "unknown"))

    def of_model(key: str) -> object:
        return metadata.get(f"{architecture}.{key}")

    heads = of_model("attention.head_count")
    tokens = metadata.get("tokenizer.ggml.tokens")
    values: dict[str, Any] = {
        "name": metadata.get("general.name"),
        "architecture": architecture,
        "file": ", ".join(str(path) for path in file.paths),
        "size": format_bytes(file.size_bytes),
        "parameters": number(sum(_values(shape) for shape in (info.shape for info in file.tensors.values()))),
        "tensors": ", ".join(
            f"{count} {kind} ({format_bytes(size)})" for kind, (count, size) in _by_type(file).items()
        ),
        "context": _count(of_model("context_length")),
        "layers": _count(of_model("block_count")),
        "width": _count(of_model("embedding_length")),
        "heads": f"{heads} ({of_model('attention.head_count_kv')} for keys and values)"
        if isinstance(heads, int)
        else None,
        "vocabulary": number(len(tokens)) if isinstance(tokens, StringArray) else None,
        "tokenizer": " ".join(
            str(metadata[key]) for key in ("tokenizer.ggml.model", "tokenizer.ggml.pre") if key in metadata
        ),
        "chat template": "yes (--template prints it)" if "tokenizer.chat_template" in metadata else "none",
        "license": metadata.get("general.license"),
    }
    return {name: _shortened(str(value)) for name, value in values.items() if value not in (None, "")}


def _count(value: object) -> str | None:
    return number(value) if isinstance(value, int) else None


def _values(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _by_type(file: GGUFFile) -> dict[str, tuple[int, int]]:
    """Tensor type to the number of tensors and their bytes, the largest share first."""
    found: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for info in file.tensors.values():
        count, size = found[info.type.name]
        found[info.type.name] = count + 1, size + info.size_bytes
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def _metadata_lines(file: GGUFFile) -> Iterator[str]:
    for key in file.metadata:
        value = _plain(file.metadata[key], _FEW)
        if isinstance(value, list):
            count = len(file.metadata[key])  # type: ignore[arg-type]
            shown = ", ".join(_shortened(repr(item), 40) for item in value)
            yield f"{key} = [{shown}{', ...' if count > len(value) else ''}] ({number(count)} values)"
        else:
            yield f"{key} = {_shortened(repr(value))}"


def _tensor_lines(file: GGUFFile) -> Iterator[str]:
    width = max((len(name) for name in file.tensors), default=0)
    for name, info in file.tensors.items():
        shape = " x ".join(map(str, info.shape))
        yield f"{name:<{width}}  {info.type.name:<8} {shape:<16} {format_bytes(info.size_bytes)}"


def _as_object(file: GGUFFile) -> dict[str, Any]:
    """Everything, for programs. Long arrays are given by their length."""
    return {
        "path": str(file.path),
        "paths": [str(path) for path in file.paths],
        "size_bytes": file.size_bytes,
        "parameters": sum(_values(info.shape) for info in file.tensors.values()),
        "metadata": {key: _json_value(value) for key, value in file.metadata.items()},
        "tensors": [
            {"name": name, "type": info.type.name, "shape": list(info.shape), "size_bytes": info.size_bytes}
            for name, info in file.tensors.items()
        ],
        "tensor_types": {kind: {"count": count, "bytes": size} for kind, (count, size) in _by_type(file).items()},
    }


def _json_value(value: Any) -> Any:
    plain = _plain(value, 64)
    if isinstance(plain, list) and len(value) > len(plain):
        return {"length": len(value), "first": plain[:_FEW]}
    if isinstance(plain, float) and plain - plain != 0:  # infinite or not a number: JSON knows neither
        return str(plain)
    return plain


def _plain(value: Any, most: int) -> Any:
    """A metadata value as Python's own types; arrays cut to ``most`` values."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str | bool | int | float):
        return value
    if hasattr(value, "dtype"):
        return value[:most].tolist() if getattr(value, "ndim", 0) else value.item()
    return [_plain(item, most) for item in value[:most]]


def _shortened(text: str, length: int = _LONG) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."
