"""Vocabularies from damaged or hostile files: one line that says what is wrong, never anything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import CorruptFileError, EdgeLLMError, InvalidSettingError, UnsupportedModelError
from edgellm.tokenizer import Tokenizer

Make = Callable[..., dict[str, Any]]
PREFIX = "tokenizer.ggml."


def use(keys: dict[str, Any]) -> None:
    """Load, encode and decode."""
    tokenizer = Tokenizer(keys)
    tokenizer.decode(tokenizer.encode("Some text, 12 \n</s>é", parse_special=True))
    tokenizer.decode(range(min(tokenizer.vocabulary_size, 300)))


def assert_one_line(error: pytest.ExceptionInfo[EdgeLLMError], *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text and len(text) < 400
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"model": None}, ["no tokenizer"]),
        ({"model": 7}, ["should be a string"]),
        ({"pre": 7}, ["should be a string"]),
        ({"tokens": None}, ["no tokens"]),
        ({"tokens": []}, ["no tokens"]),
        ({"tokens": "abc"}, ["tokens", "list of strings"]),
        ({"tokens": np.arange(300)}, ["tokens", "list of strings"]),
        ({"merges": None}, ["no merges"]),
        ({"merges": [b"ab"]}, ["merge 0", "'ab'"]),
        ({"merges": [b"a b", b""]}, ["merge 1"]),
        ({"merges": [b"a b", b"ab zz"]}, ["merge 1", "'abzz'", "not a token"]),
        ({"merges": [b"a b", b"\xff\n" * 50 + b" b"]}, ["merge 1", "..."]),
        ({"merges": np.zeros(3)}, ["merges", "list of strings"]),
        ({"token_type": np.ones(5, np.int32)}, ["token_type", "5", "259"]),
        ({"token_type": [1, 2]}, ["token_type", "list of numbers"]),
        ({"token_type": np.full(259, 6, np.int32)}, ["token 0", "should be a byte"]),
        ({"scores": np.zeros(3, np.float32)}, ["scores", "3", "259"]),
        ({"scores": np.full(259, np.nan, np.float32)}, ["not a number"]),
        ({"bos_token_id": 259}, ["bos_token_id", "259"]),
        ({"eos_token_id": -5}, ["eos_token_id", "-5"]),
        ({"eos_token_id": "x"}, ["eos_token_id", "token id"]),
        ({"eot_token_id": 2**31}, ["eot_token_id"]),
        ({"add_bos_token": 1.5}, ["add_bos_token", "true or false"]),
        ({"add_sep_token": True}, ["separator"]),
        ({"add_bos_token": True, "bos_token_id": -1}, ["bos"]),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, Any], parts: list[str], byte_pairs: Make) -> None:
    keys = byte_pairs(merges=["a b"])
    for name, value in change.items():
        keys[PREFIX + name] = value
        if value is None:
            del keys[PREFIX + name]
    with pytest.raises(CorruptFileError) as error:
        use(keys)
    assert_one_line(error, *parts)


def test_duplicate_tokens(byte_pairs: Make) -> None:
    keys = byte_pairs()
    keys[PREFIX + "tokens"][7] = keys[PREFIX + "tokens"][3]
    with pytest.raises(CorruptFileError) as error:
        Tokenizer(keys)
    assert_one_line(error, "twice", "3", "7")


def test_empty_tokens_keep_their_places(byte_pairs: Make) -> None:
    keys = byte_pairs()
    tokens = keys[PREFIX + "tokens"]
    tokens += [b"", b""]
    keys[PREFIX + "token_type"] = np.append(keys[PREFIX + "token_type"], [5, 5]).astype(np.int32)
    tokenizer = Tokenizer(keys)
    assert tokenizer.vocabulary_size == len(tokens)
    assert tokenizer.decode([len(tokens) - 1, len(tokens) - 2]) == ""


@pytest.mark.parametrize(("model", "missing"), [("llama", "scores"), ("t5", "scores")])
def test_scores_are_needed(model: str, missing: str, pieces: Make) -> None:
    keys = pieces(["a"], model=model)
    del keys[PREFIX + missing]
    with pytest.raises(CorruptFileError) as error:
        Tokenizer(keys)
    assert_one_line(error, missing)


def test_an_unknown_token_is_needed_for_word_pieces(pieces: Make) -> None:
    keys = pieces(["a"], model="bert")
    keys[PREFIX + "unknown_token_id"] = -1
    with pytest.raises(CorruptFileError) as error:
        Tokenizer(keys)
    assert_one_line(error, "unknown_token_id")


@pytest.mark.parametrize("kind", ["rwkv", "plamo2", "hybriddna", "no_vocab", "x" * 500])
def test_other_kinds_are_named(kind: str, byte_pairs: Make) -> None:
    keys = byte_pairs()
    keys[PREFIX + "model"] = kind
    with pytest.raises(UnsupportedModelError) as error:
        Tokenizer(keys)
    assert_one_line(error, kind[:40], "gpt2", "llama")


@pytest.mark.parametrize("number", [-1, 258, 10**9])
def test_ids_outside_the_vocabulary(number: int, byte_pairs: Make) -> None:
    tokenizer = Tokenizer(byte_pairs())
    assert tokenizer.vocabulary_size == 258
    for action in (
        lambda: tokenizer.decode([65, number]),
        lambda: tokenizer.token_bytes(number),
        lambda: tokenizer.is_special(number),
        lambda: tokenizer.stream().push(number),
    ):
        with pytest.raises(InvalidSettingError) as error:
            action()
        assert_one_line(error, str(number), "257")


def test_the_first_of_equal_merges_counts(byte_pairs: Make) -> None:
    keys = byte_pairs(merges=["a b", "b c"])
    keys[PREFIX + "merges"] = [b"a b", b"b c", b"a b"]
    tokenizer = Tokenizer(keys)
    assert tokenizer.encode("abc", add_special=False) == [tokenizer.token_id("ab"), tokenizer.token_id("c")]


def test_vocabularies_without_bytes_lose_what_they_cannot_spell(pieces: Make, byte_pairs: Make) -> None:
    """As llama.cpp does for BPE; SentencePiece has a token for it."""
    keys = pieces(["\u2581", "a"])
    keys[PREFIX + "tokens"] = [
        token if not token.startswith(b"<0x") else b"x" + token for token in keys[PREFIX + "tokens"]
    ]
    keys[PREFIX + "token_type"][3:259] = 1
    assert Tokenizer(keys).encode("aé", add_special=False) == [259, 260, 0]
    keys = byte_pairs(control=[])
    keys[PREFIX + "tokens"][ord("é".encode()[:1])] = b"gone"
    tokenizer = Tokenizer(keys)
    assert tokenizer.encode("é", add_special=False) == [0xA9]


scalars = st.none() | st.booleans() | st.integers(-2, 2**33) | st.floats() | st.text(max_size=3) | st.binary(max_size=3)
values = (
    scalars
    | st.lists(st.binary(max_size=4), max_size=4)
    | st.lists(st.integers(-9, 9), max_size=4).map(lambda numbers: np.array(numbers, np.int32))
)
NAMES = [
    *("model", "pre", "tokens", "merges", "token_type", "scores", "add_bos_token", "add_eos_token", "add_space_prefix"),
    *("bos_token_id", "eos_token_id", "unknown_token_id", "mask_token_id"),
    *("precompiled_charsmap", "normalizer.lowercase"),
]


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_any_change_gives_a_clean_error_or_works(data: st.DataObject, byte_pairs: Make, pieces: Make) -> None:
    model = data.draw(st.sampled_from(["gpt2", "llama", "bert", "t5", "gemma4"]))
    keys = byte_pairs(merges=["a b"]) if model == "gpt2" else pieces(["\u2581", "a", "b", "ab"], model=model)
    if model == "gemma4":
        keys |= {PREFIX + "merges": [b"a b"], PREFIX + "bos_token_id": 1}
    for name in data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)):
        value = data.draw(values)
        keys[PREFIX + name] = value
        if value is None:
            del keys[PREFIX + name]
    try:
        use(keys)
    except EdgeLLMError as error:
        assert "\n" not in str(error)
