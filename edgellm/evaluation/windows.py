"""A text cut into windows of one length, of which the second half is scored, as llama.cpp does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellm.errors import InvalidSettingError

if TYPE_CHECKING:
    from edgellm.scoring import ScoredText
    from edgellm.tokenizer import Tokenizer

Progress = Callable[[str, int, int], None]
DEFAULT_CONTEXT = 512
SMALLEST_CONTEXT = 8


@dataclass(frozen=True)
class WindowSettings:
    """How a text is cut.

    Attributes:
        context: tokens of a window; of each the tokens behind its first half are scored.
        windows: how many, from the beginning of the text; None for as many as there are.
    """

    context: int = DEFAULT_CONTEXT
    windows: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InvalidSettingError: one is too small.
        """
        if self.context < SMALLEST_CONTEXT:
            raise InvalidSettingError(f"windows of {self.context} tokens", f"use at least {SMALLEST_CONTEXT}")
        if self.windows is not None and self.windows < 1:
            raise InvalidSettingError(f"{self.windows} windows", "use at least 1")

    @property
    def scored(self) -> int:
        """Tokens of each window that are scored."""
        return self.context - self.context // 2 - 1


class Windows:
    """The windows of a text. Iterating gives them as texts to score.

    A token that begins a text, if the model wants one, takes the place of each window's first token, so that it stands
    where the model expects it and no token is scored twice.

    Args:
        tokenizer: of the model.
        text: without its last line break, which llama.cpp leaves out too.
        settings: how to cut.

    Raises:
        InvalidSettingError: the text has fewer tokens than one window.
    """

    def __init__(self, tokenizer: Tokenizer, text: str, settings: WindowSettings) -> None:
        self._ids = tokenizer.encode(text.removesuffix("\n"))
        self.context = settings.context
        available = len(self._ids) // settings.context
        if available == 0:
            raise InvalidSettingError(
                f"the text has {len(self._ids)} tokens, one window takes {settings.context}",
                "give a longer text or a smaller --context",
            )
        self.count = min(available, settings.windows or available)
        self._begin = tokenizer.bos_id if tokenizer.add_bos else None

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[ScoredText]:
        from edgellm.scoring import ScoredText

        for number in range(self.count):
            ids = self._ids[number * self.context : (number + 1) * self.context]
            if self._begin is not None:
                ids = [self._begin, *ids[1:]]
            yield ScoredText(ids, self.context // 2 + 1)
