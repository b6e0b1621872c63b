"""What can be chosen about a conversion."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from edgellm.errors import InvalidSettingError

TYPES = ("auto", "f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0")
"""Types of the matrices in the file. ``auto``: as the checkpoint stores them; ternary ones as tq2_0."""


@dataclass(frozen=True)
class ConvertSettings:
    """How to convert.

    Attributes:
        type: type of the matrices, one of ``TYPES``; norms, biases and routers always stay float32.
        force: replace an existing file.
        name: the model's name in the file; by default that of the folder.
        pre_tokenizer: name of the way text is cut into words, where it is not recognised.
        offline: never use the network.
        threads: how many encode at once; by default one for each core.
    """

    type: str = "auto"
    force: bool = False
    name: str | None = None
    pre_tokenizer: str | None = None
    offline: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InvalidSettingError: one of them is not known or out of range.
        """
        if self.type not in TYPES:
            near = difflib.get_close_matches(self.type.lower(), TYPES, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InvalidSettingError(f"type {self.type!r} is not known", f"{hint}known: {', '.join(TYPES)}")
        if self.threads is not None and self.threads < 1:
            raise InvalidSettingError(f"threads is {self.threads}", "give 1 or more")
