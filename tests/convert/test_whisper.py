"""Whisper's checkpoints: the same model in four formats gives the same file, and damaged ones a clean error."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tiny_whisper
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.convert import ConvertSettings, convert_whisper, is_whisper
from edgellm.convert.torch_file import open_torch_file
from edgellm.convert.whisper_tokens import special_tokens
from edgellm.errors import EdgeLLMError, UnsupportedModelError
from edgellm.gguf import open_gguf
from edgellm.models.whisper import build_whisper
from edgellm.speech.tokens import WhisperTokens
from edgellm.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def weights() -> tiny_whisper.Tensors:
    return tiny_whisper.tensors()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, weights: tiny_whisper.Tensors) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("whisper")
    places = {name: root / name for name in ("hugging_face", "ctranslate2", "openai", "ggml")}
    for folder in places.values():
        folder.mkdir()
    tiny_whisper.write_hugging_face(places["hugging_face"], weights)
    tiny_whisper.write_ctranslate2(places["ctranslate2"], weights)
    tiny_whisper.write_openai(places["openai"] / "tiny.pt", weights)
    tiny_whisper.write_ggml(places["ggml"] / "ggml-tiny.bin", weights)
    return places | {"openai": places["openai"] / "tiny.pt", "ggml": places["ggml"] / "ggml-tiny.bin"}


@pytest.fixture(scope="module")
def converted(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("converted")
    return {
        name: convert_whisper(path, folder / f"{name}.gguf", ConvertSettings("f32", name="tiny")).path
        for name, path in sources.items()
    }


def test_all_formats_give_the_same_tensors_and_keys(converted: dict[str, Path], weights: tiny_whisper.Tensors) -> None:
    with open_gguf(converted["hugging_face"]) as first:
        build_whisper(first)
        conv = weights["encoder.conv2.weight"]
        flat = conv.transpose(0, 2, 1).reshape(len(conv), -1)
        np.testing.assert_array_equal(first.decode("enc.conv2.weight"), flat)
        np.testing.assert_array_equal(
            first.decode("blk.1.cross_attn_k.weight"), weights["decoder.blocks.1.cross_attn.key.weight"]
        )
        for name in ("ctranslate2", "openai", "ggml"):
            with open_gguf(converted[name]) as other:
                assert other.tensors.keys() == first.tensors.keys()
                for tensor in first.tensors:
                    np.testing.assert_array_equal(other.decode(tensor), first.decode(tensor), err_msg=tensor)
                for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "whisper.encoder.context_length"):
                    mine, theirs = first.metadata[key], other.metadata[key]
                    assert list(mine) == list(theirs) if hasattr(mine, "__len__") else mine == theirs


def test_alignment_heads_are_kept_or_those_of_the_last_layers(converted: dict[str, Path]) -> None:
    with open_gguf(converted["ctranslate2"]) as file:
        assert build_whisper(file).alignment_heads == ((0, 1), (1, 0))
    with open_gguf(converted["openai"]) as file:
        assert build_whisper(file).alignment_heads == ((1, 0), (1, 1))


def test_the_vocabulary_has_its_special_tokens(converted: dict[str, Path]) -> None:
    with open_gguf(converted["ggml"]) as file:
        tokens = WhisperTokens(Tokenizer.load(file))
        assert (tokens.end, tokens.start, tokens.timestamps, tokens.size) == (50256, 50257, 50363, 51864)
        assert not tokens.multilingual
        assert tokens.text(tokens.encode("Grüße, 世界!")) == "Grüße, 世界!"


def test_int8_weights_of_ctranslate2(tmp_path: Path, weights: tiny_whisper.Tensors) -> None:
    tiny_whisper.write_ctranslate2(tmp_path, weights, int8=True)
    path = convert_whisper(tmp_path, tmp_path / "out.gguf", ConvertSettings("f32")).path
    with open_gguf(path) as file:
        exact = weights["decoder.blocks.0.mlp.0.weight"]
        steps = np.abs(exact).max(axis=1, keepdims=True) / 127
        assert (np.abs(file.decode("blk.0.ffn_up.weight") - exact) <= 0.5001 * steps).all()


@pytest.mark.parametrize("rows", [51863, 51867, 32000])
def test_other_vocabularies_are_refused(rows: int) -> None:
    with pytest.raises(UnsupportedModelError, match="not one of Whisper"):
        special_tokens(rows)


class _Runs:
    """What a pickle can ask for."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def test_nothing_in_a_pickle_is_executed(tmp_path: Path, weights: tiny_whisper.Tensors) -> None:
    marker = tmp_path / "executed"
    path = tmp_path / "evil.pt"
    tiny_whisper.write_openai(path, {"decoder.ln.weight": weights["decoder.ln.weight"]}, _Runs(marker))
    with pytest.raises(UnsupportedModelError, match="which is not run"), open_torch_file(path):
        pass
    assert not marker.exists()


def test_what_is_no_whisper_model(tmp_path: Path) -> None:
    assert not is_whisper(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert not is_whisper(tmp_path)


@given(seed=st.integers(0, 2**32 - 1), cut=st.booleans())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", ["ctranslate2", "ggml", "openai"])
def test_damaged_files_give_an_error_or_a_whole_file(
    sources: dict[str, Path], tmp_path: Path, name: str, seed: int, cut: bool
) -> None:
    """Bytes of the header changed, or the end cut off: never another exception, nor a file left behind."""
    random = np.random.default_rng(seed)
    path = sources[name] / "model.bin" if name == "ctranslate2" else sources[name]
    data = bytearray(path.read_bytes())
    if cut:
        del data[int(random.integers(0, len(data))) :]
    else:
        for place in random.integers(0, 4096, 4):
            data[place] = int(random.integers(0, 256))
    folder = tmp_path / f"{name}-{seed}-{cut}"
    folder.mkdir(exist_ok=True)
    damaged = folder / path.name
    damaged.write_bytes(data)
    tiny_whisper.write_tokenizer(folder)
    output = folder / "out.gguf"
    try:
        convert_whisper(folder if name == "ctranslate2" else damaged, output, ConvertSettings("f16", force=True))
    except EdgeLLMError as error:
        assert "\n" not in str(error)
        assert not output.exists()
    else:
        with open_gguf(output) as file:
            build_whisper(file)
    for file_left in folder.iterdir():
        file_left.unlink()
