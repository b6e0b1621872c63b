"""What a file says of itself in general: name, size, licence and the settings its makers recommend."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgellm.convert.builder import Key
from edgellm.convert.config import Config

_CARD_LINES = 400
_CARD_BYTES = 1 << 20
_SAMPLING = {
    "top_k": ("general.sampling.top_k", "i32"),
    "top_p": ("general.sampling.top_p", "f32"),
    "min_p": ("general.sampling.min_p", "f32"),
    "temperature": ("general.sampling.temp", "f32"),
    "repetition_penalty": ("general.sampling.penalty_repeat", "f32"),
}


def general_keys(
    folder: Path, name: str | None, generation: Config, parameters: int, experts: tuple[int, int, int]
) -> dict[str, Key]:
    """Keys that begin with ``general.``, apart from architecture and file type.

    Args:
        folder: of the checkpoint; its name is the model's if no other is given.
        name: of the model.
        generation: generation_config.json.
        parameters: values in all tensors.
        experts: values outside the experts, values of one expert, experts.
    """
    keys = {"general.type": Key("model", "string")}
    keys["general.name"] = Key(name or folder.resolve().name.replace("-", " ").replace("_", " "), "string")
    keys["general.size_label"] = Key(size_label(parameters, experts), "string")
    card = _card(folder)
    for entry in ("license", "license_name", "license_link"):
        value = card.get(entry)
        if value:
            key = "general.license" if entry == "license" else "general.license." + entry.removeprefix("license_")
            keys[key] = Key(value, "string")
    for entry, (key, kind) in _SAMPLING.items():
        value = generation.get(entry)
        if isinstance(value, int | float) and not isinstance(value, bool):
            keys[key] = Key(int(value), "i32") if kind == "i32" else Key(float(value), "f32")
    return keys


def size_label(parameters: int, experts: tuple[int, int, int]) -> str:
    """The size as models are named: 135M, 1.7B, 8x7B."""
    shared, single, count = experts
    return f"{count}x{_rounded(shared + single)}" if count else _rounded(parameters)


def _rounded(parameters: int) -> str:
    for unit, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if parameters >= unit:
            text = f"{parameters / unit:.1f}" if parameters < 10 * unit else f"{parameters / unit:.0f}"
            return text.removesuffix(".0") + letter
    return f"{max(1, round(parameters / 1000))}K"


def _card(folder: Path) -> Mapping[str, Any]:
    """Single lines ``name: value`` of the model card's front matter."""
    path = folder / "README.md"
    if not path.is_file() or path.stat().st_size > _CARD_BYTES:
        return {}
    lines = path.read_text("utf-8", "replace").splitlines()[:_CARD_LINES]
    if not lines or lines[0].strip() != "---":
        return {}
    found: dict[str, str] = {}
    for line in lines[1:]:
        if line.strip() == "---":
            break
        match = re.fullmatch(r"([A-Za-z_]+):\s*[\"']?([^\"'#]+?)[\"']?\s*", line)
        if match and len(match[2]) < 300:
            found[match[1]] = match[2]
    return found
