"""Importance matrices: what is summed up, the files, and files that are none."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.cli.main import edgellm
from edgellm.errors import EdgeLLMError
from edgellm.gguf import open_gguf
from edgellm.graph import Linear
from edgellm.models import build_graph
from edgellm.platforms.batch import Batch
from edgellm.platforms.reference import ReferenceExecutor
from edgellm.quantize import QuantizeSettings, quantize
from edgellm.quantize.imatrix import Entry, ImportanceMatrix, collect, is_matrix, make_file, merged, read, write
from edgellm.tokenizer import Tokenizer
from edgellm.weights import WeightStore

TEXT = "the hello world of the " * 60


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_sums_are_those_of_the_inputs(tiny_model: Callable[..., Path], text: Path) -> None:
    """Chunk by chunk, every value of the graph by name, from the executor that all others are tested against."""
    model = tiny_model("gemma3", layers=2)
    matrix = collect(model, text, context=32, chunks=3)
    expected: dict[str, np.ndarray] = {}
    with open_gguf(model) as file:
        ids = Tokenizer.load(file).encode(TEXT)
        graph = build_graph(file)
        executor = ReferenceExecutor(graph, WeightStore(file))
        executor.reserve(1)
        for chunk in range(3):
            numbers = np.arange(32, dtype=np.int32)
            tokens = np.array(ids[32 * chunk : 32 * chunk + 32], np.int32)
            batch = Batch(tokens, numbers, np.zeros(32, np.int32), np.zeros((1, 1), np.int32), numbers)
            values = executor.trace(batch)
            for operation in graph.operations:
                if isinstance(operation, Linear) and operation.weight.startswith("blk."):
                    squares = (values[operation.x.name].astype(np.float64) ** 2).sum(axis=0)
                    expected[operation.weight] = expected.get(operation.weight, 0) + squares
    assert matrix.chunk_count == 3
    assert matrix.entries.keys() == expected.keys()
    for name, entry in matrix.entries.items():
        assert entry.counts.tolist() == [96]
        assert np.allclose(entry.sums[0], expected[name], rtol=1e-4), name


def test_experts_are_counted_apart(shared: Path, tmp_path: Path) -> None:
    from edgellm.convert import ConvertSettings, convert

    model = tmp_path / "mixtral.gguf"
    convert(shared / "fixtures" / "mixtral", model, ConvertSettings(type="f32"))
    with open_gguf(model) as file:
        words = Tokenizer.load(file)
        text = tmp_path / "text.txt"
        text.write_text("a b c d e f g h i j k l m n o p " * 40)
        tokens = len(words.encode(text.read_text())) // 16 * 16
        experts = file.tensors["blk.0.ffn_up_exps.weight"].shape[0]
    matrix = collect(model, text, context=16)
    entry = matrix.entries["blk.0.ffn_up_exps.weight"]
    assert entry.sums.shape[0] == len(entry.counts) == experts
    assert entry.counts.sum() == 2 * tokens  # two experts see each token
    made = quantize(model, tmp_path / "q.gguf", QuantizeSettings("Q4_0", importance=_written(matrix, tmp_path)))
    assert made.paths[0].stat().st_size == made.size_bytes


def _written(matrix: ImportanceMatrix, folder: Path) -> str:
    write(matrix, folder / "matrix.gguf")
    return str(folder / "matrix.gguf")


def sample() -> ImportanceMatrix:
    generator = np.random.default_rng(1)
    entries = {
        f"blk.{layer}.{name}.weight": Entry(
            generator.uniform(0, 9, (matrices, 48)).astype(np.float32), np.full(matrices, 64, np.float32)
        )
        for layer in range(3)
        for name, matrices in (("attn_q", 1), ("ffn_up_exps", 4))
    }
    return ImportanceMatrix(entries, ("a text.txt", "ünother"), 7, 512)


def test_the_file_is_llamacpps(tmp_path: Path) -> None:
    """Names, types and shapes as llama-imatrix writes them, read by the gguf package; and read back here."""
    matrix = sample()
    size = write(matrix, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").stat().st_size == size
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["a text.txt", "ünother"]
    assert reader.fields["imatrix.chunk_count"].contents() == 7
    assert reader.fields["imatrix.chunk_size"].contents() == 512
    names = [tensor.name for tensor in reader.tensors]
    assert names[:2] == ["blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts"]
    assert names == sorted(names, key=lambda name: (name.rpartition(".")[0], name.endswith("counts")))
    for tensor in reader.tensors:
        entry = matrix.entries[tensor.name.rpartition(".")[0]]
        expected = entry.sums if tensor.name.endswith("in_sum2") else entry.counts[:, None]
        assert np.array_equal(tensor.data, expected)
    back = read(tmp_path / "m.gguf")
    assert (back.datasets, back.chunk_count, back.chunk_size) == (matrix.datasets, 7, 512)
    for name, entry in back.entries.items():
        assert np.array_equal(entry.sums, matrix.entries[name].sums)
        assert np.array_equal(entry.counts, matrix.entries[name].counts)


def legacy_bytes(matrix: ImportanceMatrix) -> bytes:
    parts = [struct.pack("<i", len(matrix.entries))]
    for name, entry in matrix.entries.items():
        values = (entry.sums / entry.counts[:, None] * 5).astype("<f4").reshape(-1)
        parts += [struct.pack("<i", len(name)), name.encode(), struct.pack("<ii", 5, len(values)), values.tobytes()]
    return b"".join(parts) + struct.pack("<ii", 9, 4) + b"text"


def test_the_older_format(tmp_path: Path) -> None:
    matrix = sample()
    path = tmp_path / "m.dat"
    path.write_bytes(legacy_bytes(matrix))
    assert is_matrix(path)
    back = read(path)
    assert (back.chunk_count, back.datasets) == (9, ("text",))
    for name, values in back.importance().items():
        expected = matrix.entries[name].mean().reshape(1, -1)
        assert np.allclose(values, expected, rtol=1e-5)


@settings(max_examples=60)
@given(st.binary(max_size=60), st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_damaged_files_are_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: int, change: bytes
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    good = legacy_bytes(sample())
    for data in (noise, struct.pack("<ii", 3, 4) + noise, good[:place] + change + good[place + len(change) :]):
        path = folder / "m.dat"
        path.write_bytes(data)
        try:
            read(path).importance()
        except EdgeLLMError as error:
            assert "\n" not in str(error)


def test_matrices_are_merged(tmp_path: Path) -> None:
    one, two = sample(), sample()
    both = merged([one, two])
    assert both.chunk_count == 14
    assert both.datasets == one.datasets
    for name, entry in both.entries.items():
        assert np.array_equal(entry.sums, 2 * one.entries[name].sums)
        assert np.allclose(entry.mean(), one.entries[name].mean())
    other = ImportanceMatrix(
        {"blk.0.attn_q.weight": Entry(np.ones((1, 5), np.float32), np.ones(1, np.float32))}, (), 1, 512
    )
    with pytest.raises(EdgeLLMError, match="shape"):
        merged([one, other])


def test_columns_that_were_never_used() -> None:
    entry = Entry(np.array([[0, 4, 8], [0, 0, 0], [1, 1, 1]], np.float32), np.array([2, 2, 0], np.float32))
    assert np.allclose(entry.mean(), [[2e-4, 2, 4], [1, 1, 1], [1, 1, 1]])


def test_a_matrix_of_another_model_is_refused(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_model(width=64)
    entries = {"blk.0.attn_q.weight": Entry(np.ones((1, 48), np.float32), np.ones(1, np.float32))}
    path = _written(ImportanceMatrix(entries, (), 1, 512), tmp_path)
    with pytest.raises(EdgeLLMError, match="another model"):
        quantize(model, tmp_path / "q.gguf", QuantizeSettings("Q4_0", importance=path))
    assert not (tmp_path / "q.gguf").exists()


def test_a_text_is_as_good_as_the_matrix_made_of_it(
    tiny_model: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    model = tiny_model(context_length=1024)
    text.write_text(TEXT * 20)
    make_file(tmp_path / "m.gguf", model, text, chunks=2)
    paths = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    of_text = QuantizeSettings("Q4_0", importance=str(text), chunks=2)
    planned = quantize(model, paths[0], of_text, dry_run=True)
    quantize(model, paths[0], of_text)
    assert paths[0].stat().st_size == planned.size_bytes
    quantize(model, paths[1], QuantizeSettings("Q4_0", importance=str(tmp_path / "m.gguf")))
    with open_gguf(paths[0]) as first, open_gguf(paths[1]) as second:
        for name in first.tensors:
            assert np.array_equal(first.raw(name), second.raw(name))
        for file in (first, second):
            assert file.metadata["quantize.imatrix.entries_count"] == 14
            assert file.metadata["quantize.imatrix.chunks_count"] == 2
            assert file.metadata["quantize.imatrix.dataset"] == str(text)


def test_the_command(tiny_model: Callable[..., Path], text: Path, tmp_path: Path) -> None:
    model, output = tiny_model(), tmp_path / "m.gguf"
    arguments = ["imatrix", str(model), str(text), "-o", str(output), "--context", "32", "--chunks", "2"]
    done = CliRunner().invoke(edgellm, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["chunks"] == 2
    assert json.loads(done.stdout)["size_bytes"] == output.stat().st_size
    again = CliRunner().invoke(edgellm, arguments)
    assert again.exit_code == 1
    assert "--force" in again.output
    more = CliRunner().invoke(edgellm, [*arguments, "--force", "--merge", str(output)])
    assert more.exit_code == 0, more.output
    assert read(output).chunk_count == 4
    short = tmp_path / "short.txt"
    short.write_text("hello")
    none = CliRunner().invoke(edgellm, ["imatrix", str(model), str(short), "-o", str(tmp_path / "n.gguf")])
    assert none.exit_code == 1
    assert "longer text" in none.output
