"""Special tokens in text, around it, and at the end of an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgellm.tokenizer import Tokenizer, TokenType

Make = Callable[..., dict[str, Any]]


def with_types(keys: dict[str, Any], **types: TokenType) -> dict[str, Any]:
    """The same keys with the types of some tokens changed, by text."""
    for text, kind in types.items():
        keys["tokenizer.ggml.token_type"][keys["tokenizer.ggml.tokens"].index(text.encode())] = kind
    return keys


def test_control_tokens_in_text_count_only_when_asked_for(byte_pairs: Make) -> None:
    tokenizer = Tokenizer(byte_pairs(control=["<s>", "<|user|>", "</s>"]))
    user = tokenizer.token_id("<|user|>")
    assert user is not None
    assert tokenizer.encode("<|user|>", add_special=False, parse_special=True) == [user]
    plain = tokenizer.encode("<|user|>", add_special=False)
    assert user not in plain
    assert tokenizer.decode(plain) == "<|user|>"


def test_user_defined_tokens_are_always_found(byte_pairs: Make) -> None:
    tokenizer = Tokenizer(with_types(byte_pairs(control=["<s>", "<tab>", "</s>"]), **{"<tab>": TokenType.USER_DEFINED}))
    tab = tokenizer.token_id("<tab>")
    assert tokenizer.encode("a<tab>b<s>", add_special=False) == [
        *tokenizer.encode("a"),
        tab,
        *tokenizer.encode("b<s>"),
    ]
    assert not tokenizer.is_special(tab or 0)


def test_of_tokens_at_one_place_the_longest_is_taken(byte_pairs: Make) -> None:
    control = ["<s>", "<a", "<a>", "<a>b", "\n", "\n\n", "\n\n\n", "</s>"]
    tokenizer = Tokenizer(byte_pairs(control=control))

    def texts(text: str) -> list[str]:
        return [tokenizer.decode([number]) for number in tokenizer.encode(text, False, True)]

    assert texts("<a>bc<a>c<ac") == ["<a>b", "c", "<a>", "c", "<a", "c"]
    assert texts("\n" * 8 + "x") == ["\n\n\n", "\n\n\n", "\n\n", "x"]
    assert texts("<") == ["<"]


def test_no_second_bos_after_a_template(byte_pairs: Make) -> None:
    keys = byte_pairs()
    keys["tokenizer.ggml.add_bos_token"] = True
    keys["tokenizer.ggml.add_eos_token"] = True
    tokenizer = Tokenizer(keys)
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    letter = tokenizer.encode("a", add_special=False)
    assert tokenizer.encode("a") == [bos, *letter, eos]
    assert tokenizer.encode("") == [bos, eos]
    assert tokenizer.encode_prompt("a") == [bos, *letter]
    assert tokenizer.encode_prompt("<s>a") == [bos, *letter]
    assert tokenizer.encode_prompt("a<s>") == [bos, *letter, bos]
    assert tokenizer.encode_prompt("") == [bos]
    keys["tokenizer.ggml.add_bos_token"] = False
    assert Tokenizer(keys).encode_prompt("a") == letter


def test_keys_that_are_absent_have_the_defaults_of_the_kind(byte_pairs: Make, pieces: Make) -> None:
    sentencepiece = Tokenizer(pieces(["\u2581", "a"]))
    assert (sentencepiece.bos_id, sentencepiece.eos_id, sentencepiece.unknown_id) == (1, 2, 0)
    assert sentencepiece.add_bos and not sentencepiece.add_eos
    assert sentencepiece.encode("a") == [1, 259, 260]
    bare = byte_pairs(control=[])
    assert not Tokenizer(bare).add_bos
    assert Tokenizer(bare).bos_id == Tokenizer(bare).eos_id == 11
    assert Tokenizer({**byte_pairs(pre="llama-bpe")}).add_bos
    assert Tokenizer({**byte_pairs(control=[], pre="glm4")}).bos_id is None


def test_ids_that_mean_none_or_lie_outside(byte_pairs: Make) -> None:
    keys = byte_pairs()
    keys["tokenizer.ggml.eos_token_id"] = 0xFFFFFFFF
    keys["tokenizer.ggml.padding_token_id"] = 999_999
    tokenizer = Tokenizer(keys)
    assert tokenizer.eos_id is None
    assert tokenizer.padding_id is None


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        (["<s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"], {"<|im_end|>", "<|endoftext|>"}),
        (["<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>"], {"<end_of_turn>", "<eos>"}),
        (["<s>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "</s>"], None),
        (["<s>", "<|start|>", "<|end|>", "<|call|>", "<|return|>"], {"<|call|>", "<|return|>"}),
        (["<s>", "<|end|>", "<|flush|>", "<|calls|>"], {"<|flush|>", "<|calls|>"}),
        (["<bos>", "</s>", "<|tool_response>", "<turn|>", "<eos>"], {"<|tool_response>", "<turn|>", "<eos>"}),
        (["<s>", "<\uff5cend\u2581of\u2581sentence\uff5c>"], {"<\uff5cend\u2581of\u2581sentence\uff5c>"}),
        (["<s>", "<my_end>"], {"<my_end>"}),
    ],
)
def test_ends_of_generation(control: list[str], expected: set[str] | None, byte_pairs: Make) -> None:
    tokenizer = Tokenizer(byte_pairs(control=control))
    found = {tokenizer.token_bytes(number).decode() for number in tokenizer.end_of_generation}
    assert found == (set(control[1:]) if expected is None else expected)


def test_keys_name_ends_of_generation(byte_pairs: Make) -> None:
    keys = byte_pairs(control=["<s>", "<turn_over>", "<message_over>", "</s>"])
    keys["tokenizer.ggml.eot_token_id"] = keys["tokenizer.ggml.tokens"].index(b"<turn_over>")
    keys["tokenizer.ggml.eom_token_id"] = keys["tokenizer.ggml.tokens"].index(b"<message_over>")
    tokenizer = Tokenizer(keys)
    assert tokenizer.end_of_generation == {tokenizer.eot_id, tokenizer.eom_id, tokenizer.eos_id}


def test_a_token_that_ends_answers_is_control_whatever_the_file_says(byte_pairs: Make) -> None:
    keys = with_types(byte_pairs(control=["<s>", "<|im_end|>", "</s>"]), **{"<|im_end|>": TokenType.USER_DEFINED})
    tokenizer = Tokenizer(keys)
    number = tokenizer.eot_id
    assert number is not None and tokenizer.is_special(number)
    assert number not in tokenizer.encode("<|im_end|>")
    assert number in tokenizer.encode_prompt("<|im_end|>")


def test_parts_of_a_harmony_message_are_shown(byte_pairs: Make) -> None:
    tokenizer = Tokenizer(byte_pairs(control=["<s>", "<|channel|>", "<|end|>", "<|call|>", "<|return|>"]))
    ids = tokenizer.encode_prompt("<|channel|>final<|end|>")
    assert tokenizer.decode(ids, special=False) == "<|channel|>final<|end|>"


def test_tokens_that_swallow_white_space(pieces: Make) -> None:
    keys = pieces(["\u2581", "\u2581a", "a", "b", "<|user|>"])
    keys = with_types(keys, **{"<|user|>": TokenType.CONTROL})
    keys["general.name"] = "Phi-3 mini"
    tokenizer = Tokenizer(keys)
    a, user = tokenizer.token_id("\u2581a"), tokenizer.token_id("<|user|>")
    assert tokenizer.encode("a<|user|> \n\ta", False, True) == [a, user, a]
    assert tokenizer.encode("<s> a", False, True) == [1, tokenizer.token_id("\u2581"), a]
    keys["general.name"] = "Another"
    assert tokenizer.encode("<|user|>\na", False, True) != Tokenizer(keys).encode("<|user|>\na", False, True)


def test_a_mask_that_swallows_the_space_before_it(byte_pairs: Make) -> None:
    tokenizer = Tokenizer(byte_pairs(control=["<s>", "<mask>", "</s>"], pre="jina-v2-de"))
    mask = tokenizer.token_id("<mask>")
    letter = tokenizer.encode("a", add_special=False)
    assert tokenizer.encode("a  <mask>a", False, True) == [*letter, mask, *letter]
    assert tokenizer.encode("  <mask>", False, True) == [mask]


def test_a_space_goes_before_the_first_word_and_after_special_tokens(pieces: Make) -> None:
    keys = with_types(pieces(["\u2581", "\u2581a", "a", "<x>"]), **{"<x>": TokenType.USER_DEFINED})
    tokenizer = Tokenizer(keys)
    marked, x = tokenizer.token_id("\u2581a"), tokenizer.token_id("<x>")
    ids = tokenizer.encode("aa<x>a", add_special=False)
    assert ids == [marked, tokenizer.token_id("a"), x, marked]
    assert tokenizer.decode(ids) == "aa<x>a"
    keys["tokenizer.ggml.add_space_prefix"] = False
    assert Tokenizer(keys).encode("a<x>a", add_special=False) == [tokenizer.token_id("a"), x, tokenizer.token_id("a")]


def test_surplus_spaces_are_removed_where_the_file_says_so(pieces: Make) -> None:
    keys = pieces(["\u2581", "\u2581a", "a"])
    keys["tokenizer.ggml.remove_extra_whitespaces"] = True
    tokenizer = Tokenizer(keys)
    assert tokenizer.encode("  a   a ", add_special=False) == [tokenizer.token_id("\u2581a")] * 2


def test_gemma4_writes_lines_with_blocks_for_spaces(pieces: Make) -> None:
    keys = pieces(["\u2581", "a", "b", "\u2581a", "\n", "\n\n", "b\u2581", "b\u2581a"], model="gemma4")
    keys["tokenizer.ggml.merges"] = ["\u2581 a".encode(), "b \u2581a".encode()]
    keys["tokenizer.ggml.bos_token_id"] = 1
    keys["tokenizer.ggml.add_bos_token"] = False
    tokenizer = Tokenizer(keys)

    def texts(text: str) -> list[bytes]:
        return [tokenizer.token_bytes(number) for number in tokenizer.encode(text, add_special=False)]

    assert texts("a b a\n\né") == [b"a", b" ", b"b a", b"\n\n", b"\xc3", b"\xa9"]
    assert tokenizer.add_bos, "Gemma 4 files say no and mean yes"
    assert tokenizer.decode(tokenizer.encode("a b a\n\né", False)) == "a b a\n\né"


def test_words_of_a_white_space_vocabulary(pieces: Make) -> None:
    keys = pieces(["a", "b", "ab"], model="whitespace")
    keys["tokenizer.ggml.merges"] = [b"a b"]
    keys["tokenizer.ggml.normalizer.lowercase"] = True
    tokenizer = Tokenizer(keys)
    assert tokenizer.encode(" aB  b\n", add_special=False) == [tokenizer.token_id("ab"), tokenizer.token_id("b")]


def test_whole_words_before_merges(byte_pairs: Make) -> None:
    """Only families that say so take a token that its merges do not lead to."""
    keys = byte_pairs(merges=["a b", "c d", "ab cd"], pre="dbrx")
    merges = keys["tokenizer.ggml.merges"]
    merges.pop()
    abcd = keys["tokenizer.ggml.tokens"].index(b"abcd")
    assert abcd not in Tokenizer(keys).encode("abcd")
    assert Tokenizer({**keys, "tokenizer.ggml.pre": "llama-bpe"}).encode("abcd", add_special=False) == [abcd]


def test_merges_by_id_without_a_list(byte_pairs: Make) -> None:
    keys = byte_pairs(merges=["a b", "b c", "ab c"], pre="kimi-k2")
    del keys["tokenizer.ggml.merges"]
    tokenizer = Tokenizer(keys)
    assert tokenizer.encode("abc", add_special=False) == [tokenizer.token_id("abc")]
    assert tokenizer.encode("bc", add_special=False) == [tokenizer.token_id("bc")]


def test_numbers_of_numpy_are_ids_too(byte_pairs: Make) -> None:
    tokenizer = Tokenizer(byte_pairs())
    ids = np.array(tokenizer.encode("héllo"), np.int32)
    assert tokenizer.decode(ids) == "héllo"
    assert tokenizer.stream(after=ids).push(ids[0]) == "h"
