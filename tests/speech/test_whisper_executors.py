"""The CPU executor of speech models against the reference executor, on a small random model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import tiny_whisper
from numpy.typing import NDArray

from edgellm.convert import ConvertSettings, convert_whisper
from edgellm.errors import CorruptFileError, InvalidSettingError
from edgellm.gguf import GGUFFile, open_gguf
from edgellm.graph import Linear, Norm
from edgellm.models.whisper import build_whisper
from edgellm.platforms import cpu_double_plan
from edgellm.platforms.batch import Batch, SpeechExecutor
from edgellm.platforms.cpu_double_plan import double_kernels, double_operations
from edgellm.platforms.cpu_speech import CPUSpeechExecutor
from edgellm.platforms.reference_speech import ReferenceSpeechExecutor
from edgellm.weights import WeightStore

WINDOWS = 3
FIRST_TIMESTAMP = 50363


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tiny-whisper")
    tiny_whisper.write_ctranslate2(folder, tiny_whisper.tensors())
    return {
        kind: convert_whisper(folder, folder / f"{kind}.gguf", ConvertSettings(kind)).path
        for kind in ("f32", "f16", "q8_0")
    }


Make = Callable[[str], tuple[SpeechExecutor, SpeechExecutor]]


@pytest.fixture(scope="module")
def executors(files: dict[str, Path]) -> Iterator[Make]:
    """CPU and reference executor of a type of weights, with the same windows encoded."""
    made: dict[str, tuple[SpeechExecutor, SpeechExecutor]] = {}
    opened = []

    def make(kind: str) -> tuple[SpeechExecutor, SpeechExecutor]:
        if kind not in made:
            file = open_gguf(files[kind])
            graphs = build_whisper(file)
            cpu = CPUSpeechExecutor(  # as a model of these weights makes it
                graphs.encoder, graphs.decoder, WeightStore(file), 2, "f32" if kind == "f32" else "f16",
                quantized_sources=kind == "q8_0",
            )  # fmt: skip
            reference = ReferenceSpeechExecutor(graphs.encoder, graphs.decoder, WeightStore(file))
            opened.append((file, cpu, reference))
            for executor in (cpu, reference):
                executor.reserve(16)
                executor.reserve_sources(WINDOWS)
                for window in range(WINDOWS):
                    executor.encode(sound(window), window)
            made[kind] = cpu, reference
        return made[kind]

    yield make
    for file, cpu, reference in opened:
        cpu.close()
        cpu.close()  # a second time does nothing
        reference.close()
        file.close()


def sound(seed: int) -> NDArray[np.float32]:
    """Frames of about the range of a log-mel spectrogram."""
    random = np.random.default_rng(seed)
    return random.uniform(-1, 1.5, (2 * tiny_whisper.SOURCE, tiny_whisper.BINS)).astype(np.float32)


def batch(tokens: list[list[int]], sources: list[int]) -> Batch:
    """Whole sequences from their beginning, one after another; all their rows are outputs."""
    ids = np.concatenate(tokens).astype(np.int32)
    positions = np.concatenate([np.arange(len(part)) for part in tokens]).astype(np.int32)
    numbers = np.repeat(np.arange(len(tokens)), [len(part) for part in tokens]).astype(np.int32)
    tables = np.arange(2 * len(tokens), dtype=np.int32).reshape(-1, 2)
    rows = np.arange(len(ids), dtype=np.int32)
    return Batch(ids, positions, numbers, tables, rows, sources=np.array(sources, np.int32)[numbers])


SEQUENCES = [[50257, 11, 500, 77], [50257, 900], [50257, 3, 4, 5, 6], [50257]]
SOURCES = [2, 0, 0, 1]


@pytest.mark.parametrize(("kind", "limit"), [("f32", 1e-4), ("f16", 1e-4), ("q8_0", 0.06)])
def test_the_encoder_equals_the_reference(executors: Make, kind: str, limit: float) -> None:
    cpu, reference = executors(kind)
    for window in range(WINDOWS):
        for executor in (cpu, reference):
            executor.encode(sound(window), window)
        expected = reference.encoded()
        assert np.abs(cpu.encoded() - expected).mean() <= limit * np.abs(expected).mean()
        if kind != "q8_0":
            assert np.abs(cpu.encoded() - expected).max() <= 1e-3


@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_the_first_blocks_of_float_weights_are_computed_in_float64(executors: Make, kind: str) -> None:
    """All of them in this model: but for the result and what the last norm reads, nothing is rounded to float32."""
    cpu, reference = executors(kind)
    for executor in (cpu, reference):
        executor.encode(sound(5), 0)
    expected = reference.encoded()
    assert np.abs(cpu.encoded() - expected).max() <= 4 * 2.0**-24 * np.abs(expected).max()


@pytest.mark.parametrize(("blocks", "limit"), [(0, 1e-5), (1, 1e-5), (2, 1e-6)])
def test_float64_ends_behind_any_block(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, blocks: int, limit: float
) -> None:
    monkeypatch.setattr(cpu_double_plan, "DOUBLE_BLOCKS", blocks)
    with open_gguf(files["f16"]) as file:
        graphs = build_whisper(file)
        cpu = CPUSpeechExecutor(graphs.encoder, graphs.decoder, WeightStore(file), 2, "f16")
        reference = ReferenceSpeechExecutor(graphs.encoder, graphs.decoder, WeightStore(file))
        for executor in (cpu, reference):
            executor.reserve_sources(1)
            executor.encode(sound(6), 0)
        first = cpu.encoded()
        assert np.abs(first - reference.encoded()).max() <= limit * np.abs(first).max()
        cpu.encode(sound(7), 0)
        cpu.encode(sound(6), 0)
        assert np.array_equal(cpu.encoded(), first)  # nothing remains of another sound
        cpu.close()


def test_which_encoders_compute_in_float64(files: dict[str, Path]) -> None:
    with open_gguf(files["f32"]) as file:
        graph = build_whisper(file).encoder
    floats = {operation.weight: "f16" for operation in graph.operations if isinstance(operation, Linear)}
    whole = double_operations(graph, floats)
    assert isinstance(graph.operations[whole], Norm)
    assert graph.operations[whole].out == graph.logits
    kernels = double_kernels(graph, floats)
    assert {"double_products.f16", "double_attention.attend", "norm.layer_double"} <= kernels
    assert "double_products.f32" not in kernels
    for name in floats:  # in the keys and values for the decoder float64 has no part
        expected = whole if "cross_attn" in name else 0
        assert double_operations(graph, {**floats, name: "q8"}) == expected
    narrow = replace(graph, cache=tuple(replace(layer, key_dim=24, value_dim=24) for layer in graph.cache))
    assert double_operations(narrow, floats) == 0
    assert double_kernels(narrow, floats) == set()


@pytest.mark.parametrize("which", ["encoder", "decoder"])
@pytest.mark.parametrize(("key", "heads"), [("head_count", [2, 4]), ("head_count_kv", [2, 1]), ("head_count_kv", 1)])
def test_layers_that_differ_in_their_heads_are_refused(
    files: dict[str, Path], which: str, key: str, heads: int | list[int]
) -> None:
    """Kernels go by the first layer's."""
    prefix = "whisper.encoder" if which == "encoder" else "whisper"
    with open_gguf(files["f32"]) as file:
        value = np.array(heads, np.int32) if isinstance(heads, list) else heads
        odd = SimpleNamespace(
            path=file.path, tensors=file.tensors, metadata={**file.metadata, f"{prefix}.attention.{key}": value}
        )
        with pytest.raises(CorruptFileError, match=f"{which}'s layers differ in their heads"):
            build_whisper(cast(GGUFFile, odd))


@pytest.mark.parametrize(("kind", "limit"), [("f32", 1e-4), ("f16", 1e-3), ("q8_0", 0.08)])
def test_the_decoder_equals_the_reference(executors: Make, kind: str, limit: float) -> None:
    """Sequences of different windows and lengths in one step; queries of one window are tiles together."""
    cpu, reference = executors(kind)
    step = batch(SEQUENCES, SOURCES)
    expected = reference.step(step)
    found = np.array(cpu.step(step))
    assert np.abs(found - expected).mean() <= limit * np.abs(expected).mean()


def test_many_rows_of_one_window(executors: Make) -> None:
    """More than a tile, in the order of windows and mixed."""
    cpu, reference = executors("q8_0")
    sequences = [[50257, number] for number in range(11)]
    for sources in ([0] * 9 + [1, 2], [0, 1] * 5 + [0]):
        whole = batch(sequences, sources)
        tables = np.tile(np.arange(1, dtype=np.int32), (11, 1)) + np.arange(11, dtype=np.int32)[:, None]
        step = Batch(whole.tokens, whole.positions, whole.sequences, tables, whole.outputs, sources=whole.sources)
        expected = reference.step(step)
        assert np.abs(np.array(cpu.step(step)) - expected).mean() <= 0.08 * np.abs(expected).mean()


def test_candidates_are_those_of_the_reference(executors: Make) -> None:
    """Random rules and biases: the same tokens in the same order, the same log-probabilities."""
    cpu, reference = executors("f32")
    random = np.random.default_rng(1)
    bias = np.zeros((2, tiny_whisper.ROWS), np.float32)
    bias[0, random.integers(0, 50000, 40000)] = -np.inf
    for executor in (cpu, reference):
        executor.prepare_choosing(FIRST_TIMESTAMP, bias)
    step = batch(SEQUENCES, SOURCES)
    count = len(step.tokens)
    for _ in range(12):
        rules = np.zeros((count, 8), np.int32)
        rules[:, 0] = random.integers(0, 2, count)
        rules[:, 1] = random.choice([0, 17, 50256, FIRST_TIMESTAMP], count)
        rules[:, 2] = random.integers(FIRST_TIMESTAMP, tiny_whisper.ROWS, count)
        rules[:, 3] = np.minimum(rules[:, 2] + random.integers(0, 600, count), tiny_whisper.ROWS)
        rules[:, 4] = random.integers(0, 2, count)
        tokens, scores = cpu.choose(step, rules, 6)
        expected, expected_scores = reference.choose(step, rules, 6)
        allowed = np.isfinite(expected_scores)
        assert (tokens[~allowed] == -1).all()
        np.testing.assert_allclose(scores[allowed], expected_scores[allowed], atol=2e-3)
        clear = allowed & (np.abs(np.diff(expected_scores, axis=1, prepend=np.inf)) > 1e-3)
        clear[:, :-1] &= np.abs(np.diff(expected_scores, axis=1)) > 1e-3
        np.testing.assert_array_equal(tokens[clear], expected[clear])


@pytest.mark.parametrize(("kind", "limit"), [("f32", 1e-5), ("q8_0", 0.15)])
def test_attention_that_alignment_looks_at(executors: Make, kind: str, limit: float) -> None:
    cpu, reference = executors(kind)
    step = batch([[50257, 8, 9, 10, 11]], [1])
    heads = ((0, 1), (1, 0))
    for frames in (tiny_whisper.SOURCE, 13, 1):
        expected = reference.alignment(step, heads, frames)
        found = cpu.alignment(step, heads, frames)
        assert found.shape == (2, 5, frames)
        assert np.abs(found - expected).mean() <= limit * expected.mean()
        np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)


def test_what_lies_outside_is_refused(executors: Make) -> None:
    for executor in executors("f32"):
        with pytest.raises(InvalidSettingError, match="source 3 is not within"):
            executor.encode(sound(0), WINDOWS)
        with pytest.raises(InvalidSettingError, match="source 7 has not been encoded"):
            executor.step(batch([[50257]], [7]))
        with pytest.raises(InvalidSettingError, match="frames"):
            executor.encode(sound(0)[:-1], 0)


def test_spectrograms_are_equal(executors: Make) -> None:
    cpu, reference = executors("f32")
    samples = np.random.default_rng(0).standard_normal(320 * tiny_whisper.SOURCE - 77).astype(np.float32)
    np.testing.assert_allclose(cpu.spectrogram(samples), reference.spectrogram(samples), atol=1e-4)
    with pytest.raises(InvalidSettingError, match="expected at most"):
        cpu.spectrogram(np.zeros(320 * tiny_whisper.SOURCE + 1, np.float32))
