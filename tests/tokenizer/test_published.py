"""Ids of published vocabularies and models, as their own tokenizers give them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgellm.gguf import open_gguf
from edgellm.tokenizer import Tokenizer

VOCABULARIES = ["bert-bge", "deepseek-llm", "gpt-2", "llama-bpe", "llama-spm", "mpt", "phi-3", "qwen2", "starcoder"]

SEPARATOR = "\n__ggml_vocab_test__\n"


def cases(path: Path) -> list[tuple[str, list[int]]]:
    """Texts and their ids. Line ends count, so nothing may translate them."""
    texts = path.with_name(path.name + ".inp").read_bytes().decode().split(SEPARATOR)
    expected = path.with_name(path.name + ".out").read_text().splitlines()
    assert texts.pop() == ""
    assert len(texts) == len(expected) > 40
    return [(text, [int(number) for number in line.split()]) for text, line in zip(texts, expected, strict=True)]


@pytest.mark.parametrize("name", VOCABULARIES)
def test_every_case_of_a_vocabulary(name: str, shared: Path, published: Callable[[str], Tokenizer]) -> None:
    tokenizer = published(name)
    wrong = {
        text: (found, expected)
        for text, expected in cases(shared / "vocab" / f"ggml-vocab-{name}.gguf")
        if (found := tokenizer.encode(text, add_special=False, parse_special=False)) != expected
    }
    assert wrong == {}
    assert tokenizer.warning is None


def test_no_vocabulary_is_left_out(shared: Path) -> None:
    there = {path.name for path in (shared / "vocab").glob("*.gguf")}
    assert there == {f"ggml-vocab-{name}.gguf" for name in VOCABULARIES}


@pytest.mark.parametrize(("model", "file"), [("smollm2_path", "smollm2"), ("gemma3_path", "gemma")])
def test_prompt_ids_of_a_model(model: str, file: str, shared: Path, request: pytest.FixtureRequest) -> None:
    tokenizer = Tokenizer.load(request.getfixturevalue(model))
    lines = (shared / "reference" / "llm" / f"{file}.llamacpp.jsonl").read_text().splitlines()
    assert lines
    for record in map(json.loads, lines):
        text, expected = record["text"], record["prompt_ids"]
        assert tokenizer.encode_prompt(text) == expected, record["name"]
        assert tokenizer.encode(text, add_special=True, parse_special=True) == expected, record["name"]
        stream = tokenizer.stream(special=False, after=expected)
        answer = "".join([*map(stream.push, record["completion_ids"]), stream.flush()])
        assert answer == record["completion"], record["name"]


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("llama-bpe", {"<|end_of_text|>", "<|eot_id|>"}),
        ("qwen2", {"<|endoftext|>", "<|im_end|>"}),
        ("phi-3", {"<|endoftext|>", "<|end|>"}),
        ("llama-spm", {"</s>"}),
    ],
)
def test_end_of_generation_is_found_without_keys(
    name: str, texts: set[str], published: Callable[[str], Tokenizer]
) -> None:
    tokenizer = published(name)
    found = {tokenizer.token_bytes(number).decode() for number in tokenizer.end_of_generation}
    assert found == texts


def test_struck_out_text_does_not_end_an_answer(gemma3_path: Path) -> None:
    tokenizer = Tokenizer.load(gemma3_path)
    ending = {tokenizer.token_bytes(number) for number in tokenizer.end_of_generation}
    assert ending == {b"<eos>", b"<end_of_turn>"}
    assert tokenizer.token_id("</s>") is not None


class Watched(Mapping[str, Any]):
    """Metadata that remembers which keys were looked up."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return self._metadata[key]

    def __contains__(self, key: object) -> bool:
        return key in self._metadata

    def __iter__(self) -> Iterator[str]:
        return iter(self._metadata)

    def __len__(self) -> int:
        return len(self._metadata)


def test_decoding_does_not_read_the_merges(smollm2_path: Path) -> None:
    with open_gguf(smollm2_path) as file:
        metadata = Watched(file.metadata)
        tokenizer = Tokenizer(metadata)
        assert tokenizer.decode([504, 3575]) == "The capital"
        assert "tokenizer.ggml.merges" not in metadata.read
        assert tokenizer.encode("The capital") == [504, 3575]
        assert "tokenizer.ggml.merges" in metadata.read


def test_a_tokenizer_shares_an_open_file(smollm2_path: Path) -> None:
    with open_gguf(smollm2_path) as file:
        assert Tokenizer.load(file).encode("Hello") == Tokenizer.load(smollm2_path).encode("Hello")
