"""Operations of experts, of latent attention and of ternary models: each against plain loops over its definition."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from batches import Sequences
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgellm.errors import CorruptFileError
from edgellm.graph import (
    Attention,
    CacheLayer,
    Embedding,
    Graph,
    Join,
    Linear,
    Operation,
    Route,
    Slice,
    StackedLinear,
    Value,
    WeightedSum,
    inputs_of,
)
from edgellm.platforms.reference import ReferenceExecutor
from edgellm.platforms.reference_operations import (
    activate,
    join,
    round_rows,
    route,
    slice_parts,
    weighted_sum,
)

X, OUT = Value("x", 12), Value("out", 12)
Numbers = NDArray[np.float64]


def numbers(*shape: int, seed: int = 0) -> Numbers:
    """Of the precision of float32, as weights are."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(np.float64)


def best(ranks: list[float], count: int) -> list[int]:
    """Numbers of the highest, the lower number first among equals."""
    return sorted(range(len(ranks)), key=lambda index: (-ranks[index], index))[:count]


@settings(deadline=None, max_examples=80)
@given(
    sizes=st.sampled_from([(1, 5, 1), (1, 8, 1), (2, 4, 1), (4, 2, 3), (3, 3, 2)]),
    best_of_group=st.integers(1, 2),
    chosen=st.integers(1, 4),
    kind=st.sampled_from(["softmax", "sigmoid"]),
    normalize=st.booleans(),
    with_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_route(
    sizes: tuple[int, int, int],
    best_of_group: int,
    chosen: int,
    kind: Any,
    normalize: bool,
    with_bias: bool,
    seed: int,
) -> None:
    groups, size, chosen_groups = sizes
    chosen = min(chosen, size * chosen_groups)
    x = numbers(4, groups * size, seed=seed) * 3
    bias = numbers(groups * size, seed=seed + 1) if with_bias else None
    operation = Route(OUT, X, chosen, kind, normalize, 2.5, None, groups, chosen_groups, best_of_group)
    for row, got in zip(x.tolist(), route(x, bias, operation).tolist(), strict=True):
        total = sum(math.exp(number) for number in row)
        scores = [math.exp(number) / total if kind == "softmax" else 1 / (1 + math.exp(-number)) for number in row]
        ranks = [score + (0.0 if bias is None else bias[expert]) for expert, score in enumerate(scores)]
        marks = [sum(sorted(ranks[group * size : group * size + size])[-best_of_group:]) for group in range(groups)]
        kept = best(marks, chosen_groups)
        allowed = [rank if expert // size in kept else -math.inf for expert, rank in enumerate(ranks)]
        experts = best(allowed, chosen)
        divisor = sum(scores[expert] for expert in experts) if normalize else 1.0
        assert got[:chosen] == experts
        assert got[chosen:] == pytest.approx([2.5 * scores[expert] / divisor for expert in experts])


def test_equal_experts_are_chosen_in_order() -> None:
    operation = Route(OUT, X, 3, "softmax", True)
    assert route(np.zeros((1, 5)), None, operation).tolist() == [[0, 1, 2, *[pytest.approx(1 / 3)] * 3]]


def test_a_softmax_of_large_numbers_does_not_overflow() -> None:
    got = route(np.array([[3e4, 3e4, -3e4]], np.float32), None, Route(OUT, X, 2, "softmax", True))
    assert got.dtype == np.float32
    assert got.tolist() == [[0, 1, 0.5, 0.5]]


def test_weighted_sum() -> None:
    x, routes = numbers(3, 8), numbers(3, 4, seed=1)
    expected = [[row[i] * w[2] + row[4 + i] * w[3] for i in range(4)] for row, w in zip(x, routes, strict=True)]
    assert weighted_sum(x, routes) == pytest.approx(np.array(expected))


def test_slice_and_join() -> None:
    x = np.arange(24.0).reshape(2, 12)
    assert slice_parts(x, 3, 1, 2).tolist() == [[1, 2, 5, 6, 9, 10], [13, 14, 17, 18, 21, 22]]
    first, second = slice_parts(x, 3, 0, 1), slice_parts(x, 3, 1, 3)
    assert np.array_equal(join(first, second, 3, shared=False), x)
    assert join(first, x[:, :2], 3, shared=True).tolist() == [
        [0, 0, 1, 4, 0, 1, 8, 0, 1],
        [12, 12, 13, 16, 12, 13, 20, 12, 13],
    ]


def test_rounding_leaves_255_levels_and_at_most_half_a_step() -> None:
    x = numbers(20, 300).astype(np.float32) * np.geomspace(1e-3, 1e3, 20, dtype=np.float32)[:, None]
    rounded = round_rows(x)
    steps = np.abs(x).max(axis=1, keepdims=True) / 127
    levels = rounded / steps
    assert np.abs(levels - np.rint(levels)).max() < 1e-3
    assert np.abs(rounded - x).max(axis=1) == pytest.approx(steps[:, 0] / 2, rel=0.05)
    assert np.abs(rounded).max(axis=1) == pytest.approx(127 * steps[:, 0])


def test_rounding_halves_to_even_and_zeros() -> None:
    assert round_rows(np.array([[127.0, 0.5, 1.5, -2.5]])).tolist() == [[127.0, 0.0, 2.0, -2.0]]
    assert round_rows(np.zeros((1, 3))).tolist() == [[0.0, 0.0, 0.0]]
    assert round_rows(np.array([[3e-8, 1e-6]])) == pytest.approx(np.array([[0.0, 13e-5 / 127]]))  # the least step


def test_clamped_swiglu() -> None:
    pairs = [(gate, up) for gate in (-30.0, -7.5, 0.0, 3.0, 7.0, 50.0) for up in (-9.0, -1.0, 0.0, 6.9, 8.0)]
    gate, up = np.array(pairs).T
    expected = []
    for g, u in pairs:
        g, u = min(g, 7.0), max(-7.0, min(u, 7.0))
        expected.append(g / (1 + math.exp(-1.702 * g)) * (u + 1))
    assert activate("swiglu_clamped", gate, up) == pytest.approx(expected)
    with pytest.raises(ValueError, match="two inputs"):
        activate("swiglu_clamped", gate, None)


def test_a_sigmoid_of_one_number_weights_a_whole_row() -> None:
    gate, up = numbers(3, 1), numbers(3, 6, seed=1)
    expected = [[value / (1 + math.exp(-g)) for value in row] for (g,), row in zip(gate, up, strict=True)]
    assert activate("sigmoid", gate, up) == pytest.approx(np.array(expected))


class Weights:
    """Stands in for a weight store; notes which rows of three-dimensional weights were read."""

    def __init__(self, **arrays: Numbers) -> None:
        self.arrays, self.read = arrays, set[int]()
        self.resident_bytes = 0

    def info(self, name: str) -> Any:
        return SimpleNamespace(shape=self.arrays[name].shape)

    def float32(self, name: str) -> NDArray[np.float32]:
        return self.arrays[name].astype(np.float32)

    def rows(self, name: str, ids: NDArray[np.integer]) -> NDArray[np.float32]:
        self.read |= set(ids.tolist()) if self.arrays[name].ndim == 3 else set()
        return self.arrays[name].reshape(-1, self.arrays[name].shape[-1])[ids].astype(np.float32)

    def release(self, name: str | None = None) -> None:
        pass


IDS = [3, 1, 4, 1, 5, 9, 2, 6]


def run(operations: list[Operation], weights: Weights, cache: tuple[CacheLayer, ...] = ()) -> dict[str, Any]:
    """All values of a graph that begins with the rows of ``weights.table`` for IDS."""
    embedding = Embedding(Value("x", weights.arrays["table"].shape[1]), "table")
    graph = Graph("test", (embedding, *operations), cache, operations[-1].out, 64, embedding.out.width)
    executor = ReferenceExecutor(graph, weights, "float64")  # type: ignore[arg-type]
    sequences = Sequences.of([IDS])
    executor.reserve(sequences.blocks)
    return executor.trace(sequences.take(len(IDS)))


@pytest.mark.parametrize("shared", [True, False])
def test_products_with_chosen_matrices(shared: bool) -> None:
    """The routes are the embedded rows themselves; of seven matrices only those that are named are read."""
    routes = np.array([[token % 3, (token + 1) % 3 + 3, 0.5, 0.25] for token in range(10)])
    stack, bias = numbers(7, 5, 4 if shared else 2), numbers(7, 5, seed=2)
    weights = Weights(table=routes, stack=stack, bias=bias)
    x = Value("x", 4)
    product = StackedLinear(Value("product", 10), x, "stack", 2, shared, x, "bias")
    values = run([product, WeightedSum(Value("sum", 5), product.out, x)], weights)
    for row, route_row in enumerate(routes[IDS].tolist()):
        parts = []
        for part in range(2):
            matrix = int(route_row[part])
            own = np.array(route_row if shared else route_row[2 * part : 2 * part + 2])
            parts.append(stack[matrix] @ own + bias[matrix])
        assert values["product"][row] == pytest.approx(np.concatenate(parts))
        assert values["sum"][row] == pytest.approx(0.5 * parts[0] + 0.25 * parts[1])
    named = {int(number) for token in IDS for number in routes[token, :2]}
    assert weights.read == {matrix * 5 + row for matrix in named for row in range(5)} and 6 not in named


def test_an_expert_that_does_not_exist_is_named() -> None:
    weights = Weights(table=np.full((10, 2), 7.0), stack=numbers(7, 5, 2))
    with pytest.raises(CorruptFileError, match="tensor stack holds 7 matrices, number 7 was chosen"):
        run([StackedLinear(Value("out", 5), Value("x", 2), "stack", 1, False, Value("x", 2))], weights)


def test_one_matrix_for_each_head_without_a_route() -> None:
    stack = numbers(3, 5, 4)
    weights = Weights(table=numbers(10, 12, seed=1), stack=stack)
    got = run([StackedLinear(Value("out", 15), Value("x", 12), "stack", 3)], weights)["out"]
    for row, token in enumerate(IDS):
        parts = weights.arrays["table"][token].reshape(3, 4)
        expected = [stack[head] @ parts[head] for head in range(3)]
        assert got[row] == pytest.approx(np.concatenate(expected))


def test_a_product_with_some_rows() -> None:
    weights = Weights(table=numbers(10, 12), matrix=numbers(20, 12, seed=1), bias=numbers(20, seed=2))
    x = Value("x", 12)
    whole, part = (
        Linear(Value("whole", 20), x, "matrix", "bias"),
        Linear(Value("part", 6), x, "matrix", "bias", (3, 9)),
    )
    values = run([whole, part], weights)
    assert values["part"] == pytest.approx(values["whole"][:, 3:9])


def test_values_out_of_the_keys_are_as_values_of_their_own() -> None:
    weights = Weights(table=numbers(10, 12))
    key = Slice(Value("key", 8), Value("x", 12), 1, 4)
    value = Slice(Value("value", 5), key.out, 1, 0)
    first = Slice(Value("out", 8), Value("x", 12), 2, 0)
    queries = Join(Value("queries", 16), first.out, key.out, 2)
    apart = Attention(Value("apart", 10), queries.out, key.out, value.out, 0, 2, 1, 0.4)
    latent = Attention(Value("latent", 10), queries.out, key.out, None, 1, 2, 1, 0.4)
    cache = (CacheLayer(1, 8, 5), CacheLayer(1, 8, 5, values_in_keys=True))
    assert [layer.numbers for layer in cache] == [13, 8]
    values = run([key, value, first, queries, apart, latent], weights, cache)
    assert np.array_equal(values["apart"], values["latent"])


def test_inputs_of_an_operation() -> None:
    assert inputs_of(Embedding(X, "table")) == []
    assert inputs_of(WeightedSum(OUT, X, Value("route", 4))) == [X, Value("route", 4)]
    assert inputs_of(Attention(OUT, X, X, None, 0, 1, 1, 1.0)) == [X, X]
