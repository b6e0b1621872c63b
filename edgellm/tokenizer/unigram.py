"""SentencePiece's unigram model (T5, XLM-R): of all ways to cut a text into tokens, the most probable one.

Kudo 2018, "Subword regularization", with the Viterbi search over all tokens that begin at each character.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgellm.tokenizer.encoders import BLOCK
from edgellm.tokenizer.metadata import corrupt, read_numbers
from edgellm.tokenizer.vocabulary import TokenType, Vocabulary

# How much worse than the worst token an unknown character is.
_UNKNOWN_PENALTY = 10.0

# Real replacements are for a few characters; a damaged trie may have a cycle.
_LONGEST_MATCH = 256


class UnigramEncoder:
    """The most probable cut of a normalised text; characters in no token become the unknown token, one for a run."""

    def __init__(self, vocabulary: Vocabulary, metadata: Mapping[str, Any]) -> None:
        assert vocabulary.special.unknown is not None and vocabulary.scores is not None
        self._unknown: int = vocabulary.special.unknown
        self._rules = vocabulary.rules
        self._normalizer = _read_normalizer(metadata)
        scores = vocabulary.scores.astype(np.float64)
        normal = vocabulary.types == TokenType.NORMAL
        self._unknown_score = float(scores[normal].min() if normal.any() else 0.0) - _UNKNOWN_PENALTY
        scores[vocabulary.types == TokenType.USER_DEFINED] = 0.0
        usable = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
        self._tokens: dict[str, tuple[int, float]] = {}
        self._longest: dict[str, int] = {}
        for number in np.flatnonzero(np.isin(vocabulary.types, usable)).tolist():
            text = vocabulary.tokens[number].decode("utf-8", "replace")
            self._tokens[text] = (number, float(scores[number]))
            start = text[:2]
            self._longest[start] = max(self._longest.get(start, 0), len(text))

    def encode(self, text: str, starts: bool) -> list[int]:
        text = self._spaces(self._normalizer.normalize(text))
        count = len(text)
        best = [0.0] + [-np.inf] * count
        came_from = [0] * (count + 1)
        chosen = [self._unknown] * (count + 1)
        tokens, longest = self._tokens, self._longest
        for place in range(count):
            score = best[place]
            single = False
            lengths = max(1, longest.get(text[place : place + 2], 0))
            for end in range(place + 1, min(place + lengths, count) + 1):
                found = tokens.get(text[place:end])
                if found is None:
                    continue
                single = single or end == place + 1
                if score + found[1] > best[end]:
                    best[end], came_from[end], chosen[end] = score + found[1], place, found[0]
            if not single and score + self._unknown_score > best[place + 1]:
                best[place + 1] = score + self._unknown_score
                came_from[place + 1], chosen[place + 1] = place, self._unknown
        return self._trace(count, came_from, chosen)

    def _trace(self, count: int, came_from: list[int], chosen: list[int]) -> list[int]:
        ids: list[int] = []
        place = count
        while place:
            if not (chosen[place] == self._unknown and ids and ids[-1] == self._unknown):
                ids.append(chosen[place])
            place = came_from[place]
        ids.reverse()
        return ids

    def _spaces(self, text: str) -> str:
        if self._rules.remove_extra_whitespaces:
            words = [word for word in text.split(" ") if word]
            if not words:
                return ""
            return (BLOCK if self._rules.add_space_prefix else "") + BLOCK.join(words)
        if self._rules.add_space_prefix:
            text = " " + text
        return text.replace(" ", BLOCK)


class CharacterMap:
    """Replacements of SentencePiece's normalizer, the longest match first.

    The file holds a double array trie in Darts' layout (Yata et al. 2007, "A compact static double-array keeping
    character codes"), whose values point into a block of zero-terminated texts.
    """

    def __init__(self, units: list[int], texts: bytes) -> None:
        self._units = units
        self._texts = texts

    def normalize(self, text: str) -> str:
        """``text`` with every longest match replaced.

        Raises:
            CorruptFileError: the trie points outside itself.
        """
        if not self._units:
            return text
        data = text.encode()
        parts = []
        place = kept = 0
        while place < len(data):
            length, replacement = self._longest_match(data, place)
            if length:
                parts.append(data[kept:place])
                parts.append(replacement)
                place += length
                kept = place
            else:
                place += 1
        parts.append(data[kept:])
        return b"".join(parts).decode("utf-8", "replace")

    def _longest_match(self, data: bytes, start: int) -> tuple[int, bytes]:
        units = self._units
        length, value = 0, -1
        try:
            node = _offset(units[0])
            for place in range(start, min(len(data), start + _LONGEST_MATCH)):
                byte = data[place]
                node ^= byte
                unit = units[node]
                if byte == 0 or unit & 0x800000FF != byte:
                    break
                node ^= _offset(unit)
                if unit >> 8 & 1:
                    length, value = place - start + 1, units[node] & 0x7FFFFFFF
        except IndexError:
            raise corrupt("the tokenizer's character map points outside itself") from None
        if not length:
            return 0, b""
        end = self._texts.find(b"\0", value)
        if end < 0 or value > len(self._texts):
            raise corrupt("the tokenizer's character map points outside its texts")
        return length, self._texts[value:end]


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 1 << 9) >> 6)


def _read_normalizer(metadata: Mapping[str, Any]) -> CharacterMap:
    stored = read_numbers(metadata, "precompiled_charsmap")
    if stored is None or not len(stored):
        return CharacterMap([], b"")
    if stored.dtype.itemsize != 1:
        raise corrupt("key tokenizer.ggml.precompiled_charsmap should hold bytes")
    data = stored.tobytes()
    size = int.from_bytes(data[:4], "little")
    if len(data) < 8 or size < 4 or size % 4 or 4 + size >= len(data):
        raise corrupt(f"the tokenizer's character map says it has {size} bytes, the file holds {len(data)}")
    units = np.frombuffer(data, "<u4", size // 4, 4).tolist()
    return CharacterMap(units, data[4 + size :])
