"""Whisper's vocabulary: byte-pair tokens from whatever lies beside the weights, and special tokens by their number.

Source: OpenAI's whisper (``tokenizer.py``): after the text tokens come end and start, the languages, six control
tokens, and the timestamps from 0 to 30 s in steps of 0.02 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgellm.convert.builder import Key
from edgellm.convert.config import Config
from edgellm.convert.tiktoken import merges, read_tiktoken
from edgellm.convert.vocabulary import CONTROL, NORMAL, TokenizerFiles, Tokens, byte_letters, tokenizer_keys
from edgellm.errors import CorruptFileError, UnsupportedModelError
from edgellm.languages import LANGUAGES

TIMESTAMPS = 1501
_CONTROLS = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
_ENGLISH_TEXTS, _TEXTS = 50256, 50257
_MOST_FILE_BYTES = 64 << 20
_PRE = "gpt-2"


def special_tokens(rows: int) -> tuple[int, list[str]]:
    """The number of the first special token of a vocabulary of ``rows`` tokens, and the texts of all of them.

    Raises:
        UnsupportedModelError: no Whisper model has so many tokens.
    """
    first = _TEXTS if rows >= 51865 else _ENGLISH_TEXTS
    languages = rows - first - 2 - len(_CONTROLS) - TIMESTAMPS
    if not 99 <= languages <= len(LANGUAGES):
        raise UnsupportedModelError(f"a vocabulary of {rows} tokens is not one of Whisper's", "known: 51864 to 51866")
    names = ["endoftext", "startoftranscript", *list(LANGUAGES)[:languages], *_CONTROLS]
    return first, [f"<|{name}|>" for name in names] + [f"<|{0.02 * step:.2f}|>" for step in range(TIMESTAMPS)]


def vocabulary_keys(folder: Path, tokens: Sequence[bytes] | None, rows: int) -> dict[str, Key]:
    """The tokenizer's keys.

    Args:
        folder: of the checkpoint, where tokenizer.json, a .tiktoken file or vocabulary.txt may lie.
        tokens: what the weights' own file says, by rank, or None.
        rows: of the embedding.

    Raises:
        CorruptFileError: a file is missing or damaged.
    """
    first, specials = special_tokens(rows)
    files = TokenizerFiles(folder)
    if tokens is not None:
        keys = _keys_of_ranks(tokens, first)
    elif files.tokenizer:
        keys = tokenizer_keys(files, Config({}), rows, None, _PRE, [])
    else:
        keys = _keys_of_ranks(_listed_tokens(folder), first)
    texts, types = keys["tokenizer.ggml.tokens"].value[:first], keys["tokenizer.ggml.token_type"].value[:first]
    if len(texts) < first:
        raise CorruptFileError(f"the vocabulary has {len(texts)} tokens of text, expected {first}")
    if not keys["tokenizer.ggml.merges"].value:
        raise CorruptFileError("the vocabulary has no merges", "fetch tokenizer.json again")
    return {
        "tokenizer.ggml.model": Key("gpt2", "string"),
        "tokenizer.ggml.pre": Key(_PRE, "string"),
        "tokenizer.ggml.tokens": Key([*texts, *specials], "strings"),
        "tokenizer.ggml.token_type": Key([*types, *[CONTROL] * len(specials)], "i32s"),
        "tokenizer.ggml.merges": keys["tokenizer.ggml.merges"],
        "tokenizer.ggml.bos_token_id": Key(first, "u32"),
        "tokenizer.ggml.eos_token_id": Key(first, "u32"),
        "tokenizer.ggml.add_bos_token": Key(False, "bool"),
    }


def _keys_of_ranks(listed: Sequence[bytes], first: int) -> dict[str, Key]:
    """From tokens whose number is their rank: which pairs are joined first follows from that."""
    ranks = {token: rank for rank, token in enumerate(listed[:first]) if token}
    if len(ranks) < min(first, len(listed)) - 1:
        raise CorruptFileError("the vocabulary has a token twice")
    if sum(len(token) ** 2 for token in ranks) > 1 << 27:
        raise CorruptFileError("the vocabulary has too many long tokens")
    letters = byte_letters()
    tokens = Tokens("gpt2")
    for token, rank in ranks.items():
        tokens.put(rank, token.decode("latin-1").translate(letters), NORMAL)
    if len(tokens.texts) < first:
        tokens.put(first - 1, "<|unused|>", CONTROL)
    pairs = [" ".join(part.decode("latin-1").translate(letters) for part in pair) for pair in merges(ranks)]
    return {
        "tokenizer.ggml.tokens": Key(tokens.texts, "strings"),
        "tokenizer.ggml.token_type": Key(tokens.types, "i32s"),
        "tokenizer.ggml.merges": Key(pairs, "strings"),
    }


def _listed_tokens(folder: Path) -> list[bytes]:
    """Tokens in the order of their ranks, from a .tiktoken file or CTranslate2's vocabulary.txt."""
    for path in sorted(folder.glob("*.tiktoken")):
        ranks = read_tiktoken(path)
        listed = [b""] * (max(ranks.values()) + 1) if max(ranks.values()) < 1 << 20 else []
        for token, rank in ranks.items():
            listed[rank] = token
        return listed
    path = folder / "vocabulary.txt"
    if path.is_file() and path.stat().st_size <= _MOST_FILE_BYTES:
        bytes_of = {letter: byte for byte, letter in byte_letters().items()}
        lines = path.read_text("utf-8", "replace").split("\n")
        return [bytes(bytes_of.get(ord(letter), 0x3F) for letter in line) for line in lines]
    raise CorruptFileError(
        f"{folder} has neither tokenizer.json nor a .tiktoken file or vocabulary.txt",
        "put the model's tokenizer.json beside the weights",
    )
