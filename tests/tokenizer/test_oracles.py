"""The same ids as independent implementations, where they are installed (pip install tokenizers sentencepiece)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.gguf import open_gguf
from edgellm.tokenizer import Tokenizer

ALPHABET = "abcXYZ 0123456789  \n\t.,!'\"<>()-_éßñüαβГдж漢字한국어คភាសាहिन्दी🙂🚀👨\u200d👧\xa0\u3000½²Ⅷ'sS're"

# As the models' own tokenizer.json files write them.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="module")
def samples(shared: Path) -> list[str]:
    """English text, then random strings of many scripts."""
    generator = random.Random(5)
    text = (shared / "text" / "wikitext2-valid.txt").read_text()

    def random_texts() -> Iterator[str]:
        for _ in range(500):
            yield "".join(generator.choice(ALPHABET) for _ in range(generator.randrange(1, 60)))
        for _ in range(200):
            codes = generator.choice([generator.randrange(0x20, 0x500), generator.randrange(0x1F300, 0x1F600)])
            yield "".join(chr(codes + generator.randrange(64)) for _ in range(20))

    return [*(text[i : i + 2000] for i in range(0, 60_000, 2000)), *random_texts()]


@pytest.mark.parametrize("name", ["gpt-2", "mpt", "starcoder", "llama-bpe", "qwen2"])
def test_byte_pairs_against_tokenizers(name: str, shared: Path, samples: list[str]) -> None:
    other = pytest.importorskip("tokenizers")
    metadata = open_gguf(shared / "vocab" / f"ggml-vocab-{name}.gguf").metadata
    tokens = [token.decode() for token in _list(metadata["tokenizer.ggml.tokens"])]
    merges = [tuple(merge.decode().split(" ", 1)) for merge in _list(metadata["tokenizer.ggml.merges"])]
    oracle = other.Tokenizer(
        other.models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=name == "llama-bpe",
        )
    )
    whole = other.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = other.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)

    def split(pattern: str) -> Any:
        return other.pre_tokenizers.Split(other.Regex(pattern), "isolated")

    stages = {
        "llama-bpe": [split(LLAMA3), whole],
        "qwen2": [split(LLAMA3.replace("{1,3}", "")), whole],
        "starcoder": [other.pre_tokenizers.Digits(individual_digits=True), gpt2],
    }
    oracle.pre_tokenizer = other.pre_tokenizers.Sequence(stages.get(name, [gpt2]))
    types = metadata["tokenizer.ggml.token_type"]
    own = [token for token, kind in zip(tokens, types, strict=True) if kind == 4]
    oracle.add_tokens([other.AddedToken(token, normalized=False) for token in own])
    _assert_same(Tokenizer(metadata), lambda text: oracle.encode(text, add_special_tokens=False).ids, samples)


def test_pieces_against_sentencepiece(shared: Path, samples: list[str]) -> None:
    other = pytest.importorskip("sentencepiece")
    models = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    metadata = open_gguf(shared / "vocab" / "ggml-vocab-llama-spm.gguf").metadata
    model = models.ModelProto()
    for text, score, kind in zip(
        _list(metadata["tokenizer.ggml.tokens"]),
        metadata["tokenizer.ggml.scores"],
        metadata["tokenizer.ggml.token_type"],
        strict=True,
    ):
        model.pieces.add(piece=text.decode(), score=float(score), type=int(kind))
    model.trainer_spec.model_type = 2
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    oracle = other.SentencePieceProcessor(model_proto=model.SerializeToString())
    _assert_same(Tokenizer(metadata), oracle.encode, samples)


def test_unigrams_against_sentencepiece(shared: Path, samples: list[str], tmp_path: Path) -> None:
    other = pytest.importorskip("sentencepiece")
    models = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    other.SentencePieceTrainer.train(
        input=str(shared / "text" / "wikitext2-valid.txt"),
        model_prefix=str(tmp_path / "unigram"),
        vocab_size=2000,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    model = models.ModelProto()
    model.ParseFromString((tmp_path / "unigram.model").read_bytes())
    metadata = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": [piece.piece.encode() for piece in model.pieces],
        "tokenizer.ggml.scores": np.array([piece.score for piece in model.pieces], np.float32),
        "tokenizer.ggml.token_type": np.array([piece.type for piece in model.pieces], np.int32),
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.remove_extra_whitespaces": True,
        "tokenizer.ggml.precompiled_charsmap": np.frombuffer(model.normalizer_spec.precompiled_charsmap, np.uint8),
    }
    oracle = other.SentencePieceProcessor(model_proto=model.SerializeToString())
    # Cuts of equal probability are a matter of taste: "V I II" and "V II I" for the numeral eight.
    _assert_same(Tokenizer(metadata), oracle.encode, [text for text in samples if "Ⅷ" not in text])


def test_word_pieces_against_tokenizers(shared: Path, samples: list[str]) -> None:
    other = pytest.importorskip("tokenizers")
    metadata = open_gguf(shared / "vocab" / "ggml-vocab-bert-bge.gguf").metadata
    vocabulary = {}
    for number, stored in enumerate(_list(metadata["tokenizer.ggml.tokens"])):
        text = stored.decode()
        control = metadata["tokenizer.ggml.token_type"][number] == 3
        vocabulary[text if control else text[1:] if text[0] == "\u2581" else "##" + text] = number
    oracle = other.BertWordPieceTokenizer(vocab=vocabulary)
    _assert_same(Tokenizer(metadata), lambda text: oracle.encode(text, add_special_tokens=False).ids, samples)


def _list(value: Any) -> list[bytes]:
    listed: list[bytes] = value.tolist()
    return listed


def _assert_same(tokenizer: Tokenizer, oracle: Callable[[str], list[int]], samples: list[str]) -> None:
    differing = [text for text in samples if tokenizer.encode(text, add_special=False) != oracle(text)]
    assert differing == []
