"""From ids back to text, at once or as they come, never showing half a character."""

from __future__ import annotations

import codecs
import re

import numpy as np

from edgellm.errors import InvalidSettingError
from edgellm.tokenizer.encoders import BLOCK, byte_spellings
from edgellm.tokenizer.vocabulary import CUTTING_TYPES, Kind, TokenType, Vocabulary

_TEXT_KINDS = (int(TokenType.NORMAL), int(TokenType.BYTE))
_HIDDEN_KINDS = (int(TokenType.CONTROL), int(TokenType.UNKNOWN))
_CUTTING_KINDS = tuple(map(int, CUTTING_TYPES))


class TokenBytes:
    """What each token adds to the text, worked out when it is first asked for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokens = vocabulary.tokens
        self.kinds = vocabulary.types.astype(np.uint8).tobytes()
        """Type of each token, as one byte."""
        self._known: dict[int, bytes] = {}
        self._spelt = vocabulary.kind is Kind.BPE and vocabulary.pre_tokenizer.byte_level
        self._bytes = {spelling: byte for byte, spelling in enumerate(byte_spellings())} if self._spelt else {}

    def __call__(self, number: int) -> bytes:
        """The bytes of a token; part of a character for many.

        Raises:
            InvalidSettingError: no token has this id.
        """
        found = self._known.get(number)
        if found is None:
            found = self._known[number] = self._work_out(number)
        return found

    def _work_out(self, number: int) -> bytes:
        if not 0 <= number < len(self._tokens):
            raise InvalidSettingError(
                f"token id {number} is not in the vocabulary", f"ids go from 0 to {len(self._tokens) - 1}"
            )
        text = self._tokens[number]
        match self.kinds[number]:
            case TokenType.CONTROL | TokenType.UNKNOWN | TokenType.USER_DEFINED:
                return text
            case TokenType.BYTE:
                return bytes((int(text[3:5], 16),))
            case TokenType.NORMAL:
                return self._unspell(text) if self._spelt else text.replace(BLOCK.encode(), b" ")
            case _:
                return b""

    def _unspell(self, text: bytes) -> bytes:
        try:
            return bytes(map(self._bytes.__getitem__, text.decode()))
        except (KeyError, UnicodeDecodeError):
            # Added by hand, not spelt in bytes.
            return text


class StreamDecoder:
    """Turns ids into text as they come.

    All the pieces together, with what :meth:`flush` gives, are what decoding the ids at once gives.
    """

    def __init__(self, vocabulary: Vocabulary, token_bytes: TokenBytes, *, special: bool, starts: bool) -> None:
        """``special``: show control tokens; ``starts``: nothing, or a special token, stands before the first id."""
        self._token_bytes = token_bytes
        self._kinds = token_bytes.kinds
        self._special = special
        self._drops_space = vocabulary.rules.add_space_prefix or vocabulary.kind is Kind.WPM
        self._at_start = starts
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._tidy = _SpaceTidier() if vocabulary.kind is Kind.WPM else None

    def push(self, number: int) -> str:
        """The text that ``number`` completes; empty while a character is unfinished.

        Raises:
            InvalidSettingError: no token has this id.
        """
        text = self._characters.decode(self.push_bytes(number))
        return self._tidy.push(text) if self._tidy else text

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character. The decoder can then be used anew."""
        text = self._characters.decode(b"", final=True)
        self._characters.reset()
        return self._tidy.push(text, final=True) if self._tidy else text

    def push_bytes(self, number: int) -> bytes:
        """The bytes of ``number`` at this place: without the space that encoding put there."""
        data = self._token_bytes(number)
        kind = self._kinds[number]
        if kind in _TEXT_KINDS:
            if not self._at_start or not data:
                return data
            self._at_start = False
            return data.removeprefix(b" ") if self._drops_space else data
        if kind in _CUTTING_KINDS:
            self._at_start = True
        return b"" if kind in _HIDDEN_KINDS and not self._special else data


class _SpaceTidier:
    """Takes out the spaces that splitting at signs has put between words and signs (WordPiece)."""

    # A space that goes, with what follows it; the longest is three characters.
    _GOES = re.compile(r" (?=[?!.,])| (?=n't|'m|'s|'ve|'re)| (')(?: )")

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str, final: bool = False) -> str:
        text = self._held + text
        parts = []
        place = 0
        while True:
            space = text.find(" ", place)
            if space < 0:
                parts.append(text[place:])
                self._held = ""
                break
            parts.append(text[place:space])
            if not final and len(text) - space < 4:
                self._held = text[space:]
                break
            match = self._GOES.match(text, space)
            if match is None:
                parts.append(" ")
                place = space + 1
            else:
                parts.append(match.group(1) or "")
                place = match.end()
        return "".join(parts)
