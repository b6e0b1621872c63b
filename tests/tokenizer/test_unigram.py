"""SentencePiece's unigram model against trying every cut, and its normalizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgellm.errors import CorruptFileError
from edgellm.tokenizer import Tokenizer

Make = Callable[..., dict[str, Any]]

PIECES = ["\u2581", "a", "b", "c", "ab", "bc", "abc", "\u2581a", "\u2581ab", "ca"]


def unigram(pieces: Make, scores: list[float], **more: object) -> Tokenizer:
    keys = pieces(PIECES, scores=scores, model="t5")
    return Tokenizer(
        keys
        | {
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.add_space_prefix": True,
        }
        | {f"tokenizer.ggml.{name}": value for name, value in more.items()}
    )


def every_cut(text: str) -> list[list[str]]:
    """All ways to cut a text into pieces and single characters."""
    if not text:
        return [[]]
    lengths = {1, *(len(piece) for piece in PIECES if text.startswith(piece))}
    return [[text[:length], *rest] for length in lengths for rest in every_cut(text[length:])]


@settings(deadline=None, max_examples=150)
@given(
    text=st.text("abc x", min_size=1, max_size=9),
    scores=st.lists(st.floats(-20, -0.5, width=16), min_size=len(PIECES), max_size=len(PIECES)),
)
def test_the_best_cut_is_found(text: str, scores: list[float], pieces: Make) -> None:
    tokenizer = unigram(pieces, scores)
    score = dict(zip(PIECES, scores, strict=True))
    worst = min(scores) - 10

    def total(cut: list[str]) -> float:
        return sum(score.get(part, worst) for part in cut)

    best = max(map(total, every_cut("\u2581" + text.replace(" ", "\u2581"))))
    ids = tokenizer.encode(text, add_special=False)
    unknowns = len(text.replace("x", "")), text.count("x")
    found = [tokenizer.token_bytes(number).decode().replace(" ", "\u2581") for number in ids]
    runs = "".join("x" if part == "<unk>" else "." for part in found)
    assert "xx" not in runs, "unknown characters in a row are one unknown token"
    known = sum(score[part] for part in found if part != "<unk>")
    assert known + worst * unknowns[1] == pytest.approx(best)


def test_spaces_and_ends(pieces: Make) -> None:
    scores = [-1.0] * len(PIECES)
    tokenizer = unigram(pieces, scores)
    assert tokenizer.encode("a") == [tokenizer.token_id("\u2581a"), 2]
    assert tokenizer.encode("") == [2]
    assert tokenizer.decode(tokenizer.encode(" a  b", False)) == " a  b"
    tidy = unigram(pieces, scores, remove_extra_whitespaces=True)
    assert tidy.decode(tidy.encode("  a   b ", False)) == "a b"
    assert tidy.encode("   ", False) == []


class Trie:
    """A double array trie over byte strings, laid out as SentencePiece's normalizer reads it."""

    def __init__(self, values: Mapping[bytes, int]) -> None:
        self.units: dict[int, int] = {0: 0}
        self._taken = {0}
        self._bases: set[int] = set()
        self._fill(0, 0, sorted(values.items()))

    def _fill(self, node: int, label: int, items: list[tuple[bytes, int]]) -> None:
        children: dict[int, list[tuple[bytes, int]]] = {}
        value = next((number for text, number in items if not text), None)
        for text, number in items:
            if text:
                children.setdefault(text[0], []).append((text[1:], number))
        labels = [*children, *([0] if value is not None else [])]
        base = next(
            b for b in range(1, 1 << 20) if b not in self._bases and not self._taken & {b ^ child for child in labels}
        )
        # Labels alone are checked, so no two nodes may have their children in one place.
        self._bases.add(base)
        places = {child: base ^ child for child in labels}
        self._taken.update(places.values())
        self.units[node] = (base ^ node) << 10 | (value is not None) << 8 | label
        if value is not None:
            self.units[places[0]] = 1 << 31 | value
        for child, rest in children.items():
            self._fill(places[child], child, rest)

    def bytes(self) -> bytes:
        size = max(self.units) + 256
        return np.array([self.units.get(place, 0) for place in range(size)], "<u4").tobytes()


def character_map(replacements: Mapping[str, str]) -> NDArray[np.uint8]:
    texts, values = b"", {}
    for source, target in replacements.items():
        values[source.encode()] = len(texts)
        texts += target.encode() + b"\0"
    units = Trie(values).bytes()
    return np.frombuffer(len(units).to_bytes(4, "little") + units + texts, np.uint8)


def test_the_longest_replacement_is_taken(pieces: Make) -> None:
    charsmap = character_map({"A": "a", "ﬀ": "bb", "C\u0301": "c", "Cx": "", "B": "b", "BB": "c", "\u3000": " "})
    tokenizer = unigram(pieces, [-1.0] * len(PIECES), precompiled_charsmap=charsmap)
    for text, normal in [("Aﬀc", "abbc"), ("C\u0301BB", "cc"), ("BBB", "cb"), ("aCxb", "ab"), ("a\u3000b", "a b")]:
        assert tokenizer.encode(text) == tokenizer.encode(normal), text
    assert tokenizer.encode("C", False) == tokenizer.encode("x", False), "no entry of its own: unknown"


@pytest.mark.parametrize("name", ["empty", "short", "long", "odd", "cycle", "outside", "words"])
def test_damaged_character_maps(name: str, pieces: Make) -> None:
    good = character_map({"A": "a"})
    # The letter "a" leads from the root to a node and from there to the root, and both have a value.
    units = np.zeros(256, "<u4")
    units[[0, ord("a")]] = 1 << 8 | ord("a")
    loop = np.frombuffer((1024).to_bytes(4, "little") + units.tobytes() + b"b" * 400 + b"\0", np.uint8)
    maps: dict[str, NDArray[Any]] = {
        "empty": good[:0],
        "short": good[:3],
        "long": np.concatenate([np.full(4, 255, np.uint8), good[4:]]),
        "odd": np.concatenate([np.array([7, 0, 0, 0], np.uint8), good[4:]]),
        "cycle": loop,
        "outside": np.concatenate([good[:4], np.full(len(good) - 6, 255, np.uint8), good[-2:]]),
        "words": np.arange(20, dtype=np.int32),
    }
    tokenizer = unigram(pieces, [-1.0] * len(PIECES), precompiled_charsmap=maps[name])
    if name in ("empty", "cycle"):
        text = tokenizer.decode(tokenizer.encode("a" * 100_000), special=False)
        assert set(text) == ({"a"} if name == "empty" else {"b"})
        return
    with pytest.raises(CorruptFileError) as error:
        tokenizer.encode("Aa\xff")
    assert "\n" not in str(error.value)
