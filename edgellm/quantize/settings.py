"""What can be chosen about a quantization."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgellm.errors import InvalidSettingError
from edgellm.quantize.mixtures import Overrides, find_mixture, find_type


@dataclass(frozen=True)
class QuantizeSettings:
    """How to quantize.

    Attributes:
        type: the mixture, one of ``mixtures.MIXTURES``.
        importance: an importance matrix (GGUF or llama.cpp's older format), or a text to make one from.
        gptq: a text by which rounding errors are compensated (GPTQ), instead of each weight being rounded by itself.
        chunks: how many chunks of 512 tokens of a text are read, at most.
        tensor_types: pairs of a regular expression and a type, for tensors whose names it is found in.
        output_type: type of the output matrix.
        embedding_type: type of the token embedding.
        pure: all matrices get the base type of the mixture.
        keep_split: as many files as the model has.
        allow_requantize: also of weights that are quantized already.
        force: replace existing files.
        threads: how many quantize at once; by default one for each core.
    """

    type: str
    importance: str | None = None
    gptq: str | None = None
    chunks: int = 64
    tensor_types: tuple[tuple[str, str], ...] = ()
    output_type: str | None = None
    embedding_type: str | None = None
    pure: bool = False
    keep_split: bool = False
    allow_requantize: bool = False
    force: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InvalidSettingError: one of them is not known or out of range.
        """
        find_mixture(self.type)
        self.overrides()
        for name, value in (("threads", self.threads), ("chunks", self.chunks)):
            if value is not None and value < 1:
                raise InvalidSettingError(f"{name} is {value}", "give 1 or more")

    def overrides(self) -> Overrides:
        """What is wanted otherwise than the mixture has it."""
        return Overrides(
            find_type(self.output_type) if self.output_type else None,
            find_type(self.embedding_type) if self.embedding_type else None,
            tuple((_pattern(text), find_type(kind)) for text, kind in self.tensor_types),
            self.pure,
        )


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidSettingError(f"{text!r} is not a regular expression: {error}") from None
