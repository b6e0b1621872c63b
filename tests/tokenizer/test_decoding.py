"""Ids to text, whole and piece by piece, and back again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgellm.tokenizer import Tokenizer, TokenType

Make = Callable[..., dict[str, Any]]
Published = Callable[[str], Tokenizer]

LOSSLESS = ["gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2", "deepseek-llm", "mpt", "starcoder"]
# StarCoder has no tokens for the first bytes of the planes above these.
characters = st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs"])
texts = st.text(characters, max_size=50) | st.text(st.sampled_from(" ab'é漢🙂\n\t.1"), max_size=50)


@pytest.mark.parametrize("name", LOSSLESS)
@settings(deadline=None, max_examples=100)
@given(text=texts)
@example(text="\x00\ufffd\ud7ff\ue000\U0003ffff")
@example(text=" leading, trailing ")
def test_texts_come_back(name: str, text: str, published: Published) -> None:
    tokenizer = published(name)
    # SentencePiece writes U+2581 for a space, so the two are one.
    expected = text.replace("\u2581", " ") if name in ("llama-spm", "phi-3") else text
    assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == expected
    assert tokenizer.decode(tokenizer.encode(text), special=False) == expected


@pytest.mark.parametrize("name", [*LOSSLESS, "bert-bge"])
@settings(deadline=None, max_examples=100)
@given(data=st.data(), special=st.booleans(), text=texts)
def test_pieces_of_a_stream_are_the_whole(
    name: str, data: st.DataObject, special: bool, text: str, published: Published
) -> None:
    """Arbitrary ids, and ids of a text in any order, which break characters."""
    tokenizer = published(name)
    arbitrary = st.lists(st.integers(0, tokenizer.vocabulary_size - 1), max_size=30)
    ids = data.draw(arbitrary | st.permutations(tokenizer.encode(text)))
    stream = tokenizer.stream(special=special)
    emitted = [stream.push(number) for number in ids]
    rest = stream.flush()
    assert "".join(emitted) + rest == tokenizer.decode(ids, special=special)
    if name != "bert-bge":
        whole = tokenizer.decode_bytes(ids, special=special)
        assert whole.decode("utf-8", "replace") == tokenizer.decode(ids, special=special)


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(min_codepoint=0x80, exclude_categories=["Cs"], exclude_characters="\ufffd")))
def test_half_a_character_is_never_shown(text: str, published: Published) -> None:
    tokenizer = published("gpt-2")
    stream = tokenizer.stream()
    shown = ""
    for number in tokenizer.encode(text):
        shown += stream.push(number)
        assert text.startswith(shown)
    assert shown + stream.flush() == text


def test_an_unfinished_character_is_marked_at_the_end(byte_pairs: Make) -> None:
    tokenizer = Tokenizer(byte_pairs())
    first, second, *_ = tokenizer.encode("🙂", add_special=False)
    stream = tokenizer.stream()
    assert [stream.push(first), stream.push(second), stream.flush()] == ["", "", "\ufffd"]
    assert stream.push(tokenizer.encode("a")[0]) == "a", "a flushed decoder starts anew"
    assert tokenizer.decode([first, second]) == "\ufffd"
    assert tokenizer.decode_bytes([first, second]) == "🙂".encode()[:2]
    assert tokenizer.decode([second, first, *tokenizer.encode("a")]) == "\ufffd\ufffda"


@settings(deadline=None, max_examples=100)
@given(text=st.text(st.sampled_from("a\ud800\udc00\udfff🙂"), max_size=12))
def test_unpaired_surrogates_are_replaced(text: str, published: Published) -> None:
    valid = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    for name in ("gpt-2", "llama-spm", "bert-bge"):
        assert published(name).encode(text) == published(name).encode(valid)


def test_the_space_that_encoding_adds_is_taken_away(pieces: Make) -> None:
    tokenizer = Tokenizer(pieces(["\u2581", "\u2581a", "a"]))
    marked = tokenizer.token_id("\u2581a")
    assert marked is not None and tokenizer.bos_id is not None
    assert tokenizer.decode([marked, marked]) == "a a"
    assert tokenizer.decode([tokenizer.bos_id, marked, marked]) == "<s>a a"
    assert tokenizer.decode([tokenizer.bos_id, marked, marked], special=False) == "a a"
    assert tokenizer.token_bytes(marked) == b" a"


def test_a_stream_that_continues_a_text_keeps_its_space(pieces: Make) -> None:
    tokenizer = Tokenizer(pieces(["\u2581", "\u2581a", "a"]))
    marked = tokenizer.token_id("\u2581a")
    prompt = tokenizer.encode("a")
    assert marked is not None and tokenizer.bos_id is not None
    assert tokenizer.stream().push(marked) == "a"
    assert tokenizer.stream(after=prompt).push(marked) == " a"
    assert tokenizer.stream(after=[*prompt, tokenizer.bos_id]).push(marked) == "a"


def test_what_each_type_of_token_shows(pieces: Make) -> None:
    keys = pieces(["\u2581word", "\u2581own\u2581", "unused", "strange"])
    keys["tokenizer.ggml.token_type"][-3:] = [TokenType.USER_DEFINED, TokenType.UNUSED, 77]
    tokenizer = Tokenizer(keys)
    word, own, unused, strange = range(259, 263)
    assert tokenizer.token_bytes(word) == b" word"
    assert tokenizer.token_bytes(own).decode() == "\u2581own\u2581"
    assert tokenizer.token_bytes(unused) == tokenizer.token_bytes(strange) == b""
    assert tokenizer.token_bytes(3 + 0x0A) == b"\n"
    assert tokenizer.token_bytes(1) == b"<s>"
    assert [tokenizer.is_special(number) for number in (0, 1, 2, 3, word, own)] == [True] * 3 + [False] * 3


def test_tokens_that_are_not_spelt_in_bytes_are_shown_as_they_are(byte_pairs: Make) -> None:
    keys = byte_pairs()
    keys["tokenizer.ggml.tokens"] += [b"two words", "日本".encode(), b"\xff\xfe"]
    keys["tokenizer.ggml.token_type"] = np.append(keys["tokenizer.ggml.token_type"], [1, 1, 1]).astype(np.int32)
    tokenizer = Tokenizer(keys)
    assert tokenizer.decode([258, 259]) == "two words日本"
    assert tokenizer.token_bytes(260) == b"\xff\xfe"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, world!", "hello, world!"),
        ("who 's there ? I 'm", "who's there? i'm"),
        ("they 've don 't", "they've don't"),
        ("rock ' n ' roll", "rock'n'roll"),
        ("3.5 (a)", "3. 5 ( a )"),
        ("  one   two  ", "one two"),
    ],
)
def test_word_pieces_are_joined_as_english_is_written(text: str, expected: str, published: Published) -> None:
    tokenizer = published("bert-bge")
    assert tokenizer.decode(tokenizer.encode(text), special=False) == expected


def test_word_pieces_between_their_special_tokens(published: Published) -> None:
    tokenizer = published("bert-bge")
    assert tokenizer.encode("hello world") == [101, 7592, 2088, 102]
    assert tokenizer.encode("") == [101, 102]
    assert tokenizer.encode("Héllo Ạ́", add_special=False) == tokenizer.encode("hello a", add_special=False)


def test_accents_and_capitals_stay_where_the_file_says_so(pieces: Make) -> None:
    texts = ["\u2581É", "\u2581e", "\u2581é", "\u2581E"]
    keys = pieces(texts, model="bert")
    keys["tokenizer.ggml.unknown_token_id"] = 0
    keys["tokenizer.ggml.normalizer.lowercase"] = False
    assert Tokenizer(keys).encode("É x", add_special=False) == [259, 0]
    keys["tokenizer.ggml.normalizer.strip_accents"] = True
    assert Tokenizer(keys).encode("É", add_special=False) == [262]
    keys["tokenizer.ggml.normalizer.lowercase"] = True
    keys["tokenizer.ggml.normalizer.strip_accents"] = False
    assert Tokenizer(keys).encode("É", add_special=False) == [261]
    del keys["tokenizer.ggml.normalizer.strip_accents"]
    assert Tokenizer(keys).encode("É", add_special=False) == [260]


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "deepseek-llm", "bert-bge"])
@pytest.mark.parametrize("text", ["a" * 200_000, " " * 200_000 + "a", "\n" * 200_000, "漢" * 70_000, "<" * 200_000])
def test_texts_without_words(name: str, text: str, published: Published) -> None:
    """Quadratic time would take minutes here."""
    tokenizer = published(name)
    ids = tokenizer.encode(text, parse_special=True)
    if name != "bert-bge":
        assert tokenizer.decode(ids, special=False) == text
