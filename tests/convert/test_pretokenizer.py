"""Which known way of cutting text a tokenizer.json means: real definitions, and the tokenizers library as the judge."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from edgellm.convert.pretokenizer import PROBE, cut, find_pre_tokenizer
from edgellm.errors import CorruptFileError, UnsupportedModelError
from edgellm.tokenizer.pretokenizers import PRE_TOKENIZERS, Splitter


def _split(pattern: str, behavior: str = "Isolated", **values: Any) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False, **values}


def _sequence(*stages: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(stages)}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = {**BYTES, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
END = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = SUFFIXES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + END
QWEN2 = SUFFIXES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + END
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED_END = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}" + CASED_END
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{SUFFIXES}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{SUFFIXES}?|\p{{N}}{{1,3}}"
    + CASED_END
)
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KINDS: dict[str, tuple[dict[str, Any], bool]] = {
    "gpt-2": (GPT2, False),
    "llama-bpe": (_sequence(_split(LLAMA3), BYTES), True),
    "dbrx": (_sequence(_split(LLAMA3), BYTES), False),
    "qwen2": (_sequence(_split(QWEN2), BYTES), False),
    "smollm": (_sequence(DIGITS, GPT2), False),
    "tekken": (_sequence(_split(TEKKEN), BYTES), True),
    "gpt-4o": (_sequence(_split(GPT4O), BYTES), False),
    "deepseek-v3": (
        _sequence(_split(r"\p{N}{1,3}"), _split("[一-龥\u3040-ゟ゠-ヿ]+"), _split(DEEPSEEK3), BYTES),
        False,
    ),
}
ALIKE = {
    "the suffixes in another form": (
        _sequence(_split(LLAMA3.replace(SUFFIXES, r"'(?i:[sdmt]|ll|ve|re)")), BYTES),
        "llama-bpe",
    ),
    "matches kept by removing the rest": (_sequence(_split(QWEN2, "Removed", invert=True), BYTES), "qwen2"),
}


@pytest.mark.parametrize("name", KINDS)
def test_known_definitions(name: str) -> None:
    description, ignore_merges = KINDS[name]
    assert find_pre_tokenizer(description, ignore_merges, None) == name


@pytest.mark.parametrize("name", ALIKE)
def test_other_spellings(name: str) -> None:
    description, expected = ALIKE[name]
    assert find_pre_tokenizer(description, expected == "llama-bpe", None) == expected


def test_a_family_has_a_name_of_its_own() -> None:
    description, _ = KINDS["smollm"]
    assert find_pre_tokenizer(description, False, "command-r") == "command-r"
    assert find_pre_tokenizer(description, False, "refact") == "refact"
    assert find_pre_tokenizer(GPT2, False, "command-r") == "gpt-2"


def test_the_text_tells_all_ways_apart_that_differ() -> None:
    """Two names that cut the text alike have the same stages, but for a sign that never makes a difference."""
    ways: dict[tuple[str, ...], set[tuple[Any, ...]]] = {}
    for way in PRE_TOKENIZERS.values():
        if way.stages and way.byte_level:
            # White space up to the last line end of a run, however many of these the pattern asks for.
            stages = tuple(str(stage).replace(r"\s*[\r\n]+", r"\s*[\r\n]") for stage in way.stages)
            ways.setdefault(tuple(Splitter(way).split(PROBE)), set()).add(stages)
    assert [stages for stages in ways.values() if len(stages) > 1] == []


def test_unknown_ways_name_the_nearest() -> None:
    strange = _sequence(_split(LLAMA3.replace("{1,3}", "{1,7}")), BYTES)
    with pytest.raises(UnsupportedModelError, match=r"the nearest is llama-bpe; .*--pre-tokenizer llama-bpe"):
        find_pre_tokenizer(strange, True, None)
    with pytest.raises(UnsupportedModelError, match="cuts text by Magic"):
        find_pre_tokenizer({"type": "Magic"}, False, None)


@pytest.mark.parametrize(
    "description",
    [
        {"type": 3},
        {"type": "Sequence", "pretokenizers": 3},
        {"type": "Sequence"},
        _split("("),
        _split("(a+)+$x" * 4000),
        [],
    ],
)
def test_invalid_descriptions(description: Any) -> None:
    with pytest.raises(CorruptFileError):
        find_pre_tokenizer(description, False, None)


def test_a_pattern_without_end_is_stopped() -> None:
    with pytest.raises(CorruptFileError, match="does not work"):
        find_pre_tokenizer(_split(r"(?s)(?:.|.)*[\x00\x01]"), False, None)


def _judge(description: dict[str, Any], text: str) -> list[str]:
    tokenizer = Tokenizer.from_str(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": [],
                "pre_tokenizer": description,
                "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
            }
        )
    )
    return [text[start:end] for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


JUDGED = {
    **{name: description for name, (description, _) in KINDS.items()},
    **{
        f"split {name}": _split(r"\d+|,", name)
        for name in ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous")
    },
    "inverted": _split(r"\d+", "Isolated", invert=True),
    "string": {"type": "Split", "pattern": {"String": "a."}, "behavior": "MergedWithNext", "invert": False},
    "digits together": _sequence({"type": "Digits", "individual_digits": False}),
    "punctuation": _sequence({"type": "Punctuation", "behavior": "Contiguous"}, GPT2),
}


@pytest.mark.parametrize("name", JUDGED)
@given(text=st.text("ab \n\t'sS12,.!é中\u00a0", max_size=30))
@settings(max_examples=60, deadline=None)
def test_cutting_is_what_the_library_does(name: str, text: str) -> None:
    assert cut(JUDGED[name], text) == [piece for piece in _judge(JUDGED[name], text) if piece]


@pytest.mark.parametrize("name", JUDGED)
def test_the_text_itself_is_cut_as_the_library_does(name: str) -> None:
    assert cut(JUDGED[name], PROBE) == [piece for piece in _judge(JUDGED[name], PROBE) if piece]
