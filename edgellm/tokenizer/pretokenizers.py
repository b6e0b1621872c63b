"""How text is cut into words before byte-pair encoding: a table from the name in a file to patterns and rules.

The patterns belong to the models: each is the one its own tokenizer was trained with, so text must be cut exactly so.
Sources are the models' tokenizer.json files and llama.cpp's table of the names. Where llama.cpp bends a pattern to
what its regular expressions can do, the pattern here is the model's own.

Patterns are written so that matching takes linear time on any text: no nested repetition whose parts overlap,
anchored trailing white space, groups of digits counted instead of looked ahead for.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import regex

_REMEMBERED_PIECES = 32768
_SHORT_PIECE = 64

Cutter = Callable[[str], list[str]]
"""Cuts a piece of text into smaller pieces that together are the whole."""


@dataclass(frozen=True)
class PreTokenizer:
    """One way to cut text into words, with the rules that go with it.

    Attributes:
        stages: regular expressions (of the ``regex`` package) or functions, applied one after the other to each
            piece; matches and the gaps between them become pieces of their own.
        ignore_merges: a word that is a token is taken whole.
        byte_level: tokens are spelt in GPT-2's 256 printable characters, one for each byte; else in plain UTF-8.
        spaces_to_blocks: spaces are written as U+2581, as SentencePiece does.
        whole_newlines: a run of line ends that is a token is taken whole.
        only_matches: what the patterns do not match is left out.
        lowercase: text is put in lower case if the file does not say otherwise.
        add_bos, add_separator: added if the file does not say otherwise.
        always_add_bos: added whatever the file says.
        default_bos: the vocabulary has a BOS token even if the file names none.
    """

    stages: tuple[str | Cutter, ...] = ()
    ignore_merges: bool = False
    byte_level: bool = True
    spaces_to_blocks: bool = False
    whole_newlines: bool = False
    only_matches: bool = False
    lowercase: bool = True
    add_bos: bool = False
    add_separator: bool = False
    always_add_bos: bool = False
    default_bos: bool = True


class Splitter:
    """Cuts text as a pre-tokenizer says; remembers how short pieces are cut further."""

    def __init__(self, pre_tokenizer: PreTokenizer) -> None:
        self._stages = pre_tokenizer.stages
        self._keep_gaps = not pre_tokenizer.only_matches
        self._remembered: Callable[[str, int], list[str]] = lru_cache(_REMEMBERED_PIECES)(self._cut)

    def split(self, text: str) -> list[str]:
        """The words of ``text`` in order. Together they are ``text``, unless only matches are wanted."""
        return self._cut(text, 0)

    def _cut(self, text: str, number: int) -> list[str]:
        """Cut by the stages from ``number`` on."""
        stage = self._stages[number]
        pieces = stage(text) if callable(stage) else _isolate(_compiled(stage), text, keep_gaps=self._keep_gaps)
        number += 1
        if number == len(self._stages):
            return pieces
        words: list[str] = []
        for piece in pieces:
            words += self._remembered(piece, number) if len(piece) <= _SHORT_PIECE else self._cut(piece, number)
        return words


@cache
def _compiled(pattern: str) -> regex.Pattern[str]:
    import regex

    return regex.compile(pattern)


def _isolate(pattern: regex.Pattern[str], text: str, *, keep_gaps: bool) -> list[str]:
    matches: list[str] = pattern.findall(text)
    if not keep_gaps or sum(map(len, matches)) == len(text):
        return matches
    pieces = []
    end = 0
    for match in pattern.finditer(text):
        if match.start() > end:
            pieces.append(text[end : match.start()])
        pieces.append(match.group())
        end = match.end()
    if end < len(text):
        pieces.append(text[end:])
    return pieces


def _in_threes(run: str) -> list[str]:
    """Groups of three digits, counted from the right."""
    first = len(run) % 3
    groups = [run[i : i + 3] for i in range(first, len(run), 3)]
    return [run[:first], *groups] if first else groups


def digits_from_right(text: str) -> list[str]:
    r"""Isolate groups of three numbers counted from the right of each run of ``\p{N}``."""
    pieces = _isolate(_compiled(r"\p{N}+"), text, keep_gaps=True)
    return [part for piece in pieces for part in (_in_threes(piece) if _is_number(piece[0]) else [piece])]


def _is_number(character: str) -> bool:
    return _compiled(r"\p{N}").match(character) is not None


def digits_ending_words(text: str) -> list[str]:
    r"""The same for runs of digits that a word ends with: ``\d{1,3}(?=(?:\d{3})*\b)`` in linear time."""
    pieces = _isolate(_compiled(r"(?<!\d)\d++(?!\w)"), text, keep_gaps=True)
    return [part for piece in pieces for part in (_in_threes(piece) if piece.isdecimal() else [piece])]


def digits_cut_from_right(text: str) -> list[str]:
    r"""Cut runs of digits every three places from their right: ``(?=(\d{3})+(?!\d))`` in linear time.

    Unlike the others this leaves the first one or two digits joined to what comes before them.
    """
    pieces = []
    start = 0
    for match in _compiled(r"\d++").finditer(text):
        first = match.start() + len(match.group()) % 3
        for cut in range(first, match.end(), 3):
            if cut > start:
                pieces.append(text[start:cut])
                start = cut
    if start < len(text):
        pieces.append(text[start:])
    return pieces


def halving_spaces(text: str) -> list[str]:
    """Cut white space that does not end a line into 512, 256, ... 2, 1, each as often as it fits."""
    if text[-1:] in ("\r", "\n") or not _compiled(r"\s+").fullmatch(text):
        return [text]
    pieces = []
    start = 0
    for size in (512, 256, 128, 64, 32, 16, 8, 4, 2, 1):
        while len(text) - start >= size:
            pieces.append(text[start : start + size])
            start += size
    return pieces


def _characters(ranges: str) -> str:
    """The inside of a character class from code points and ranges in hexadecimal."""
    parts = [part.partition("-") for part in ranges.split()]
    return "".join(
        f"\\U{int(first, 16):08x}" + (f"-\\U{int(last, 16):08x}" if last else "") for first, _, last in parts
    )


_SUFFIXES = r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+"

_GPT2 = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+|" + _PUNCTUATION + r"|\s+(?!\S)|\s+"


def _modern(digits: str, letters: str = r"\p{L}", punctuation: str = _PUNCTUATION + r"[\r\n]*") -> str:
    """Words with one sign before them, English suffixes apart: the form most models since GPT-4 have."""
    return rf"{_SUFFIXES}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}|{punctuation}|{_SPACES}"


def _cased(digits: str, suffixes: bool, newlines: str = r"[\r\n/]*") -> str:
    """Words cut where an upper case letter follows a lower case one, as GPT-4o and Tekken do."""
    upper = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
    lower = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    return _cased_words(upper, lower, suffixes) + rf"|{digits}|{_PUNCTUATION}{newlines}|{_SPACES}"


def _cased_words(upper: str, lower: str, suffixes: bool) -> str:
    lead = r"[^\r\n\p{L}\p{N}]?"
    end = f"(?:{_SUFFIXES})?" if suffixes else ""
    return f"{lead}{upper}*{lower}+{end}|{lead}{upper}+{lower}*{end}"


_NO_HAN_UPPER = r"[[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]--\p{Han}]"
_NO_HAN_LOWER = r"[[\p{Ll}\p{Lm}\p{Lo}\p{M}]--\p{Han}]"
_KIMI = (
    r"(?V1)\p{Han}+|"
    + _cased_words(_NO_HAN_UPPER, _NO_HAN_LOWER, True)
    + rf"|\p{{N}}{{1,3}}|{_PUNCTUATION}[\r\n]*|{_SPACES}"
)

_ASCII_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_HAN_AND_KANA = "[" + _characters("4E00-9FA5 3040-309F 30A0-30FF") + "]+"
_DEEPSEEK3_WORDS = _ASCII_PUNCTUATION + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_DEEPSEEK3 = _DEEPSEEK3_WORDS + r"| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES

# Cased letters as DeepSeek LLM lists them: no general category, some alphabets have only one case.
_CASED_LETTERS = _characters(
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1 "
    "3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A "
    "1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 "
    "1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 "
    "212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D "
    "A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 "
    "104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
_DEEPSEEK_EAST_ASIAN = "[" + _characters("4E00-9FA5 800-4E00 AC00-D7FF") + "]+"
_DEEPSEEK_SIGNS = _characters("21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002")

_AFMOE_ASIAN = _characters(
    "4E00-9FFF 3400-4DBF F900-FAFF 3040-309F 30A0-30FF FF65-FF9F 2F00-2FDF 0E00-0E7F 0E80-0EFF 1780-17FF 1000-109F "
    "AA60-AA7F A9E0-A9FF AC00-D7AF 1100-11FF"
)
_YOUTU_ASIAN = "|".join(
    f"[{_characters(ranges)}]+"
    for ranges in (
        "AC00-D7A3 3131-318E",
        "FF01 2026 201C 201D 2018 2019 2014 FF1A FF1B FF0C 3001-303F FE30-FE4F",
        "3105-312F",
        "4E00-9FA5 3040-309F 30A0-30FF",
    )
)

# Words that end at white space or a sign that ends a sentence in some language.
_BLOOM = r" ?[^\s" + _characters("28 29 7C 2E 2C 21 3F 2026 3002 FF0C 3001 964 6D4 60C") + "]+"

_LINES = r"[^\n]+|\n+"
_LLAMA3 = _modern(r"\p{N}{1,3}")
_QWEN2 = _modern(r"\p{N}")

# Names that share one way of cutting and one set of rules.
_FAMILIES: tuple[tuple[str, PreTokenizer], ...] = (
    (
        "default",
        PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    ),
    (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
    ),
    ("dbrx smaug-bpe", PreTokenizer((_LLAMA3,))),
    ("glm4 chatglm-bpe", PreTokenizer((_LLAMA3,), default_bos=False)),
    ("jais-2", PreTokenizer((_LLAMA3, halving_spaces))),
    ("minicpm5", PreTokenizer((r"\p{N}{1,3}", _modern(r"\p{N}+")), ignore_merges=True)),
    (
        "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
        PreTokenizer((_QWEN2,)),
    ),
    (
        "qwen35",
        PreTokenizer((_modern(r"\p{N}", r"[\p{L}\p{M}]", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"),)),
    ),
    ("ufakzeka", PreTokenizer((_QWEN2.removeprefix(_SUFFIXES + "|"),))),
    ("laguna", PreTokenizer((_LINES, _QWEN2))),
    ("seed-coder", PreTokenizer((_modern(r"\p{N}", punctuation=r" ?[^\s\p{L}\p{N}\r\n]+"),))),
    (
        "bailingmoe bailingmoe2 llada-moe",
        PreTokenizer(
            (rf"{_SUFFIXES}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_PUNCTUATION}[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",)
        ),
    ),
    (
        "exaone-moe",
        PreTokenizer(
            (
                rf"{_SUFFIXES}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*+(?: \p{{L}}\p{{M}}*+)*+)++|\p{{N}}"
                rf"|{_PUNCTUATION}[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
            )
        ),
    ),
    (
        "gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 jina-es jina-de jina-v2-es jina-v2-de gigachat "
        "a.x-4.0 mellum modern-bert",
        PreTokenizer((_GPT2,)),
    ),
    ("jina-v1-en jina-v2-code roberta-bpe", PreTokenizer((_GPT2,), add_separator=True)),
    (
        "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2",
        PreTokenizer((r"\p{N}", _GPT2)),
    ),
    (
        "falcon",
        PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    ),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", PreTokenizer((_cased(r"\p{N}{1,3}", suffixes=True),))),
    (
        "granite-embed-multi-97m",
        PreTokenizer((_cased(r"\p{N}{1,3}", suffixes=True),), ignore_merges=True),
    ),
    ("tiny_aya cohere2moe", PreTokenizer((digits_ending_words, _cased(r"\p{N}{1,3}", suffixes=True)))),
    ("tekken", PreTokenizer((_cased(r"\p{N}", suffixes=False),), ignore_merges=True, add_bos=True)),
    ("youtu", PreTokenizer((_YOUTU_ASIAN, _cased(r"\p{N}", suffixes=True)), ignore_merges=True)),
    ("kimi-k2", PreTokenizer((_KIMI,))),
    (
        "deepseek-llm",
        PreTokenizer(
            (
                r"[\r\n]",
                rf"\s?[{_CASED_LETTERS}]+",
                rf"\s?[{_DEEPSEEK_SIGNS}]+",
                r"(?<!\s)\s+\Z",
                _DEEPSEEK_EAST_ASIAN,
                r"\p{N}+",
            )
        ),
    ),
    (
        "deepseek-coder",
        PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_EAST_ASIAN, r"\p{N}")),
    ),
    (
        "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
        PreTokenizer((r"\p{N}{1,3}", _HAN_AND_KANA, _DEEPSEEK3)),
    ),
    (
        "spark2_5",
        PreTokenizer(
            (
                r"\p{N}{1,3}",
                _HAN_AND_KANA,
                _DEEPSEEK3_WORDS + r"| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+",
                r"\p{N}",
            )
        ),
    ),
    ("afmoe", PreTokenizer((digits_from_right, f"[{_AFMOE_ASIAN}]+", _DEEPSEEK3))),
    ("superbpe", PreTokenizer((r"\p{N}+", digits_cut_from_right))),
    ("poro-chat bloom gpt3-finnish", PreTokenizer((_BLOOM,))),
    ("viking", PreTokenizer((_BLOOM, r"\p{N}"))),
    (
        "chameleon",
        PreTokenizer(
            (
                r"<sentinel:[0-9]+>",
                r"IMGIMG[A-I]{1,4}Z",
                r"[\t\n]|    |  ",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                _GPT2,
            ),
            add_bos=True,
        ),
    ),
    (
        "gemma4 granite-embed-multi-311m",
        PreTokenizer((_LINES,), byte_level=False, spaces_to_blocks=True, whole_newlines=True, always_add_bos=True),
    ),
    ("sarvam-moe", PreTokenizer((_LINES,), byte_level=False, spaces_to_blocks=True)),
    ("whitespace", PreTokenizer((r"\S+",), byte_level=False, only_matches=True, lowercase=False)),
)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {name: family for names, family in _FAMILIES for name in names.split()}


def choose_pre_tokenizer(name: str, ids: Mapping[bytes, int]) -> tuple[PreTokenizer, str | None]:
    """The pre-tokenizer of a name, and a warning if another had to be taken.

    An unknown name is most often a new one for a known way. How a vocabulary writes numbers tells the two most common
    apart: tokens of three digits for Llama 3's, none for Qwen 2's.
    """
    if name in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[name], None
    if not name:
        fallback, reason = "default", "the file names no pre-tokenizer"
    else:
        fallback = "dbrx" if b"123" in ids or b"100" in ids else "qwen2"
        near = difflib.get_close_matches(name[:40].lower(), PRE_TOKENIZERS, n=2, cutoff=0.5)
        reason = f"the pre-tokenizer {name[:40]!r} is unknown" + (f" (nearest: {', '.join(near)})" if near else "")
    shown = {"dbrx": "llama-bpe"}.get(fallback, fallback)
    return PRE_TOKENIZERS[fallback], (
        f"{reason}; text is cut into words as for {shown!r}, so answers may be worse than the model can give"
    )
