"""Cutting text into words: what each family does with numbers, spaces and scripts, on any text, in linear time."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgellm.tokenizer import pretokenizers
from edgellm.tokenizer.pretokenizers import PRE_TOKENIZERS, Splitter, choose_pre_tokenizer

NAMES = sorted(PRE_TOKENIZERS)
ONE_NAME_EACH = sorted({family: name for name, family in PRE_TOKENIZERS.items()}.values())

TRICKY = "aAbZ áßñ 'sS'T'llre 012345 \t\n\r\v\x85\xa0\u2028\u3000.,!?…()|<>/_-`~$^ µΑж漢字かカ한ㄱបា์½²Ⅷ🙂\u200d\u0301।"
texts = st.text(st.sampled_from(TRICKY) | st.characters(exclude_categories=["Cs"]), max_size=60)


def words(name: str, text: str) -> list[str]:
    return Splitter(PRE_TOKENIZERS[name]).split(text)


@pytest.mark.parametrize("name", ONE_NAME_EACH)
@settings(deadline=None, max_examples=60)
@given(text=texts)
def test_the_words_are_the_text(name: str, text: str) -> None:
    found = words(name, text)
    if PRE_TOKENIZERS[name].only_matches:
        assert found == text.split() or "".join(found) == regex.sub(r"\s", "", text)
    else:
        assert "".join(found) == text
    assert all(found)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("gpt-2", "It's  1234 été!\n\n x", ["It", "'s", " ", " 1234", " été", "!", "\n\n", " x"]),
        ("gpt-2", "IT'S 'll", ["IT", "'", "S", " '", "ll"]),
        ("llama-bpe", "IT'S  1234567\n\n x", ["IT", "'S", " ", " ", "123", "456", "7", "\n\n", " x"]),
        ("llama-bpe", "a.b ...\n\n\n c   ", ["a", ".b", " ...\n\n\n", " c", "   "]),
        ("qwen2", "x 123.4", ["x", " ", "1", "2", "3", ".", "4"]),
        ("qwen35", "हिन्दी 12", ["हिन्दी", " ", "1", "2"]),
        ("qwen2", "हिन्दी", ["ह", "िन", "्द", "ी"]),
        ("ufakzeka", "Ankara'daki'll", ["Ankara", "'daki", "'ll"]),
        ("seed-coder", "a;\n\nb", ["a", ";", "\n\n", "b"]),
        ("laguna", "a;\n\nb", ["a", ";", "\n\n", "b"]),
        ("minicpm5", "a 12345b", ["a", " ", "123", "45", "b"]),
        ("bailingmoe", "a;\n\nb'D", ["a", ";\n\n", "b", "'D"]),
        ("smollm", "a  12b", ["a", "  ", "1", "2", "b"]),
        ("falcon", "a+b= 1234`", ["a", "+", "b", "=", " ", "123", "4", "`"]),
        ("default", "a+b= 1234", ["a", "+", "b", "=", " ", "123", "4"]),
        ("gpt-4o", "camelCaseXML's 1234//\n", ["camel", "Case", "XML's", " ", "123", "4", "//\n"]),
        ("tekken", "camelCase's 12", ["camel", "Case", "'s", " ", "1", "2"]),
        ("tiny_aya", "1234567 12345x _1234", ["1", "234", "567", " ", "123", "45", "x", " _", "1", "234"]),
        ("youtu", "한국, 漢字。12a", ["한국", ",", " ", "漢字", "。", "1", "2", "a"]),
        ("kimi-k2", "漢字abcDef 1234", ["漢字", "abc", "Def", " ", "123", "4"]),
        ("deepseek-llm", "Äpfel (12)  ", ["Ä", "pfel", " (", "12", ")", "  "]),
        ("deepseek-coder", "a (12)漢", ["a", " (", "1", "2", ")", "漢"]),
        ("deepseek-v3", "a_b 1234 漢字", ["a", "_b", " ", "123", "4", " ", "漢字"]),
        ("spark2_5", "a;\n\nb", ["a", ";", "\n", "\n", "b"]),
        ("afmoe", "a1234567b ไทย!", ["a", "1", "234", "567", "b", " ", "ไทย", "!"]),
        ("superbpe", "by the way 1234567, so", ["by the way ", "1", "234", "567", ", so"]),
        ("bloom", "a, b (c)", ["a", ",", " b", " (", "c", ")"]),
        ("viking", "a12, b", ["a", "1", "2", ",", " b"]),
        ("chameleon", "IMGIMGABZ a12!  b", ["IMGIMGABZ", " a", "1", "2", "!", "  ", "b"]),
        ("exaone-moe", "to be, 12", ["to be", ",", " ", "1", "2"]),
        ("jais-2", "a" + " " * 12 + "b\n", ["a", " " * 8, " " * 2, " ", " b", "\n"]),
        ("gemma4", "one two\n\n\nthree", ["one two", "\n\n\n", "three"]),
        ("whitespace", " one\ttwo ", ["one", "two"]),
    ],
)
def test_what_a_family_does(name: str, text: str, expected: list[str]) -> None:
    assert words(name, text) == expected


def isolated(pattern: str, text: str) -> list[str]:
    """Matches of a pattern, which may be empty, and the gaps between them."""
    cuts = sorted({0, len(text), *(place for match in regex.finditer(pattern, text) for place in match.span())})
    return [text[a:b] for a, b in pairwise(cuts)]


numbers = st.text("0123x٣ _½.", max_size=24)


@settings(deadline=None, max_examples=300)
@given(text=numbers)
@example(text="1234567")
@example(text="12345x")
def test_digits_in_linear_time_are_those_of_the_models_patterns(text: str) -> None:
    assert pretokenizers.digits_ending_words(text) == isolated(r"\d{1,3}(?=(?:\d{3})*\b)", text)
    assert pretokenizers.digits_cut_from_right(text) == isolated(r"(?=(\d{3})+(?!\d))", text)
    assert pretokenizers.digits_from_right(text) == isolated(r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", text)


@settings(deadline=None, max_examples=300)
@given(text=st.text(" \t\nab1", max_size=30) | st.integers(0, 1100).map(lambda count: "a" + " " * count + "b"))
def test_halved_spaces_are_those_of_the_models_pattern(text: str) -> None:
    cascade = "|".join(rf"\s{{{2**n}}}(?!\S)" for n in range(9, 1, -1)) + r"|\s{1,2}(?!\S)|\s{1}"
    original = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    ) + cascade
    assert words("jais-2", text) == isolated(original, text)


@settings(deadline=None, max_examples=200)
@given(text=st.text(" \ta1", max_size=20))
def test_trailing_space_is_that_of_the_models_pattern(text: str) -> None:
    stage = PRE_TOKENIZERS["deepseek-llm"].stages[3]
    assert isinstance(stage, str)
    assert isolated(stage, text) == isolated(r"\s+$", text)


def nasty_texts() -> dict[str, str]:
    """60 kB each, chosen to make patterns try again and again."""
    generator = random.Random(1)
    size = 60_000
    return {
        "spaces before a word": " " * size + "a",
        "spaces before a digit": " " * size + "1",
        "line ends": "\n" * size,
        "spaces and line ends": " \n" * (size // 2),
        "digits": "1" * size,
        "digits in a word": "1" * size + "a",
        "capitals": "A" * size,
        "capitals and small letters": "Aa" * (size // 2),
        "capitals in a Han text": ("漢" + "A" * 50) * (size // 51),
        "marks": "\u0301" * size,
        "letters and marks": "a\u0301" * (size // 2),
        "words of one letter": "a " * (size // 2),
        "quotes": "'" * size,
        "quotes and letters": "'l" * (size // 2),
        "signs": "!" * size,
        "signs before a line": "!" * size + "\n",
        "controls": "\0" * size,
        "anything": "".join(generator.choice(TRICKY) for _ in range(size)),
    }


@pytest.mark.parametrize("name", ONE_NAME_EACH)
def test_long_texts_take_linear_time(name: str) -> None:
    """No time is measured: a pattern that backtracks would need minutes for one of these."""
    for what, text in nasty_texts().items():
        found = words(name, text)
        assert sum(map(len, found)) == len(text) or PRE_TOKENIZERS[name].only_matches, what


def test_names_and_flags() -> None:
    assert len(NAMES) > 80
    assert {"llama-bpe", "qwen2", "gpt-2", "tekken", "smollm", "deepseek-v3", "gpt-4o", "kimi-k2"} <= set(NAMES)
    ignoring = {name for name in NAMES if PRE_TOKENIZERS[name].ignore_merges}
    assert {"llama-bpe", "tekken", "youtu", "minicpm5"} <= ignoring
    assert not ignoring & {"qwen2", "gpt-2", "dbrx", "smaug-bpe", "glm4"}


def test_an_unknown_name_is_replaced_by_one_that_fits_the_numbers() -> None:
    family, warning = choose_pre_tokenizer("new-model", {b"123": 5})
    assert family.stages == PRE_TOKENIZERS["llama-bpe"].stages
    assert not family.ignore_merges and not family.add_bos
    assert warning is not None and "'new-model'" in warning and "'llama-bpe'" in warning and "\n" not in warning
    family, warning = choose_pre_tokenizer("new-model", {b"1": 5})
    assert family is PRE_TOKENIZERS["qwen2"]
    assert warning is not None and "'qwen2'" in warning
    family, warning = choose_pre_tokenizer("", {})
    assert family is PRE_TOKENIZERS["default"]
    assert warning is not None and "names no pre-tokenizer" in warning
    assert choose_pre_tokenizer("qwen2", {})[1] is None
    assert "'smolm' is unknown (nearest: smollm" in str(choose_pre_tokenizer("smolm", {})[1])
    assert "'@@@' is unknown; text" in str(choose_pre_tokenizer("@@@", {})[1])
