"""Encoding a piece of text that holds no special tokens: byte-pair encoding and SentencePiece's BPE."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from edgellm.errors import CorruptFileError
from edgellm.tokenizer.merging import merge_symbols
from edgellm.tokenizer.metadata import corrupt, read_strings, shown
from edgellm.tokenizer.pretokenizers import Splitter
from edgellm.tokenizer.vocabulary import Vocabulary

BLOCK = "\u2581"
"""What SentencePiece writes for a space."""

_CACHED_WORDS = 32768
_LONGEST_CACHED_WORD = 64


class Encoder(Protocol):
    """Turns text without special tokens into ids."""

    def encode(self, text: str, starts: bool) -> list[int]:
        """The ids of ``text``, which is not empty and valid Unicode.

        Args:
            text: what stands between two special tokens.
            starts: the text is the first, or follows a special token.
        """
        ...


def byte_spellings() -> list[str]:
    """GPT-2's printable character for each byte (Radford et al. 2019, "Language models are unsupervised multitask
    learners"): the byte's own Latin-1 character where that is printable, else the next one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spellings = []
    following = 0x100
    for byte in range(256):
        if byte in printable:
            spellings.append(chr(byte))
        else:
            spellings.append(chr(following))
            following += 1
    return spellings


class _WordEncoder:
    """Shared by the encoders that cut text into words and merge each: keeps the ids of recent words."""

    def __init__(self, encode_word: Callable[[str], tuple[int, ...]]) -> None:
        self._encode_word = encode_word
        self._cached: Callable[[str], tuple[int, ...]] = lru_cache(_CACHED_WORDS)(encode_word)

    def encode(self, words: list[str]) -> list[int]:
        ids: list[int] = []
        for word in words:
            ids += self._cached(word) if len(word) <= _LONGEST_CACHED_WORD else self._encode_word(word)
        return ids


class BytePairEncoder:
    """BPE with a list of merges, over bytes (GPT-2 and most models since) or characters (Gemma 4)."""

    def __init__(self, vocabulary: Vocabulary, metadata: Mapping[str, Any]) -> None:
        self._ids = vocabulary.ids
        self._pre = vocabulary.pre_tokenizer
        self._lowercase = vocabulary.name == "whitespace" and vocabulary.rules.lowercase
        self._ranks, self._separator = _read_ranks(metadata, vocabulary)
        self._spellings = [spelling.encode() for spelling in byte_spellings()]
        self._space_cut = _space_cut(vocabulary.tokens) if self._pre.spaces_to_blocks else None
        self._split = Splitter(self._pre).split
        self._words = _WordEncoder(self._word)

    def encode(self, text: str, starts: bool) -> list[int]:
        if self._lowercase:
            text = text.lower()
        if self._pre.spaces_to_blocks:
            text = text.replace(" ", BLOCK)
        words = self._split(text)
        if self._space_cut is not None:
            words = [part for word in words for part in _cut(self._space_cut, word)]
        return self._words.encode(words)

    def _word(self, word: str) -> tuple[int, ...]:
        if self._pre.byte_level:
            spellings = self._spellings
            symbols = [spellings[byte] for byte in word.encode()]
        else:
            symbols = [character.encode() for character in word]
        if self._pre.ignore_merges or (self._pre.whole_newlines and word.count("\n") == len(word)):
            whole = self._ids.get(b"".join(symbols))
            if whole is not None:
                return (whole,)
        ids: list[int] = []
        for symbol in merge_symbols(symbols, self._ranks, self._separator):
            number = self._ids.get(symbol)
            if number is not None:
                ids.append(number)
            elif not self._pre.byte_level:
                ids += (self._ids[spelt] for byte in symbol if (spelt := b"<0x%02X>" % byte) in self._ids)
        return tuple(ids)


def _read_ranks(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> tuple[dict[bytes, int], bytes]:
    """Rank of each merge, and what separates left from right in its key.

    A symbol never holds a space, so the line "left right" of the file is itself the key.
    """
    merges = read_strings(metadata, "merges")
    if merges is None:
        # Kimi K2's vocabulary may come without: it ranks a pair by the id of what it makes.
        return vocabulary.ids, b""
    ids = vocabulary.ids
    for line, merge in enumerate(merges):
        made = merge.replace(b" ", b"", 1)
        if made not in ids or made == merge:
            raise _wrong_merge(line, merge)
    count = len(merges)
    # Reversed, so that the first of equal lines counts.
    return dict(zip(reversed(merges), range(count - 1, -1, -1), strict=True)), b" "


def _wrong_merge(line: int, merge: bytes) -> CorruptFileError:
    left, space, right = merge.partition(b" ")
    if not (left and space and right):
        return corrupt(f"merge {line} is {shown(merge)}, it should be two texts with a space between them")
    return corrupt(f"merge {line} makes {shown(left + right)}, which is not a token")


class SentencePieceEncoder:
    """SentencePiece's BPE: of all neighbours that make a token, those with the best score are merged first.

    Kudo and Richardson 2018, "SentencePiece: a simple and language independent subword tokenizer". Characters that
    are no token are spelt in byte tokens.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._ids = vocabulary.ids
        self._rules = vocabulary.rules
        self._unknown = vocabulary.special.unknown
        self._ranks = _ScoreRanks(vocabulary)
        self._space_cut = _space_cut(vocabulary.tokens)
        self._words = _WordEncoder(self._word)

    def encode(self, text: str, starts: bool) -> list[int]:
        if self._rules.remove_extra_whitespaces:
            text = re.sub(" +", " ", text).strip(" ")
        if self._rules.add_space_prefix and starts:
            text = " " + text
        return self._words.encode(_cut(self._space_cut, text.replace(" ", BLOCK)))

    def _word(self, word: str) -> tuple[int, ...]:
        ids: list[int] = []
        for symbol in merge_symbols([character.encode() for character in word], self._ranks, b""):
            number = self._ids.get(symbol)
            if number is None:
                ids += self._bytes(symbol)
            else:
                ids.append(number)
        return tuple(ids)

    def _bytes(self, symbol: bytes) -> list[int]:
        found = [self._ids.get(b"<0x%02X>" % byte, self._ids.get(bytes((byte,)))) for byte in symbol]
        if None in found:
            return [] if self._unknown is None else [self._unknown]
        return [number for number in found if number is not None]


class _ScoreRanks:
    """Rank of each token: 0 for the highest score; equal scores have equal ranks.

    A dictionary of its own for a quarter of a million tokens would take much more memory, and time to make.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        assert vocabulary.scores is not None
        _, ranks = np.unique(-vocabulary.scores, return_inverse=True)
        self._id = vocabulary.ids.get
        self._ranks: Sequence[int] = ranks.astype(np.int32).data

    def get(self, token: bytes, default: int, /) -> int:
        """The rank of a token, or ``default`` where the text is none."""
        number = self._id(token)
        return default if number is None else self._ranks[number]


def _space_cut(tokens: list[bytes]) -> re.Pattern[str]:
    """A pattern that cuts text where no merge can reach across: before a space that no token has inside.

    A merge makes a token, so where no token holds a character followed by U+2581, the two never come together, and
    the words on either side can be merged by themselves (and be remembered) with the same outcome.
    """
    block = BLOCK.encode()
    # 0xFF is in no UTF-8 text, so no character seems to stand before the next token's space.
    text = np.frombuffer(b"\xff" * 5 + b"\xff".join(tokens), np.uint8)
    first, second, third = (text[4 + place : len(text) - 2 + place] == byte for place, byte in enumerate(block))
    places = np.flatnonzero(first & second & third) + 4
    before = np.unique(text[places[:, None] + np.arange(-4, 0)], axis=0) if places.size else text[:0].reshape(0, 4)
    parts = (bytes(row).split(block)[-1] for row in before)
    endings = {part for part in parts if part and part[-1] != 0xFF}
    joining = {ending.decode("utf-8", "ignore")[-1:] for ending in endings}
    if not joining:
        return re.compile(f"{BLOCK}*[^{BLOCK}]*")
    characters = "".join(re.escape(character) for character in sorted(joining))
    return re.compile(f"{BLOCK}*[^{BLOCK}]*(?:(?<=[{characters}]){BLOCK}+[^{BLOCK}]*)*")


def _cut(pattern: re.Pattern[str], text: str) -> list[str]:
    return [part for part in pattern.findall(text) if part]
