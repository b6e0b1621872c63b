"""The vocabulary of a GGUF file: tokens, their types and scores, special ids, and when a model has finished."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import UnsupportedModelError
from edgellm.tokenizer.metadata import PREFIX, corrupt, read_flag, read_id, read_numbers, read_strings, read_text, shown
from edgellm.tokenizer.pretokenizers import PreTokenizer, choose_pre_tokenizer
from edgellm.tokenizer.special_texts import ALWAYS_VISIBLE_TEXTS, END_OF_GENERATION_TEXTS, ROLE_TEXTS

BYTE_TOKEN = re.compile(rb"<0x([0-9A-Fa-f]{2})>")
"""How a vocabulary spells a token that is one byte."""


class Kind(Enum):
    """How text becomes tokens."""

    BPE = "byte-pair encoding"
    SPM = "SentencePiece BPE"
    WPM = "WordPiece"
    UGM = "SentencePiece unigram"


class TokenType(IntEnum):
    """Type of a token as the file stores it."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


CUTTING_TYPES = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
"""Types of tokens that text is cut at."""


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokens with a role; None where the vocabulary has none."""

    bos: int | None = None
    eos: int | None = None
    eot: int | None = None
    eom: int | None = None
    unknown: int | None = None
    separator: int | None = None
    padding: int | None = None
    mask: int | None = None
    fim_prefix: int | None = None
    fim_suffix: int | None = None
    fim_middle: int | None = None
    fim_pad: int | None = None
    fim_repository: int | None = None
    fim_separator: int | None = None


@dataclass(frozen=True)
class Rules:
    """What is done around the tokens: added at the ends, to spaces, and around special tokens."""

    add_bos: bool = False
    add_eos: bool = False
    add_separator: bool = False
    add_space_prefix: bool = False
    remove_extra_whitespaces: bool = False
    lowercase: bool = True
    strip_accents: bool = True


@dataclass(frozen=True)
class Vocabulary:
    """Everything about the tokens that encoding and decoding need.

    Attributes:
        name: ``tokenizer.ggml.model`` of the file.
        tokens: the text of each token as the file has it, by id.
        ids: the reverse; no token occurs twice.
        types: int32 (tokens,): a ``TokenType`` each.
        scores: float32 (tokens,) or None.
        left_stripping: tokens that swallow white space before them.
        right_stripping: tokens that swallow white space after them.
    """

    kind: Kind
    name: str
    tokens: list[bytes]
    ids: dict[bytes, int]
    types: NDArray[np.int32]
    scores: NDArray[np.float32] | None
    special: SpecialIds
    rules: Rules
    pre_tokenizer: PreTokenizer
    end_of_generation: frozenset[int]
    left_stripping: frozenset[int]
    right_stripping: frozenset[int]
    warning: str | None


_KINDS = {
    "llama": Kind.SPM,
    "gpt2": Kind.BPE,
    "gemma4": Kind.BPE,
    "whitespace": Kind.BPE,
    "bert": Kind.WPM,
    "t5": Kind.UGM,
}

# What the ids are where a file has no keys for them: those of the first model of each kind.
_DEFAULT_IDS = {
    "llama": SpecialIds(bos=1, eos=2, unknown=0),
    "gpt2": SpecialIds(bos=11, eos=11),
    "gemma4": SpecialIds(),
    "whitespace": SpecialIds(bos=11, eos=11),
    "bert": SpecialIds(bos=101, unknown=100, separator=102, padding=0, mask=103),
    "t5": SpecialIds(eos=1, unknown=2, padding=0),
}

_DEFAULT_RULES = {
    Kind.BPE: Rules(),
    Kind.SPM: Rules(add_bos=True, add_space_prefix=True),
    Kind.WPM: Rules(add_bos=True, add_separator=True),
    Kind.UGM: Rules(add_eos=True),
}

# Role -> keys of the file, the present one first. "seperator" is how the format spells it.
_ID_KEYS: dict[str, tuple[str, ...]] = {
    "bos": ("bos_token_id", "cls_token_id"),
    "eos": ("eos_token_id",),
    "eot": ("eot_token_id",),
    "eom": ("eom_token_id",),
    "unknown": ("unknown_token_id",),
    "separator": ("seperator_token_id", "separator_token_id"),
    "padding": ("padding_token_id",),
    "mask": ("mask_token_id",),
    "fim_prefix": ("fim_pre_token_id", "prefix_token_id"),
    "fim_suffix": ("fim_suf_token_id", "suffix_token_id"),
    "fim_middle": ("fim_mid_token_id", "middle_token_id"),
    "fim_pad": ("fim_pad_token_id",),
    "fim_repository": ("fim_rep_token_id",),
    "fim_separator": ("fim_sep_token_id",),
}

# A wrong id here would make wrong prompts or endless answers. The others are at worst unused: many fine-tuned
# models name a padding token one past the end of their vocabulary.
_ESSENTIAL_ROLES = frozenset({"bos", "eos", "eot", "eom", "unknown"})


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary described by the keys of a GGUF file.

    Raises:
        CorruptFileError: a key is missing, of the wrong type or length, or an id is out of range.
        UnsupportedModelError: a kind of tokenizer that this version does not have.
    """
    name = read_text(metadata, "tokenizer.ggml.model")
    kind = _kind(name)
    tokens = _read_tokens(metadata)
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(ids) != len(tokens):
        twice = next(i for i, token in enumerate(tokens) if ids[token] != i)
        raise corrupt(f"token {shown(tokens[twice])} occurs twice, as {twice} and {ids[tokens[twice]]}")
    pre_tokenizer, warning = PreTokenizer(), None
    if kind is Kind.BPE:
        pre = name if name in ("gemma4", "whitespace") else read_text(metadata, "tokenizer.ggml.pre")
        pre_tokenizer, warning = choose_pre_tokenizer(pre, ids)
    types = _read_types(metadata, len(tokens))
    _check_byte_tokens(tokens, types)
    special = _read_special_ids(metadata, name, len(tokens), pre_tokenizer)
    special, types = _find_by_text(special, ids, types)
    end_of_generation, types = _find_end_of_generation(special, tokens, ids, types)
    left, right = _stripping(metadata, ids, types)
    scores = _read_scores(metadata, len(tokens))
    _check_complete(metadata, kind, special, scores)
    return Vocabulary(
        kind=kind,
        name=name,
        tokens=tokens,
        ids=ids,
        types=types,
        scores=scores,
        special=special,
        rules=_read_rules(metadata, kind, special, pre_tokenizer),
        pre_tokenizer=pre_tokenizer,
        end_of_generation=end_of_generation,
        left_stripping=left,
        right_stripping=right,
        warning=warning,
    )


def _kind(name: str) -> Kind:
    if not name:
        raise corrupt("the file has no tokenizer (no key tokenizer.ggml.model)")
    if name not in _KINDS:
        raise UnsupportedModelError(
            f"tokenizers of the kind {name[:40]!r} are not supported", "supported kinds: " + ", ".join(sorted(_KINDS))
        )
    return _KINDS[name]


def _read_tokens(metadata: Mapping[str, Any]) -> list[bytes]:
    tokens = read_strings(metadata, "tokens")
    if not tokens:
        raise corrupt("the file's tokenizer has no tokens (key tokenizer.ggml.tokens)")
    if b"" in tokens:
        # Empty places need names of their own, since no two tokens are the same.
        tokens = [token or b"[EMPTY_%d]" % i for i, token in enumerate(tokens)]
    return tokens


def _read_types(metadata: Mapping[str, Any], count: int) -> NDArray[np.int32]:
    stored = read_numbers(metadata, "token_type", count)
    if stored is None:
        return np.full(count, TokenType.NORMAL, np.int32)
    types = np.array(stored, np.int32)
    types[(types < 0) | (types > max(TokenType))] = TokenType.UNDEFINED
    return types


def _check_byte_tokens(tokens: list[bytes], types: NDArray[np.int32]) -> None:
    for number in np.flatnonzero(types == TokenType.BYTE).tolist():
        if BYTE_TOKEN.fullmatch(tokens[number]) is None:
            raise corrupt(f"token {number} is {shown(tokens[number])}, it should be a byte such as <0x0A>")


def _check_complete(
    metadata: Mapping[str, Any], kind: Kind, special: SpecialIds, scores: NDArray[np.float32] | None
) -> None:
    """Whether there is what encoding needs; the merges themselves are looked at when the first text is encoded."""
    if kind in (Kind.SPM, Kind.UGM) and scores is None:
        raise corrupt("the file's tokenizer has no scores (key tokenizer.ggml.scores)")
    if kind in (Kind.WPM, Kind.UGM) and special.unknown is None:
        raise corrupt("the file's tokenizer has no unknown token (key tokenizer.ggml.unknown_token_id)")
    if kind is Kind.BPE and PREFIX + "merges" not in metadata and metadata.get(PREFIX + "pre") != "kimi-k2":
        raise corrupt("the file's tokenizer has no merges (key tokenizer.ggml.merges)")


def _read_scores(metadata: Mapping[str, Any], count: int) -> NDArray[np.float32] | None:
    stored = read_numbers(metadata, "scores", count)
    if stored is None:
        return None
    scores = np.array(stored, np.float32)
    if np.isnan(scores).any():
        raise corrupt(f"the score of token {int(np.isnan(scores).argmax())} is not a number")
    return scores


def _read_special_ids(metadata: Mapping[str, Any], name: str, count: int, pre_tokenizer: PreTokenizer) -> SpecialIds:
    found: dict[str, int | None] = {}
    for role, keys in _ID_KEYS.items():
        default: int | None = getattr(_DEFAULT_IDS[name], role)
        if role == "bos" and not pre_tokenizer.default_bos:
            default = None
        found[role] = default if default is not None and default < count else None
        for key in keys:
            if "tokenizer.ggml." + key not in metadata:
                continue
            number = read_id(metadata, key)
            if number is not None and not 0 <= number < count:
                if role in _ESSENTIAL_ROLES:
                    raise corrupt(f"key tokenizer.ggml.{key} is {number}, the vocabulary has {count} tokens")
                number = None
            found[role] = number
            break
    return SpecialIds(**found)


def _read_rules(metadata: Mapping[str, Any], kind: Kind, special: SpecialIds, pre_tokenizer: PreTokenizer) -> Rules:
    def stored(name: str, default: bool) -> bool:
        flag = read_flag(metadata, name)
        return default if flag is None else flag

    default = _DEFAULT_RULES[kind]
    add_bos = (default.add_bos or pre_tokenizer.add_bos) and special.bos is not None
    add_separator = (default.add_separator or pre_tokenizer.add_separator) and special.separator is not None
    lowercase = stored("normalizer.lowercase", pre_tokenizer.lowercase)
    rules = Rules(
        add_bos=stored("add_bos_token", add_bos) or pre_tokenizer.always_add_bos,
        add_eos=stored("add_eos_token", default.add_eos and special.eos is not None),
        add_separator=stored("add_sep_token", add_separator),
        add_space_prefix=stored("add_space_prefix", default.add_space_prefix),
        remove_extra_whitespaces=stored("remove_extra_whitespaces", default.remove_extra_whitespaces),
        lowercase=lowercase,
        strip_accents=stored("normalizer.strip_accents", lowercase),
    )
    for wanted, number, name in (
        (rules.add_bos, special.bos, "bos"),
        (rules.add_eos, special.eos, "eos"),
        (rules.add_separator, special.separator, "separator"),
    ):
        if wanted and number is None:
            raise corrupt(f"the file asks for a {name} token around every text and names none")
    return rules


def _find_by_text(
    special: SpecialIds, ids: dict[bytes, int], types: NDArray[np.int32]
) -> tuple[SpecialIds, NDArray[np.int32]]:
    """Fill roles that have no key; a token found so is a control token whatever the file says."""
    found: dict[str, int] = {}
    for role, texts in ROLE_TEXTS.items():
        if getattr(special, role) is not None:
            continue
        number = next((ids[text.encode()] for text in texts if text.encode() in ids), None)
        if number is not None:
            found[role] = number
            types[number] = TokenType.CONTROL
    return replace(special, **found), types


def _find_end_of_generation(
    special: SpecialIds, tokens: list[bytes], ids: dict[bytes, int], types: NDArray[np.int32]
) -> tuple[frozenset[int], NDArray[np.int32]]:
    """Ids that end an answer, found by role and by text."""
    ending: set[int] = set()
    for text in END_OF_GENERATION_TEXTS:
        number = ids.get(text.encode())
        if number is None or (text == "</s>" and types[number] != TokenType.CONTROL and special.eos != number):
            # Then it is the HTML tag for struck-out text (Gemma, Qwen 2), not an end.
            continue
        ending.add(number)
        types[number] = TokenType.CONTROL
    for text in ALWAYS_VISIBLE_TEXTS:
        if text.encode() in ids:
            types[ids[text.encode()]] = TokenType.USER_DEFINED
    roles = (special.eos, special.eot, special.eom, special.fim_pad, special.fim_repository, special.fim_separator)
    ending.update(number for number in roles if number is not None)

    texts = {tokens[number] for number in ending}
    calling = {b"<|call|>", b"<|calls|>"} & texts
    if calling and {b"<|return|>", b"<|flush|>"} & texts and b"<|end|>" in texts:
        # Here <|end|> closes one message of several (gpt-oss, Solar Open).
        ending.discard(ids[b"<|end|>"])
        types[ids[b"<|end|>"]] = TokenType.USER_DEFINED
    if b"<|tool_response>" in texts and b"</s>" in texts:
        ending.discard(ids[b"</s>"])
        types[ids[b"</s>"]] = TokenType.NORMAL
    return frozenset(ending), types


def _stripping(
    metadata: Mapping[str, Any], ids: dict[bytes, int], types: NDArray[np.int32]
) -> tuple[frozenset[int], frozenset[int]]:
    """Tokens that swallow white space before and after them, known by the model's name as no key tells."""
    name = read_text(metadata, "general.name").lower()
    architecture = read_text(metadata, "general.architecture")
    pre = read_text(metadata, "tokenizer.ggml.pre")
    left: set[int] = set()
    right: set[int] = set()
    if pre in ("jina-v2-de", "jina-v2-es", "jina-v2-code") or architecture in ("nomic-bert-moe", "jina-bert-v3"):
        left.update(ids[text] for text in (b"<mask>",) if text in ids)
    elif "phi-3" in name or "phi3" in name:
        right.update(np.flatnonzero(np.isin(types, CUTTING_TYPES)).tolist())
        right.update(ids[text] for text in (b"</s>",) if text in ids)
        right.difference_update(ids[text] for text in (b"<unk>", b"<s>", b"<|endoftext|>") if text in ids)
    elif "modern-bert" in name:
        left.update(ids[text] for text in (b"[MASK]",) if text in ids)
    return frozenset(left), frozenset(right)
