"""The reference executor: each operation against plain loops, batching against one at a time, and real models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batches import Sequences, whole_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgellm.errors import InvalidSettingError, OutOfMemoryError
from edgellm.gguf import GGUFFile, open_gguf
from edgellm.graph import Attention, Norm, Rope, Value
from edgellm.models import build_graph
from edgellm.platforms.batch import BLOCK_TOKENS, Batch
from edgellm.platforms.reference import ReferenceExecutor
from edgellm.platforms.reference_operations import ACTIVATIONS, attend, norm, rotate, soft_cap
from edgellm.weights import WeightStore

MakeModel = Callable[..., Path]
IDS = np.random.default_rng(5).integers(0, 271, 150).tolist()
OTHER_IDS = np.random.default_rng(6).integers(0, 271, 71).tolist()
X, OUT = Value("x", 24), Value("out", 24)


def numbers(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal(shape)


# Operations


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norm(kind: Any, heads: int) -> None:
    part = 24 // heads
    x, weight, bias = numbers(5, 24) + 3, numbers(part, seed=1), numbers(part, seed=2)
    operation = Norm(OUT, X, "weight", 1e-5, kind, "bias", heads)
    got = norm(x, weight, bias, operation)
    for row in range(5):
        for head in range(heads):
            values = x[row, head * part : (head + 1) * part].tolist()
            mean = sum(values) / part if kind == "layer" else 0.0
            spread = math.sqrt(sum((value - mean) ** 2 for value in values) / part + 1e-5)
            expected = [(v - mean) / spread * w + b for v, w, b in zip(values, weight, bias, strict=True)]
            assert got[row, head * part : (head + 1) * part] == pytest.approx(expected)
    assert norm(x, None, None, operation) == pytest.approx(norm(x, np.ones(part), np.zeros(part), operation))


@pytest.mark.parametrize("interleaved", [True, False])
def test_rope_turns_pairs_as_complex_numbers(interleaved: bool) -> None:
    x, positions, frequencies = numbers(4, 24), np.array([0, 1, 17, 4000], np.int32), (1.0, 0.3, 0.007)
    got = rotate(x, positions, Rope(OUT, X, 3, frequencies, interleaved, magnitude=1.5))
    for row in range(4):
        for head in range(3):
            before, after = x[row, 8 * head : 8 * head + 8], got[row, 8 * head : 8 * head + 8]
            for pair, frequency in enumerate(frequencies):
                a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + 3)
                angle = complex(0, float(positions[row]) * frequency)
                turned = complex(before[a], before[b]) * np.exp(angle) * 1.5
                assert complex(after[a], after[b]) == pytest.approx(turned)
            assert np.array_equal(after[6:], before[6:])  # beyond the rotated dimensions


def test_activations() -> None:
    x = numbers(3, 40) * 4
    flat = x.ravel().tolist()
    cube = [math.sqrt(2 / math.pi) * (value + 0.044715 * value**3) for value in flat]
    expected = {
        "silu": [value / (1 + math.exp(-value)) for value in flat],
        "gelu": [value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in flat],
        "gelu_tanh": [value * (1 + math.tanh(inner)) / 2 for value, inner in zip(flat, cube, strict=True)],
        "relu_squared": [max(value, 0.0) ** 2 for value in flat],
        "sigmoid": [1 / (1 + math.exp(-value)) for value in flat],
    }
    assert set(expected) == set(ACTIVATIONS)
    for kind, function in ACTIVATIONS.items():
        assert function(x).ravel() == pytest.approx(expected[kind], abs=1e-12)  # type: ignore[index]
        assert function(x.astype(np.float32)).dtype == np.float32


def test_soft_cap() -> None:
    assert soft_cap(np.array([0.0, 1.0, -1e9]), 30.0) == pytest.approx([0.0, 30 * math.tanh(1 / 30), -30.0])


def attend_by_loops(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    positions: list[int],
    operation: Attention,
    sinks: list[float] | None,
) -> NDArray[np.float64]:
    """The definition in ``edgellm.graph.Attention``, number by number."""
    out = np.zeros((len(positions), operation.heads, v.shape[2]))
    for row, position in enumerate(positions):
        for head in range(operation.heads):
            shared = head // (operation.heads // operation.kv_heads)
            scores = {}
            for p in range(len(k)):
                if p <= position and (operation.window is None or position - operation.window < p):
                    score = operation.scale * sum(a * b for a, b in zip(q[row, head], k[p, shared], strict=True))
                    cap = operation.softcap
                    scores[p] = score if cap is None else cap * math.tanh(score / cap)
            total = sum(math.exp(score) for score in scores.values())
            total += math.exp(sinks[head]) if sinks is not None else 0.0
            for p, score in scores.items():
                out[row, head] += math.exp(score) / total * v[p, shared]
    return out


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 5),
    keys=st.integers(5, 9),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    window=st.none() | st.integers(1, 9),
    softcap=st.none() | st.floats(0.5, 20),
    with_sinks=st.booleans(),
)
def test_attention(
    rows: int, keys: int, kv_heads: int, group: int, window: int | None, softcap: float | None, with_sinks: bool
) -> None:
    heads = kv_heads * group
    q, k, v = numbers(rows, heads, 4), numbers(keys, kv_heads, 4, seed=1), numbers(keys, kv_heads, 3, seed=2)
    positions = np.arange(keys - rows, keys, dtype=np.int32)
    operation = Attention(OUT, X, X, X, 0, heads, kv_heads, 0.7, window, softcap)
    sinks = numbers(heads, seed=3) if with_sinks else None
    shaped = None if sinks is None else sinks.reshape(kv_heads, group, 1, 1)
    got = attend(q.reshape(rows, kv_heads, group, 4), k, v, positions, np.arange(keys), operation, shaped)
    expected = attend_by_loops(q, k, v, positions.tolist(), operation, None if sinks is None else sinks.tolist())
    assert got.reshape(expected.shape) == pytest.approx(expected)


# Whole models: the same logits however the rows are cut and laid out


@pytest.fixture(params=["llama", "gemma3"])
def file(request: pytest.FixtureRequest, tiny_model: MakeModel) -> Iterator[GGUFFile]:
    layers, window = (7, 33) if request.param == "gemma3" else (2, None)
    with open_gguf(tiny_model(request.param, layers=layers, window=window)) as opened:
        yield opened


def executor_of(file: GGUFFile, dtype: Any = "float32") -> ReferenceExecutor:
    return ReferenceExecutor(build_graph(file), WeightStore(file), dtype)


def test_float64_agrees_with_float32(file: GGUFFile) -> None:
    single, double = whole_logits(executor_of(file), IDS), whole_logits(executor_of(file, "float64"), IDS)
    assert single.dtype == double.dtype == np.float32
    assert np.abs(single - double).max() < 1e-5 * np.abs(double).max()


@pytest.mark.parametrize("chunk", [1, 31, 32, 33])
def test_chunks_give_the_same_as_the_whole(file: GGUFFile, chunk: int) -> None:
    executor = executor_of(file, "float64")
    assert whole_logits(executor, IDS, chunk) == pytest.approx(whole_logits(executor, IDS), rel=1e-5, abs=1e-6)


def test_sequences_in_one_batch_and_shuffled_blocks_give_the_same_as_each_alone(file: GGUFFile) -> None:
    executor = executor_of(file, "float64")
    alone = [whole_logits(executor, IDS), whole_logits(executor, OTHER_IDS)]
    sequences = Sequences.of([IDS, OTHER_IDS], shuffle=np.random.default_rng(1))
    executor.reserve(sequences.blocks)
    parts: list[list[NDArray[np.float32]]] = [[], []]
    for counts in ((40, 1), (1, 50), (0, 19), (64, 0), (45, 1)):
        batch = sequences.take(*counts)
        logits = executor.step(batch)
        for number, own in enumerate(parts):
            own.append(logits[batch.sequences == number].copy())
    assert sequences.done == [150, 71]
    for own, expected in zip(parts, alone, strict=True):
        assert np.concatenate(own) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_rows_of_sequences_may_be_mixed(file: GGUFFile) -> None:
    executor = executor_of(file, "float64")
    alone = [whole_logits(executor, IDS[:40]), whole_logits(executor, OTHER_IDS[:40])]
    sequences = Sequences.of([IDS[:40], OTHER_IDS[:40]])
    executor.reserve(sequences.blocks)
    batch = sequences.take(40, 40)
    order = np.arange(80).reshape(2, 40).T.ravel()  # one row of each in turn
    mixed = Batch(
        batch.tokens[order], batch.positions[order], batch.sequences[order], batch.block_tables, batch.outputs
    )
    logits = executor.step(mixed)
    assert logits[0::2] == pytest.approx(alone[0], rel=1e-5, abs=1e-6)
    assert logits[1::2] == pytest.approx(alone[1], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("outputs", [[], [3], [49, 0, 0]])
def test_only_the_rows_asked_for_come_back(file: GGUFFile, outputs: list[int]) -> None:
    executor = executor_of(file)
    expected = whole_logits(executor, IDS[:50])
    batch = Sequences.of([IDS[:50]]).take(50)
    chosen = np.array(outputs, np.int32)
    logits = executor.step(Batch(batch.tokens, batch.positions, batch.sequences, batch.block_tables, chosen))
    assert logits.shape == (len(outputs), 271)
    assert logits == pytest.approx(expected[outputs], rel=1e-4, abs=1e-5)


def test_a_copied_block_continues_another_sequence(file: GGUFFile) -> None:
    executor = executor_of(file, "float64")
    expected = whole_logits(executor, IDS[:BLOCK_TOKENS] + OTHER_IDS)
    executor.reserve(8)
    executor.step(Sequences.of([IDS[:BLOCK_TOKENS]]).take(BLOCK_TOKENS))  # in block 0
    executor.copy_block(0, 5)
    continued = Sequences(
        [np.array(IDS[:BLOCK_TOKENS] + OTHER_IDS, np.int32)], np.array([[5, 7, 1, 3]], np.int32), [32]
    )
    assert executor.step(continued.take(200)) == pytest.approx(expected[BLOCK_TOKENS:], rel=1e-5, abs=1e-6)


def test_windowed_layers_do_not_read_blocks_behind_the_window(tiny_model: MakeModel) -> None:
    with open_gguf(tiny_model("llama", window=20)) as file:
        executor = executor_of(file, "float64")
        expected = whole_logits(executor, IDS)
        sequences = Sequences.of([IDS])
        executor.reserve(sequences.blocks)
        executor.step(sequences.take(149))
        sequences.tables[0, :4] = -1  # given back long ago
        assert executor.step(sequences.take(1)) == pytest.approx(expected[149:], rel=1e-5, abs=1e-6)


def test_trace_returns_every_value(file: GGUFFile) -> None:
    executor = executor_of(file)
    expected = whole_logits(executor, IDS[:9])
    values = executor.trace(Sequences.of([IDS[:9]]).take(9))
    graph = executor.graph
    assert {op.out.name: (9, op.out.width) for op in graph.operations} == {n: v.shape for n, v in values.items()}
    assert np.array_equal(values[graph.logits.name], expected)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tokens", [271], "token id 271 is not within 0 to 270"),
        ("tokens", [-1], "token id -1"),
        ("positions", [256], "position 256 is not within 0 to 255"),
        ("positions", [64], "a block table leads outside the 2 blocks"),
        ("positions", [-1], "position -1"),
        ("sequences", [1], "sequence 1 is not within 0 to 0"),
        ("outputs", [1], "output row 1 is not within 0 to 0"),
        ("block_tables", [[-1]], "a block table leads outside"),
        ("block_tables", [[2]], "a block table leads outside"),
    ],
)
def test_a_batch_that_leads_outside_is_refused(file: GGUFFile, field: str, value: Any, message: str) -> None:
    executor = executor_of(file)
    executor.reserve(2)
    good = {"tokens": [1], "positions": [0], "sequences": [0], "block_tables": [list(range(9))], "outputs": [0]}
    fields: dict[str, Any] = good | {field: value}
    with pytest.raises(InvalidSettingError, match=message):
        executor.step(Batch(**{name: np.array(values, np.int32) for name, values in fields.items()}))


def test_too_many_rows_and_too_large_a_cache_are_refused(file: GGUFFile) -> None:
    executor = executor_of(file)
    rows = executor.max_rows + 1
    zeros = np.zeros(rows, np.int32)
    with pytest.raises(InvalidSettingError, match=f"a step of {rows} rows"):
        executor.step(Batch(zeros, zeros, zeros, np.zeros((1, 1), np.int32), zeros))
    with pytest.raises(OutOfMemoryError, match="does not fit"):
        executor.reserve(2**60)


def test_memory_is_told_and_given_back(file: GGUFFile) -> None:
    executor = executor_of(file)
    whole_logits(executor, IDS)
    held = executor.memory()
    parameters = sum(math.prod(info.shape) for info in file.tensors.values())
    assert 4 * parameters <= held["weights"] <= 4 * parameters + file.size_bytes
    layers = len(executor.graph.cache)
    assert executor.block_bytes == layers * BLOCK_TOKENS * (2 * 16 + 2 * 16) * 4
    assert held["cache"] == 7 * executor.block_bytes
    executor.close()
    executor.close()
    assert executor.memory() == {"weights": 0, "cache": 0, "buffers": 0}


# Real models: exact arithmetic by another implementation, teacher-forced over prompt and completion


@pytest.mark.slow
@pytest.mark.parametrize("model", ["smollm2", "gemma"])
def test_log_probabilities_agree_with_exact_arithmetic(
    shared: Path, request: pytest.FixtureRequest, model: str
) -> None:
    path = request.getfixturevalue("smollm2_path" if model == "smollm2" else "gemma3_path")
    references = [json.loads(line) for line in (shared / "reference/llm" / f"{model}.exact.jsonl").open()]
    with open_gguf(path) as file:
        executor = executor_of(file)
        for reference in references:
            logits = golden_logits(executor, reference["prompt_ids"], reference["completion_ids"])
            shifted = logits - logits.max(axis=1, keepdims=True)
            logprobs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
            for step, got in zip(reference["steps"], logprobs, strict=True):
                assert got[step["id"]] == pytest.approx(step["logprob"], abs=1e-3)
                assert got.max() == pytest.approx(step["top"][0][1], abs=1e-3)
                for token, logprob in step["top"]:
                    assert got[token] == pytest.approx(logprob, abs=1e-3)


def golden_logits(executor: ReferenceExecutor, prompt: list[int], completion: list[int]) -> NDArray[np.float64]:
    """Logits that predict each token of the completion: (len(completion), vocabulary)."""
    sequences = Sequences.of([prompt + completion[:-1]])
    executor.reserve(sequences.blocks)
    parts = []
    while sequences.done[0] < len(sequences.tokens[0]):
        batch = sequences.take(executor.max_rows)
        wanted = np.flatnonzero(batch.positions >= len(prompt) - 1).astype(np.int32)
        parts.append(executor.step(Batch(batch.tokens, batch.positions, batch.sequences, batch.block_tables, wanted)))
    return np.concatenate(parts).astype(np.float64)
