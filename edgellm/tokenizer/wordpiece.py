"""WordPiece, as BERT and its embedding models use it: longest token first, within words."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from edgellm.tokenizer.encoders import BLOCK
from edgellm.tokenizer.vocabulary import Vocabulary

_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)

_SEPARATES, _IS_WORD, _IS_DROPPED, _BELONGS = range(4)


@lru_cache(8192)
def _treatment(character: str) -> int:
    """What a character does to the word around it (Devlin et al. 2018, "BERT", basic tokenizer)."""
    category = unicodedata.category(character)
    if category[0] == "Z" or character in "\t\n\r":
        return _SEPARATES
    if category in ("Cc", "Cf", "Cs", "Co") or character == "\ufffd":
        return _IS_DROPPED
    code = ord(character)
    if category[0] == "P" or (code < 0x7F and category[0] == "S"):
        return _IS_WORD
    if code >= 0x3400 and any(first <= code <= last for first, last in _IDEOGRAPHS):
        return _IS_WORD
    return _BELONGS


class WordPieceEncoder:
    """Words at white space and signs, each spelt with the longest tokens from left to right.

    Tokens that begin a word are stored with U+2581 in front. A word that cannot be spelt is the unknown token.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        assert vocabulary.special.unknown is not None
        self._unknown: int = vocabulary.special.unknown
        self._ids = vocabulary.ids
        self._rules = vocabulary.rules
        self._lengths = sorted({len(token) for token in vocabulary.tokens}, reverse=True)

    def encode(self, text: str, starts: bool) -> list[int]:
        ids: list[int] = []
        for word in self._words(text):
            ids += self._spell((BLOCK + word).encode())
        return ids

    def _words(self, text: str) -> list[str]:
        if self._rules.strip_accents:
            text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
        if self._rules.lowercase:
            # Character by character, as BERT does: no final form of sigma.
            text = text.replace("\u03a3", "\u03c3").lower()
        parts = []
        for character in text:
            treatment = _treatment(character)
            if treatment == _BELONGS:
                parts.append(character)
            elif treatment == _SEPARATES:
                parts.append(" ")
            elif treatment == _IS_WORD:
                parts.append(f" {character} ")
        return "".join(parts).split(" ")

    def _spell(self, word: bytes) -> list[int]:
        if word == BLOCK.encode():
            return []
        ids: list[int] = []
        place = 0
        while place < len(word):
            for length in self._lengths:
                number = self._ids.get(word[place : place + length]) if length <= len(word) - place else None
                if number is not None:
                    ids.append(number)
                    place += length
                    break
            else:
                return [self._unknown]
        return ids
