"""Random models: that they load and compute finite logits in every type, and that files are written with care."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgellm import LLM
from edgellm.errors import EdgeLLMError, InvalidSettingError
from edgellm.gguf import StringArray, TensorType, decode, open_gguf
from edgellm.models import build_graph
from edgellm.platforms.reference import ReferenceExecutor
from edgellm.tokenizer import Tokenizer
from edgellm.tools import random_blocks, random_model
from edgellm.tools.random_blocks import TYPES, random_rows
from edgellm.tools.random_model import MIXES, SHAPES, Shape, model_tensors, write_random_model
from edgellm.weights import WeightStore

SMALL = Shape(3, 256, 512, 4, 2, 64, 400, 128)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(random_model.main, list(arguments), catch_exceptions=False)


@pytest.mark.parametrize("kind", TYPES)
def test_values_are_spread_as_asked(kind: str) -> None:
    pieces = list(random_rows(kind, 64, 1024, 0.03, np.random.default_rng(1)))
    values = np.concatenate([decode(piece, TensorType[kind]) for piece in pieces])
    assert values.shape == (64, 1024)
    assert np.isfinite(values).all()
    assert values.std() == pytest.approx(0.03, rel=0.03)
    assert abs(values.mean()) < 0.005
    assert np.abs(values).max() < 0.3
    assert len(np.unique(values[0])) == 3 if kind.startswith("TQ") else len(np.unique(values)) > 15


@pytest.mark.parametrize("kind", ["F16", "Q4_K", "TQ2_0"])
def test_pieces_are_small(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_blocks, "PIECE_BYTES", 3000)
    pieces = list(random_rows(kind, 50, 512, 0.1, np.random.default_rng(1)))
    assert max(piece.nbytes for piece in pieces) <= 3000
    assert sum(len(piece) for piece in pieces) == 50
    assert len({piece.tobytes() for piece in pieces}) == len(pieces)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [*TYPES, *MIXES])
def test_models_load_and_compute(kind: str, tied: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shape = Shape(**{**asdict(SMALL), "tied": tied})
    assert write_random_model(path, shape, kind) == path.stat().st_size
    with open_gguf(path) as file:
        tokenizer = Tokenizer.load(file)
        assert tokenizer.vocabulary_size == 400
        text = "the rain\nin Spain é 😀"
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert len(ids) < len(text.encode())  # merges do something
        tokens = file.metadata["tokenizer.ggml.tokens"]
        assert isinstance(tokens, StringArray)
        assert len(set(tokens.tolist())) == 400
    with LLM.load(path, backend="reference") as llm:
        logits = llm.logits(ids)
        assert logits.shape == (len(ids), 400)
        assert np.isfinite(logits).all()
        assert 0.1 < logits.std() < 10


def test_types_of_tensors(tmp_path: Path) -> None:
    def kinds(kind: str, shape: str = "llama-1b", embedding: str | None = None) -> dict[str, str]:
        tensors = model_tensors(SHAPES[shape], kind, embedding)
        return {tensor.name.removesuffix(".weight"): tensor.kind for tensor in tensors}

    mixed = kinds("Q4_K_M")
    assert mixed["token_embd"] == "Q6_K"
    assert mixed["output_norm"] == mixed["blk.0.attn_norm"] == "F32"
    finer = [layer for layer in range(16) if mixed[f"blk.{layer}.ffn_down"] == "Q6_K"]
    assert finer == [0, 1, 4, 7, 10, 13, 14, 15]  # as llama.cpp's quantizer chooses for 16 layers
    assert finer == [layer for layer in range(16) if mixed[f"blk.{layer}.attn_v"] == "Q6_K"]
    assert {mixed[f"blk.{layer}.attn_q"] for layer in range(16)} == {"Q4_K"}
    assert kinds("Q8_0")["token_embd"] == "Q8_0"
    assert kinds("TQ2_0", "bitnet-2b", "F16")["token_embd"] == "F16"
    assert kinds("TQ2_0", "bitnet-2b")["token_embd"] == "Q6_K"
    untied = kinds("Q4_0", "llama-8b")
    assert (untied["token_embd"], untied["output"]) == ("Q4_0", "Q6_K")
    # Rows of 576 values do not fill blocks of 256; those of 1536 do.
    small = kinds("Q4_K_M", "smollm2-135m")
    assert small["token_embd"] == "Q8_0"
    assert [small[f"blk.{layer}.attn_v"] for layer in (0, 3)] == ["Q8_0", "Q5_0"]
    assert [small[f"blk.{layer}.ffn_down"] for layer in (0, 3)] == ["Q6_K", "Q4_K"]


def test_sizes_of_published_models() -> None:
    def parameters(name: str) -> int:
        return sum(int(np.prod(tensor.shape)) for tensor in model_tensors(SHAPES[name], "F32"))

    published = {
        "smollm2-135m": 134_515_008, "smollm2-360m": 361_821_120, "smollm2-1.7b": 1_711_376_384,
        "tinyllama-1.1b": 1_100_048_384, "llama-1b": 1_235_814_400, "llama-3b": 3_212_749_824,
        "llama-8b": 8_030_261_248, "mistral-7b": 7_248_023_552,
    }  # fmt: skip
    assert {name: parameters(name) for name in published} == published
    # BitNet's own blocks have two more norms each (attention and feed-forward), and are otherwise the same.
    assert parameters("bitnet-2b") + 30 * (2560 + 6912) == 2_412_820_480


def test_seed_decides(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    for path, seed in zip(files, (1, 1, 2), strict=True):
        write_random_model(path, SMALL, "Q4_0", seed=seed)
    first, same, other = (path.read_bytes() for path in files)
    assert first == same
    assert first != other
    assert len(first) == len(other)


def test_graph_has_the_shape(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_random_model(path, SMALL)
    with open_gguf(path) as file:
        graph = build_graph(file, None)
        executor = ReferenceExecutor(graph, WeightStore(file))
        executor.close()
    assert (graph.context_length, graph.vocabulary_size, len(graph.cache)) == (128, 400, 3)
    assert (graph.cache[0].kv_heads, graph.cache[0].key_dim) == (2, 64)


class TestCommand:
    ARGUMENTS = ("--shape", "smollm2-135m", "--layers", "1", "--width", "128", "--feed-forward", "256", "--heads", "2",
                 "--kv-heads", "1", "--head-dim", "64", "--vocabulary", "300", "--context", "77")  # fmt: skip

    def test_sizes_given(self, tmp_path: Path) -> None:
        path = tmp_path / "m.gguf"
        result = run(str(path), *self.ARGUMENTS, "--type", "Q8_0", "--embedding-type", "F16", "--seed", "3")
        assert result.exit_code == 0, result.output
        assert result.stdout == f"{path} ({random_model.format_bytes(path.stat().st_size)})\n"
        with open_gguf(path) as file:
            assert build_graph(file, None).context_length == 77
            types = {name: info.type.name for name, info in file.tensors.items()}
        assert types["token_embd.weight"] == "F16"
        assert types["blk.0.ffn_down.weight"] == "Q8_0"
        assert list(tmp_path.iterdir()) == [path]

    def test_existing_files_are_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "m.gguf"
        path.write_bytes(b"precious")
        result = run(str(path), *self.ARGUMENTS)
        assert result.exit_code == 1
        assert result.stderr == f"Error: {path} exists already; choose another name, or replace it with --force\n"
        assert path.read_bytes() == b"precious"
        assert run(str(path), *self.ARGUMENTS, "--force").exit_code == 0
        assert path.stat().st_size > 1000
        folder = tmp_path / "folder"
        folder.mkdir()
        assert "exists already" in run(str(folder), *self.ARGUMENTS, "--force").stderr

    def test_file_made_meanwhile_is_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "m.gguf"

        def meddle(done: int, total: int) -> None:
            path.write_bytes(b"precious")

        with pytest.raises(EdgeLLMError, match="exists already"):
            write_random_model(path, SMALL, progress=meddle)
        assert path.read_bytes() == b"precious"
        assert list(tmp_path.iterdir()) == [path]

    def test_interruption_leaves_nothing(self, tmp_path: Path) -> None:
        def interrupt(done: int, total: int) -> None:
            assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_random_model(tmp_path / "m.gguf", SMALL, progress=interrupt)
        assert list(tmp_path.iterdir()) == []

    def test_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=random_model._SPARE_BYTES + 100)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        result = run(str(tmp_path / "m.gguf"), *self.ARGUMENTS)
        assert result.exit_code == 1
        assert f"64.0 MiB are free in {tmp_path}; free some" in result.stderr
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions stop")
    def test_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        result = run(str(tmp_path / "m.gguf"), *self.ARGUMENTS)
        assert (result.exit_code, "Permission denied" in result.stderr) == (1, True)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--type", "Q4_7"], "type 'Q4_7' is not known; known: F32, F16"),
            (["--embedding-type", "Q4_K_M"], "type 'Q4_K_M' is not known"),
            (["--heads", "3", "--kv-heads", "2"], "3 heads cannot share 2 key/value heads evenly"),
            (["--head-dim", "33"], "head_dim is 33; rotary embedding needs an even number"),
            (["--width", "100"], "width is 100; give a multiple of 32"),
            (["--vocabulary", "100"], "vocabulary is 100; give at least 265"),
            (["--layers", "99999999"], "layers is 99999999; give a number from 1 to 16 million"),
        ],
    )
    def test_wrong_arguments(self, tmp_path: Path, arguments: list[str], said: str) -> None:
        result = run(str(tmp_path / "m.gguf"), *self.ARGUMENTS, *arguments)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert said in result.stderr
        assert list(tmp_path.iterdir()) == []

    def test_no_folder(self, tmp_path: Path) -> None:
        assert "there is no folder" in run(str(tmp_path / "x" / "m.gguf"), *self.ARGUMENTS).stderr

    def test_shapes_are_checked(self) -> None:
        with pytest.raises(InvalidSettingError, match="3 heads of 8"):
            Shape(1, 32, 32, 3, 3, 8, 400, 10)
