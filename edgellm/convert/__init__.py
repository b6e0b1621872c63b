"""Conversion of Hugging Face checkpoints into GGUF files, without torch and in little memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm.convert.adapter import convert_adapter, is_adapter
    from edgellm.convert.conversion import Converted, convert
    from edgellm.convert.merging import merge
    from edgellm.convert.settings import ConvertSettings
    from edgellm.convert.whisper import convert_whisper, is_whisper

__all__ = [
    "ConvertSettings",
    "Converted",
    "convert",
    "convert_adapter",
    "convert_whisper",
    "is_adapter",
    "is_whisper",
    "merge",
]

_HOMES = {
    "ConvertSettings": "edgellm.convert.settings",
    "Converted": "edgellm.convert.conversion",
    "convert": "edgellm.convert.conversion",
    "convert_adapter": "edgellm.convert.adapter",
    "convert_whisper": "edgellm.convert.whisper",
    "is_whisper": "edgellm.convert.whisper",
    "is_adapter": "edgellm.convert.adapter",
    "merge": "edgellm.convert.merging",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
