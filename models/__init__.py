"""Model architectures: one short file per family, found by the name in the model file's ``general.architecture``.

To add one, write a file here with a function that takes a ``GraphBuilder``, describes the model on it and returns
the logits, and decorate it with the architecture's name (see ``llama.py``). Nothing else needs to know of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.errors import CorruptFileError, UnsupportedModelError
from edgellm.graph import Graph
from edgellm.models.blocks import GraphBuilder
from edgellm.models.registry import find_architecture, known_architectures

if TYPE_CHECKING:
    from edgellm.gguf import GGUFFile

__all__ = ["GraphBuilder", "build_graph", "known_architectures"]


def build_graph(file: GGUFFile, context_length: int | None = None) -> Graph:
    """Describe the model in ``file`` as a graph; every weight that the graph names exists and has the right shape.

    Args:
        file: an open model file.
        context_length: tokens that a sequence may reach, at most the model's own, which is the default.

    Raises:
        UnsupportedModelError: the architecture, or something in it, is not known here.
        CorruptFileError: a key or tensor is missing, of the wrong kind or shape, or out of range.
        InvalidSettingError: ``context_length`` is not between 1 and the model's own.
    """
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or not name:
        raise CorruptFileError(
            "the file has no general.architecture, so it is not a model", "check that it is complete"
        )
    if name == "whisper":
        raise UnsupportedModelError("this is a speech model, not a language model", "use: edgellm transcribe --model")
    describe = find_architecture(name)
    builder = GraphBuilder(file, name, context_length)
    return builder.finish(describe(builder))
