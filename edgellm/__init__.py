"""Language and speech models on the device you have.

from edgellm import LLM, Sampling
llm = LLM.load("smollm2")
llm.generate("Once upon a time", max_tokens=32, sampling=Sampling(temperature=0)).text

from edgellm import Transcriber
Transcriber.load("tiny.en").transcribe("talk.mp3").text
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgellm.chat_template import ChatTemplate
    from edgellm.errors import (
        ContextOverflowError,
        CorruptFileError,
        DownloadError,
        EdgeLLMError,
        InvalidSettingError,
        ModelNotFoundError,
        OutOfMemoryError,
        TemplateError,
        UnsupportedModelError,
    )
    from edgellm.llm import LLM
    from edgellm.lora import Adapter
    from edgellm.results import Completion, Step, Timings
    from edgellm.sampling import Sampling
    from edgellm.speech.results import Segment, Transcript, Word
    from edgellm.speech.settings import TranscriptionSettings
    from edgellm.speech.transcriber import Transcriber
    from edgellm.tokenizer import Tokenizer

    __version__: str

__all__ = [
    "LLM",
    "Adapter",
    "ChatTemplate",
    "Completion",
    "ContextOverflowError",
    "CorruptFileError",
    "DownloadError",
    "EdgeLLMError",
    "InvalidSettingError",
    "ModelNotFoundError",
    "OutOfMemoryError",
    "Sampling",
    "Segment",
    "Step",
    "TemplateError",
    "Timings",
    "Tokenizer",
    "Transcriber",
    "Transcript",
    "TranscriptionSettings",
    "UnsupportedModelError",
    "Word",
    "__version__",
]

# What is imported from where, once it is asked for: `import edgellm` itself costs next to nothing.
_HOMES = {
    "LLM": "edgellm.llm",
    "Adapter": "edgellm.lora",
    "ChatTemplate": "edgellm.chat_template",
    "Completion": "edgellm.results",
    "Sampling": "edgellm.sampling",
    "Segment": "edgellm.speech.results",
    "Step": "edgellm.results",
    "Timings": "edgellm.results",
    "Tokenizer": "edgellm.tokenizer",
    "Transcriber": "edgellm.speech.transcriber",
    "Transcript": "edgellm.speech.results",
    "TranscriptionSettings": "edgellm.speech.settings",
    "Word": "edgellm.speech.results",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("edgellm")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in __all__:
        value = getattr(import_module("edgellm.errors"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
