"""Vocabularies for the tokenizer's tests: the published ones, and small ones made by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.tokenizer import Tokenizer, TokenType

Metadata = dict[str, Any]
NORMAL, CONTROL, USER_DEFINED = TokenType.NORMAL, TokenType.CONTROL, TokenType.USER_DEFINED


@pytest.fixture(scope="session")
def published(shared: Path) -> Callable[[str], Tokenizer]:
    """The tokenizer of a published vocabulary, such as ``llama-bpe``; loaded once."""
    loaded: dict[str, Tokenizer] = {}

    def load(name: str) -> Tokenizer:
        if name not in loaded:
            path = shared / "vocab" / f"ggml-vocab-{name}.gguf"
            if not path.is_file():
                pytest.skip(f"no file {path}")
            loaded[name] = Tokenizer.load(path)
        return loaded[name]

    return load


def _keys(model: str, tokens: Sequence[str], types: Sequence[int]) -> Metadata:
    return {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": [token.encode() for token in tokens],
        "tokenizer.ggml.token_type": np.array(types, np.int32),
    }


@pytest.fixture(scope="session")
def byte_pairs() -> Callable[..., Metadata]:
    """Keys of a byte-level BPE vocabulary: the 256 bytes, then the products of the merges, then control tokens."""

    def make(merges: Sequence[str] = (), control: Sequence[str] = ("<s>", "</s>"), pre: str = "gpt-2") -> Metadata:
        # GPT-2's spelling, written down independently: bytes that print stand for themselves.
        alone = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = iter(range(0x100, 0x200))
        bytes_spelt = [chr(byte) if byte in alone else chr(next(others)) for byte in range(256)]
        products = [merge.replace(" ", "") for merge in merges]
        tokens = [*bytes_spelt, *products, *control]
        types = [NORMAL] * (256 + len(products)) + [CONTROL] * len(control)
        keys = _keys("gpt2", tokens, types)
        keys["tokenizer.ggml.merges"] = [merge.encode() for merge in merges]
        keys["tokenizer.ggml.pre"] = pre
        if control:
            keys["tokenizer.ggml.bos_token_id"] = tokens.index(control[0])
            keys["tokenizer.ggml.eos_token_id"] = tokens.index(control[-1])
        return keys

    return make


@pytest.fixture(scope="session")
def pieces() -> Callable[..., Metadata]:
    """Keys of a SentencePiece BPE vocabulary: unknown, BOS, EOS, 256 bytes, then pieces with falling scores."""

    def make(texts: Sequence[str], scores: Sequence[float] | None = None, model: str = "llama") -> Metadata:
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *texts]
        types = [TokenType.UNKNOWN, CONTROL, CONTROL, *[TokenType.BYTE] * 256, *[NORMAL] * len(texts)]
        keys = _keys(model, tokens, types)
        keys["tokenizer.ggml.scores"] = np.array(
            [0.0] * 259 + list(scores if scores is not None else range(-1, -1 - len(texts), -1)), np.float32
        )
        return keys

    return make
