"""Word wrap for text that arrives in pieces."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

_FENCE = "```"


class WordWrapper:
    """Breaks lines between words so that none is wider than the terminal; code between ``` fences is left alone.

    The last word is held back until it is complete, so the outcome does not depend on how the text was cut into pieces.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        """``width``: columns of the terminal, asked anew for every word, since it may change."""
        self._width = width
        self._column = 0
        self._spaces = ""
        self._word = ""
        self._line_start = ""
        self._in_code = False

    def push(self, text: str) -> str:
        """Add text; returns what can be shown."""
        return "".join(map(self._next, text))

    def flush(self) -> str:
        """The rest, once the text has ended."""
        return self._end_word() + self._end_spaces()

    def _next(self, character: str) -> str:
        if character == "\n":
            shown = self.flush() + "\n"
            if self._line_start.startswith(_FENCE):
                self._in_code = not self._in_code
            self._column, self._line_start = 0, ""
            return shown
        if len(self._line_start) < len(_FENCE):
            self._line_start += character
        if self._in_code or self._line_start.startswith(_FENCE):
            shown = self.flush() + character
            self._column += columns(character)
            return shown
        if character in " \t":
            shown = self._end_word()
            self._spaces += character
            return shown
        if columns(character) == 2:  # scripts written without spaces may break at any character
            shown = self._end_word()
            self._word = character
            return shown + self._end_word()
        self._word += character
        return ""

    def _end_word(self) -> str:
        if not self._word:
            return ""
        word, self._word = self._word, ""
        needed = columns(word)
        if self._column and self._column + columns(self._spaces) + needed > self._width():
            self._spaces, self._column = "", needed
            return "\n" + word
        shown = self._end_spaces() + word
        self._column += needed
        return shown

    def _end_spaces(self) -> str:
        spaces, self._spaces = self._spaces, ""
        self._column += columns(spaces)
        return spaces


def columns(text: str) -> int:
    """How many columns of a terminal a text takes (Unicode Standard Annex 11); a tab counts as eight."""
    return sum(map(_columns_of, text))


def _columns_of(character: str) -> int:
    if character == "\t":
        return 8
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Me", "Mn"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
