"""The tokenizer's keys: ids against the tokenizers and sentencepiece libraries, special tokens, templates."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from checkpoints import write_json
from tokenizers import Tokenizer as Judge

from edgellm.convert import ConvertSettings, convert
from edgellm.convert.sentencepiece import read_sentencepiece
from edgellm.errors import CorruptFileError, UnsupportedModelError
from edgellm.gguf import open_gguf
from edgellm.tokenizer import Tokenizer

TEXTS = (
    "the cat sat on the mat",
    "numbers 1 2 3 and signs, of all kinds!",
    "  two  spaces\nand\ttabs é 中 🦙",
    "<extra_310>in the middle</s>",
    "",
)
Metadata = dict[str, Any]


@pytest.fixture
def checkpoint(shared: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ):
        shutil.copyfile(shared / "fixtures" / "llama" / name, folder / name)
    return folder


@pytest.fixture
def keys(checkpoint: Path, tmp_path: Path) -> Callable[..., Metadata]:
    """Converts the checkpoint and returns all keys, or only those of the tokenizer."""

    def read(**settings: Any) -> Metadata:
        path = tmp_path / "out.gguf"
        convert(checkpoint, path, ConvertSettings(force=True, **settings))
        with open_gguf(path) as file:
            return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in file.metadata.items()}

    return read


def _change(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    old = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, {key: value for key, value in {**old, **values}.items() if value is not ...})


def _change_tokenizer(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    change(tokenizer)
    write_json(folder / "tokenizer.json", tokenizer)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bitnet-tiny"])
def test_ids_are_those_of_the_library(name: str, shared: Path, tmp_path: Path) -> None:
    source = shared / ("models" if name == "bitnet-tiny" else "fixtures") / name
    convert(source, tmp_path / "out.gguf")
    tokenizer, judge = Tokenizer.load(tmp_path / "out.gguf"), Judge.from_file(str(source / "tokenizer.json"))
    for text in TEXTS:
        assert tokenizer.encode(text, add_special=False, parse_special=True) == judge.encode(text).ids


def test_tokens_types_and_merges(keys: Callable[..., Metadata]) -> None:
    found = keys()
    assert found["tokenizer.ggml.model"] == "gpt2"
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    assert found["tokenizer.ggml.tokens"][:3] == [b"<s>", b"</s>", b"!"]
    assert found["tokenizer.ggml.tokens"][308] == b"<extra_308>"
    assert found["tokenizer.ggml.token_type"][:3] == [3, 3, 1]
    assert found["tokenizer.ggml.token_type"][308] == 4
    assert found["tokenizer.ggml.merges"][:2] == [b"h e", b"t he"]
    assert "tokenizer.ggml.scores" not in found
    ids = ("bos", 0), ("eos", 1), ("padding", 1)
    assert all(found[f"tokenizer.ggml.{role}_token_id"] == number for role, number in ids)


def test_merges_as_texts_and_with_spaces(checkpoint: Path, keys: Callable[..., Metadata]) -> None:
    expected = keys()["tokenizer.ggml.merges"]
    _change_tokenizer(checkpoint, lambda t: t["model"].update(merges=[" ".join(pair) for pair in t["model"]["merges"]]))
    assert keys()["tokenizer.ggml.merges"] == expected
    _change_tokenizer(checkpoint, lambda t: t["model"].update(merges=[[" a", "b"]]))
    assert keys()["tokenizer.ggml.merges"] == ["Ġa b".encode()]


def test_a_larger_embedding_is_filled_up(checkpoint: Path, keys: Callable[..., Metadata]) -> None:
    def remove_last(tokenizer: dict[str, Any]) -> None:
        tokenizer["added_tokens"] = [entry for entry in tokenizer["added_tokens"] if entry["id"] not in (350, 382, 383)]

    _change_tokenizer(checkpoint, remove_last)
    found = keys()
    assert len(found["tokenizer.ggml.tokens"]) == len(found["tokenizer.ggml.token_type"]) == 384
    for number in (350, 382, 383):
        assert found["tokenizer.ggml.tokens"][number] == f"[PAD{number}]".encode()
        assert found["tokenizer.ggml.token_type"][number] == 5


def test_tokens_beyond_the_embedding_are_left_out_and_told(checkpoint: Path, tmp_path: Path) -> None:
    _change_tokenizer(checkpoint, lambda t: t["added_tokens"].append({"id": 384, "content": "<new>", "special": True}))
    done = convert(checkpoint, tmp_path / "out.gguf")
    assert done.notices == ("1 tokens beyond the embedding's 384 rows are left out",)
    with open_gguf(done.path) as file:
        assert len(file.metadata["tokenizer.ggml.tokens"]) == 384  # type: ignore[arg-type]


def test_tokens_that_look_special(checkpoint: Path, keys: Callable[..., Metadata]) -> None:
    def add(tokenizer: dict[str, Any]) -> None:
        for number, text in ((381, "<|im_end|>"), (382, "<unused7>"), (383, "▁▁")):
            tokenizer["added_tokens"][:] = [entry for entry in tokenizer["added_tokens"] if entry["id"] != number]
            tokenizer["added_tokens"].append({"id": number, "content": text, "special": False})

    _change_tokenizer(checkpoint, add)
    found = keys()
    assert found["tokenizer.ggml.token_type"][381:] == [3, 3, 4]
    assert found["tokenizer.ggml.tokens"][383] == b"  "  # text is cut at these as it is written


def test_special_ids_come_from_the_tokenizer_then_the_config(checkpoint: Path, keys: Callable[..., Metadata]) -> None:
    _change(checkpoint, "tokenizer_config.json", eos_token={"content": "<extra_310>"}, unk_token=None, pad_token=None)
    _change(checkpoint, "config.json", eos_token_id=[1, 311], pad_token_id=None, sep_token_id=5)
    _change(checkpoint, "generation_config.json", pad_token_id=7)
    found = keys()
    assert found["tokenizer.ggml.eos_token_id"] == 310
    assert found["tokenizer.ggml.padding_token_id"] == 7
    assert found["tokenizer.ggml.seperator_token_id"] == 5
    assert "tokenizer.ggml.unknown_token_id" not in found
    _change(checkpoint, "tokenizer_config.json", eos_token=None)
    assert keys()["tokenizer.ggml.eos_token_id"] == 1
    _change(checkpoint, "config.json", eos_token_id=100000)
    assert "tokenizer.ggml.eos_token_id" not in keys()


def _template(first: str | None, last: str | None) -> dict[str, Any]:
    sequence = [{"Sequence": {"id": "A", "type_id": 0}}]
    ends = [[{"SpecialToken": {"id": text, "type_id": 0}}] if text else [] for text in (first, last)]
    return {"type": "TemplateProcessing", "single": [*ends[0], *sequence, *ends[1]], "pair": [], "special_tokens": {}}


@pytest.mark.parametrize(
    ("processor", "settings", "expected"),
    [
        (_template("<s>", None), {}, (True, None)),
        (_template("<s>", "</s>"), {}, (True, True)),
        (_template(None, "</s>"), {}, (None, True)),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, _template("<s>", None)]}, {}, (True, None)),
        (_template("<s>", None), {"add_bos_token": False}, (False, None)),
        (None, {"add_bos_token": True, "add_eos_token": False}, (True, False)),
        (_template("<extra_310>", None), {}, (False, None)),
        (None, {}, (None, None)),
    ],
)
def test_what_is_added_to_texts(
    checkpoint: Path, keys: Callable[..., Metadata], processor: Any, settings: dict[str, bool], expected: Any
) -> None:
    _change_tokenizer(checkpoint, lambda t: t.update(post_processor=processor))
    _change(checkpoint, "tokenizer_config.json", **settings)
    found = keys()
    assert tuple(found.get(f"tokenizer.ggml.add_{role}_token") for role in ("bos", "eos")) == expected


def test_chat_templates(checkpoint: Path, keys: Callable[..., Metadata]) -> None:
    assert "tokenizer.chat_template" not in keys()
    _change(checkpoint, "tokenizer_config.json", chat_template="from the settings")
    assert keys()["tokenizer.chat_template"] == "from the settings"
    several = [{"name": "default", "template": "first"}, {"name": "tool_use", "template": "second"}]
    _change(checkpoint, "tokenizer_config.json", chat_template=several)
    found = keys()
    assert found["tokenizer.chat_template"] == "first"
    assert found["tokenizer.chat_template.tool_use"] == "second"
    assert found["tokenizer.chat_templates"] == [b"tool_use"]
    _change(checkpoint, "tokenizer_config.json", chat_template=None)
    write_json(checkpoint / "chat_template.json", {"chat_template": "from JSON"})
    assert keys()["tokenizer.chat_template"] == "from JSON"
    (checkpoint / "chat_template.jinja").write_text("{{ 'from Jinja ü' }}", "utf-8")
    (checkpoint / "additional_chat_templates").mkdir()
    (checkpoint / "additional_chat_templates" / "rag.jinja").write_text("third")
    found = keys()
    assert found["tokenizer.chat_template"] == "{{ 'from Jinja ü' }}"
    assert found["tokenizer.chat_template.rag"] == "third"


def test_sampling_settings_name_and_licence(checkpoint: Path, keys: Callable[..., Metadata]) -> None:
    _change(checkpoint, "generation_config.json", temperature=0.75, top_k=20, top_p=0.5, min_p=None)
    (checkpoint / "README.md").write_text("---\nlicense: apache-2.0\nother:\n- x\n---\n# Model\nlicense: no\n")
    found = keys(name="A model")
    assert found["general.sampling.temp"] == 0.75
    assert found["general.sampling.top_k"] == 20
    assert found["general.sampling.top_p"] == 0.5
    assert "general.sampling.min_p" not in found
    assert (found["general.name"], found["general.license"]) == ("A model", "apache-2.0")
    assert (found["general.type"], found["general.size_label"]) == ("model", "160K")


def test_the_pre_tokenizer_may_be_named(checkpoint: Path, keys: Callable[..., Metadata]) -> None:
    _change_tokenizer(checkpoint, lambda t: t.update(pre_tokenizer={"type": "ByteLevel", "use_regex": False}))
    with pytest.raises(UnsupportedModelError, match="--pre-tokenizer"):
        keys()
    assert keys(pre_tokenizer="smollm")["tokenizer.ggml.pre"] == "smollm"
    with pytest.raises(UnsupportedModelError, match="pre-tokenizer nonsense is not known"):
        keys(pre_tokenizer="nonsense")


def test_other_kinds_of_tokenizers_are_named(checkpoint: Path, keys: Callable[..., Metadata]) -> None:
    _change_tokenizer(checkpoint, lambda t: t["model"].update(type="WordPiece"))
    with pytest.raises(UnsupportedModelError, match="of the kind WordPiece"):
        keys()


# SentencePiece

TEXT = "the cat sat on the mat and then the other cat ran away from there\nnumbers 1 2 3 and signs, of all kinds!\n" * 9


@pytest.fixture(scope="session")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer.model with bytes for what it does not know, as Llama's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=model,
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        user_defined_symbols=["<user>"],
        hard_vocab_limit=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


def test_pieces_are_those_of_the_library(pieces: Path) -> None:
    judge = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    found = read_sentencepiece(pieces)
    assert found is not None
    assert found.texts == [judge.id_to_piece(number) for number in range(judge.vocab_size())]
    assert found.scores == [judge.get_score(number) for number in range(judge.vocab_size())]
    for number, kind in enumerate(found.types):
        assert (kind == 2) == judge.is_unknown(number)
        assert (kind == 3) == judge.is_control(number)
        assert (kind == 6) == judge.is_byte(number)
    assert found.types[found.texts.index("<user>")] == 4
    assert found.add_dummy_prefix


def test_a_sentencepiece_checkpoint(checkpoint: Path, tmp_path: Path, pieces: Path) -> None:
    """Ids as the library's, also where tokenizer.json is missing; added tokens come from all the files."""
    judge = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    (checkpoint / "tokenizer.json").unlink()
    shutil.copyfile(pieces, checkpoint / "tokenizer.model")
    size = judge.vocab_size()
    write_json(checkpoint / "added_tokens.json", {"<one>": size})
    decoder = {str(size + 1): {"content": "<two>", "special": True}}
    _change(checkpoint, "tokenizer_config.json", added_tokens_decoder=decoder)
    path = convert(checkpoint, tmp_path / "out.gguf").path
    with open_gguf(path) as file:
        assert file.metadata["tokenizer.ggml.model"] == "llama"
        assert file.metadata["tokenizer.ggml.pre"] == "default"
        types = file.metadata["tokenizer.ggml.token_type"]
        assert list(types[size : size + 3]) == [4, 3, 5]  # type: ignore[index]
    tokenizer = Tokenizer.load(path)
    for text in ("the cat", "numbers 12 é 中", "sat  on\nthe", "there, then!"):
        assert tokenizer.encode(text, add_special=False) == judge.encode(text)


def test_scores_from_merges(checkpoint: Path, tmp_path: Path, pieces: Path) -> None:
    """Where only tokenizer.json is left of a SentencePiece model, its merges give an order with the same outcome."""
    judge = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    vocabulary = {judge.id_to_piece(number): number for number in range(judge.vocab_size())}
    merges = sorted(
        (
            [text[:cut], text[cut:]]
            for text in vocabulary
            for cut in range(1, len(text))
            if text[:cut] in vocabulary and text[cut:] in vocabulary
        ),
        key=lambda pair: vocabulary[pair[0] + pair[1]],
    )
    added = [
        {"id": vocabulary[text], "content": text, "special": text != "<user>"} for text in ("<s>", "</s>", "<user>")
    ]
    tokenizer_json = {
        "added_tokens": [{"id": 0, "content": "<unk>", "special": True}, *added],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges, "byte_fallback": True, "unk_token": "<unk>"},
    }
    write_json(checkpoint / "tokenizer.json", tokenizer_json)
    path = convert(checkpoint, tmp_path / "out.gguf").path
    with open_gguf(path) as file:
        assert file.metadata["tokenizer.ggml.model"] == "llama"
        types = list(file.metadata["tokenizer.ggml.token_type"])  # type: ignore[call-overload]
    assert types[:3] == [2, 3, 3]
    assert types[vocabulary["<0x41>"]] == 6
    tokenizer = Tokenizer.load(path)
    for text in ("the cat sat on the mat", "numbers 12 é 中", "other signs of all kinds"):
        assert tokenizer.encode(text, add_special=False) == judge.encode(text)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}, True),
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"}, False),
        ({"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}, True),
        (None, False),
    ],
)
def test_the_space_before_a_text(checkpoint: Path, keys: Callable[..., Metadata], stage: Any, expected: bool) -> None:
    _change_tokenizer(checkpoint, lambda t: t.update(pre_tokenizer=stage, decoder={"type": "Fuse"}))
    found = keys()
    assert found["tokenizer.ggml.model"] == "llama"
    assert found["tokenizer.ggml.add_space_prefix"] is expected


def test_another_format_under_the_same_name(checkpoint: Path, keys: Callable[..., Metadata]) -> None:
    """Llama 3 has a tokenizer.model of tiktoken's, which is no SentencePiece model."""
    (checkpoint / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    assert read_sentencepiece(checkpoint / "tokenizer.model") is None
    assert keys()["tokenizer.ggml.model"] == "gpt2"


# tiktoken


def _tiktoken(folder: Path, shared: Path) -> dict[bytes, int]:
    """The fixture's own merges as ranks: bytes first, then a rank for each merge."""
    tokenizer = json.loads((shared / "fixtures" / "llama" / "tokenizer.json").read_text())
    letters = {letter: byte for byte, letter in gpt2_letters().items()}
    tokens = [bytes([byte]) for byte in range(256)]
    for left, right in tokenizer["model"]["merges"]:
        tokens.append(bytes(letters[letter] for letter in left + right))
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    (folder / "tiktoken.model").write_text("\n".join(lines) + "\n")
    (folder / "tokenizer.json").unlink()
    return {token: rank for rank, token in enumerate(tokens)}


def gpt2_letters() -> dict[int, str]:
    """Byte to letter, as GPT-2 publishes it."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {**{byte: chr(byte) for byte in kept}, **{byte: chr(256 + number) for number, byte in enumerate(moved)}}


def test_ranks_give_the_merges_back(checkpoint: Path, tmp_path: Path, shared: Path) -> None:
    """The vocabulary of Kimi K2: the same words are put together from ranks as from the merges they came from."""
    ranks = _tiktoken(checkpoint, shared)
    decoder = {"310": {"content": "[EOS]", "special": True}}
    _change(checkpoint, "tokenizer_config.json", tokenizer_class="TikTokenTokenizer", added_tokens_decoder=decoder)
    path = convert(checkpoint, tmp_path / "out.gguf").path
    with open_gguf(path) as file:
        assert file.metadata["tokenizer.ggml.pre"] == "kimi-k2"
        assert file.metadata["tokenizer.ggml.token_type"][310] == 3  # type: ignore[index]
    tokenizer = Tokenizer.load(path)
    judge = Judge.from_file(str(shared / "fixtures" / "llama" / "tokenizer.json"))
    letters = {letter: byte for byte, letter in gpt2_letters().items()}
    for text in ("the cat sat on the mat", "there and then"):
        expected = [ranks[bytes(letters[letter] for letter in token)] for token in judge.encode(text).tokens]
        assert tokenizer.encode(text, add_special=False) == expected


def test_tiktoken_files_that_cannot_be_used(checkpoint: Path, keys: Callable[..., Metadata], shared: Path) -> None:
    _tiktoken(checkpoint, shared)
    with pytest.raises(UnsupportedModelError, match=r"not written anywhere; .*--pre-tokenizer"):
        keys()
    assert keys(pre_tokenizer="qwen2")["tokenizer.ggml.pre"] == "qwen2"
    for content in ("", "IQ==", "IQ== x", "!!! 3", "IQ== 0\nIQ== 1", "IQ== 0\nIg== 0", "IQ== 99999999999"):
        (checkpoint / "tiktoken.model").write_text(content)
        with pytest.raises(CorruptFileError, match="tiktoken"):
            keys(pre_tokenizer="qwen2")


@pytest.mark.parametrize("cut", [1, 2, 7, 100, 1000])
def test_damaged_pieces(pieces: Path, tmp_path: Path, cut: int) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(pieces.read_bytes()[:-cut] + b"\xff" * 3)
    with pytest.raises(CorruptFileError, match="is no valid SentencePiece model"):
        read_sentencepiece(path)
