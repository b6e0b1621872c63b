"""Load a model for a command, showing what takes time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.cli.console import ProgressDisplay, notice
from edgellm.cli.options import ModelOptions

if TYPE_CHECKING:
    from edgellm.llm import LLM
    from edgellm.lora import Adapter
    from edgellm.speech.transcriber import Transcriber

VOICE_ACTIVITY_MODEL = "silero-vad"


def find_model(options: ModelOptions) -> Path:
    """The file of a model, downloaded if need be."""
    from edgellm.hub import resolve

    with ProgressDisplay() as display:
        return resolve(options.model, display, options.offline)


def open_model(options: ModelOptions) -> LLM:
    """Load a model, downloaded and its kernels compiled if need be."""
    find_model(options)
    from edgellm.llm import LLM

    with ProgressDisplay() as display:
        return LLM.load(
            options.model,  # not the file: an alias brings settings of its own
            backend=options.backend,
            threads=options.threads,
            context=options.context,
            cache_type=options.cache_type,
            progress=announced(display),
            adapters=[parse_adapter(text) for text in options.lora],
        )


def open_transcriber(options: ModelOptions, voice_activity: bool) -> Transcriber:
    """Load a Whisper model, and see that the one for voice activity is there; fetched and compiled if need be."""
    find_model(options)
    if voice_activity:
        find_model(replace(options, model=VOICE_ACTIVITY_MODEL))
    from edgellm.speech.transcriber import Transcriber

    with ProgressDisplay() as display:
        return Transcriber.load(options.model, threads=options.threads, progress=announced(display))


def announced(display: ProgressDisplay) -> Callable[[str, int, int], None]:
    """The display, with a word before kernels are compiled: it takes long, and happens once."""
    said = False

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal said
        if stage == "kernels" and done < total and not said:
            notice(f"compiling {total - done} kernels for this CPU; this happens once")
            said = True
        display(stage, done, total)

    return progress


def parse_adapter(text: str) -> Adapter:
    """An adapter given as PATH or PATH:SCALE.

    Raises:
        InvalidSettingError: the scale is no finite number.
    """
    from edgellm.lora import Adapter

    path, colon, scale = text.rpartition(":")
    try:
        return Adapter(path, float(scale)) if colon and path else Adapter(text)
    except ValueError:  # a colon within the name
        return Adapter(text)
