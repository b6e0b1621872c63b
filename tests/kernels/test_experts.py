"""Products with stacks of matrices, and the lists that say which rows go where, against plain NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import TINY, Kernels, Record, gamma, load_kernels, outlined, padded
from numpy.typing import NDArray
from weight_blocks import FLOAT_TYPES, QUANTIZED_TYPES, SHAPES, decoded, offsets, random_blocks, random_floats

from edgellm.gguf import TensorType
from edgellm.graph import Route, Value
from edgellm.kernels.experts import RESULT_BYTES, ROW_BLOCK
from edgellm.kernels.packing import RECIPES, packed_type
from edgellm.kernels.records import EXPERTS, ROUTE, ROUTE_LISTS
from edgellm.platforms import cpu_experts
from edgellm.platforms.reference_operations import route

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]
POISON = 0xFF  # bytes that are NaN as scales and as floats of any width


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return load_kernels()


# Lists


def lists(kernels: Kernels, numbers: Floats, matrices: int) -> tuple[list[int], list[int]]:
    """Where the pairs of each matrix begin, and all pairs, of routes (rows, chosen)."""
    rows, chosen = numbers.shape
    routes = np.concatenate([numbers, np.full_like(numbers, np.nan)], axis=1)
    starts, starts_untouched = outlined(1, matrices + 1, np.int32)
    pairs, pairs_untouched = outlined(1, rows * chosen, np.int32)
    record = Record(
        ROUTE_LISTS, rows=np.array([rows]), matrices=matrices, chosen=chosen, routes=routes,
        routes_stride=routes.strides[0], starts=starts, pairs=pairs,
    )  # fmt: skip
    kernels.call("routing.lists", record, 2)
    assert starts_untouched()
    assert pairs_untouched()
    return starts[0].tolist(), pairs[0].tolist()


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 40), chosen=st.integers(1, 5), matrices=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
def test_lists_are_a_stable_sort(kernels: Kernels, rows: int, chosen: int, matrices: int, seed: int) -> None:
    numbers = np.random.default_rng(seed).integers(0, matrices, (rows, chosen))
    starts, pairs = lists(kernels, numbers.astype(np.float32), matrices)
    flat = numbers.reshape(-1)
    assert pairs == np.argsort(flat, kind="stable").tolist()
    assert starts == [int((flat < matrix).sum()) for matrix in range(matrices + 1)]


def test_what_is_no_number_of_a_matrix_leads_to_the_first(kernels: Kernels) -> None:
    bad = np.array([[np.nan, -1.0, 3.0, np.inf, 2.0, 1e30, -np.inf]], np.float32)
    starts, pairs = lists(kernels, bad, 3)
    assert starts == [0, 6, 6, 7]
    assert pairs == [0, 1, 2, 3, 5, 6, 4]


# Routes


def choose(kernels: Kernels, x: Floats, bias: Floats | None, operation: Route, threads: int) -> Floats:
    """The kernel's routes, (rows, 2 * chosen)."""
    rows, experts = x.shape
    wide = np.full((rows, padded(experts)), np.nan, np.float32)
    wide[:, :experts] = x
    output, untouched = outlined(rows, 2 * operation.chosen)
    scratch, scratch_untouched = outlined(threads, 5 * padded(experts))
    record = Record(
        ROUTE, rows=np.array([rows]), experts=experts, chosen=operation.chosen, input=wide,
        input_stride=wide.strides[0], output=output, output_stride=output.strides[0],
        bias=0 if bias is None else bias, normalize=int(operation.normalize),
        scale=np.array([operation.scale], np.float32), groups=operation.groups, chosen_groups=operation.chosen_groups,
        best_of_group=operation.best_of_group, scratch=scratch, scratch_stride=scratch.strides[0],
    )  # fmt: skip
    kernels.call(f"routing.{operation.scores}", record, threads)
    assert untouched()
    assert scratch_untouched()
    return output


def routing(chosen: int, experts: int, scores: Any = "softmax", normalize: bool = False, **more: Any) -> Route:
    """An operation of that many experts."""
    return Route(Value("out", 2 * chosen), Value("x", experts), chosen, scores, normalize, **more)


@settings(deadline=None, max_examples=150)
@given(
    sizes=st.sampled_from([(1, 5, 1), (1, 64, 1), (2, 4, 1), (4, 2, 3), (3, 3, 2), (8, 32, 4), (16, 1, 9)]),
    best_of_group=st.integers(1, 2),
    chosen=st.integers(1, 8),
    scores=st.sampled_from(["softmax", "sigmoid"]),
    normalize=st.booleans(),
    with_bias=st.booleans(),
    spread=st.sampled_from([0.0, 1.0, 5.0]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_routes(
    kernels: Kernels, sizes: tuple[int, int, int], best_of_group: int, chosen: int, scores: Any, normalize: bool,
    with_bias: bool, spread: float, threads: int, seed: int,
) -> None:  # fmt: skip
    """The weights of the chosen add roundings of e^x, of sums of all experts and of two quotients."""
    groups, size, chosen_groups = sizes
    experts, chosen = groups * size, min(chosen, size * chosen_groups)
    generator = np.random.default_rng(seed)
    x = (spread * generator.standard_normal((7, experts))).astype(np.float32)
    bias = generator.standard_normal(experts).astype(np.float32) if with_bias else None
    operation = routing(
        chosen, experts, scores, normalize, scale=2.5, groups=groups, chosen_groups=chosen_groups,
        best_of_group=min(best_of_group, size),
    )  # fmt: skip
    got = choose(kernels, x, bias, operation, threads)
    expected = route(x.astype(np.float64), None if bias is None else bias.astype(np.float64), operation)
    assert np.array_equal(got[:, :chosen], expected[:, :chosen])
    assert np.abs(got[:, chosen:] / expected[:, chosen:] - 1).max() <= 4 * 1.7e-7 + gamma(2 * experts + 8)


def test_equal_ranks_are_chosen_in_order(kernels: Kernels) -> None:
    got = choose(kernels, np.zeros((2, 20), np.float32), None, routing(3, 20, normalize=True), 1)
    assert got[:, :3].tolist() == [[0, 1, 2]] * 2
    assert got[:, 3:] == pytest.approx(1 / 3)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_whatever_the_logits_are_different_experts_are_chosen(kernels: Kernels, scores: str) -> None:
    bad = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 0.0], np.float32)
    x = np.random.default_rng(1).choice(bad, (300, 11)).astype(np.float32)
    for operation in (
        routing(4, 11, scores, True),
        routing(11, 11, scores),
        routing(3, 11, scores, groups=11, chosen_groups=5),
    ):
        for bias in (None, bad[np.arange(11) % 6]):
            numbers = choose(kernels, x, bias, operation, 2)[:, : operation.chosen]
            assert all(len(set(row)) == operation.chosen and set(row) <= set(range(11)) for row in numbers.tolist())
    lone = np.full((1, 11), np.nan, np.float32)
    assert np.isnan(choose(kernels, lone, None, routing(2, 11, scores), 1)[:, 2:]).all()


# Products


@dataclass
class Stack:
    """Matrices (matrices, width, columns), packed one behind the other."""

    kernels: Kernels
    type_name: str
    raw: NDArray[np.uint8]  # (matrices, width, bytes)
    columns: int

    def __post_init__(self) -> None:
        self.packed = [self.kernels.pack(raw, self.type_name, self.columns) for raw in self.raw]

    def multiply(
        self, x: Floats, parts: int, shared: bool, numbers: NDArray[np.integer[Any]] | None, bias: Floats | None,
        threads: int,
    ) -> tuple[Floats, Doubles]:  # fmt: skip
        """The result (rows, parts, width) and the input as it was taken, (rows, 1 or parts, columns).

        Of matrices without a number, every byte is changed first.
        """
        rows, first, width = len(x), self.packed[0], self.raw.shape[1]
        place = np.concatenate([np.zeros(64, np.uint8), *(matrix.data for matrix in self.packed)])
        data = place[-place.ctypes.data % 64 :][: len(place) - 64]  # on a cache line
        data[:] = np.concatenate([matrix.data for matrix in self.packed])
        size = len(first.data)
        for matrix in set(range(len(self.packed))) - set(range(parts) if numbers is None else numbers.ravel().tolist()):
            data[matrix * size : (matrix + 1) * size] = POISON
        output, untouched = outlined(rows, parts * width)
        fields = self._input(x, own=not shared)
        used = fields.pop("used")
        row_bytes, scale_bytes = fields["row_bytes"] + 64, fields["scale_bytes"] + 64
        scratch, scratch_untouched = outlined(threads, RESULT_BYTES + ROW_BLOCK * (row_bytes + scale_bytes), np.uint8)
        matrices = parts
        if numbers is not None:
            matrices = len(self.packed)
            starts, pairs = lists(self.kernels, numbers.astype(np.float32), matrices)
            fields |= {"starts": np.array(starts, np.int32), "pairs": np.array(pairs, np.int32)}
        if bias is not None:
            wide = np.zeros((len(bias), 16 * first.groups), np.float32)
            wide[:, :width] = bias
            fields |= {"bias": wide, "bias_bytes": wide.strides[0]}
        group_bytes = first.format.group_bytes(first.blocks)
        record = Record(
            EXPERTS, rows=np.array([rows]), weights=data, groups=first.groups, blocks=first.blocks,
            group_bytes=group_bytes, matrices=matrices, matrix_bytes=first.groups * group_bytes, width=width,
            parts=parts, input_stride=row_bytes, scales_stride=scale_bytes, output_stride=64, result=output,
            result_stride=output.strides[0], scratch=scratch, scratch_stride=scratch.strides[0], **fields,
        )  # fmt: skip
        self.kernels.call(f"experts.{first.format.name}", record, threads)
        assert untouched()
        assert scratch_untouched()
        return output.reshape(rows, parts, width), used.reshape(rows, -1, self.columns)

    def _input(self, x: Floats, own: bool) -> dict[str, Any]:
        columns = self.columns
        if self.type_name in FLOAT_TYPES:
            return {
                "input": x, "source_stride": x.strides[0], "source_part": 4 * columns * own, "row_bytes": 4 * columns,
                "scale_bytes": 0, "used": x.astype(np.float64),
            }  # fmt: skip
        made = self.kernels.quantize(x)
        scale_bytes = columns // 2
        return {
            "input": made.codes, "source_stride": made.codes.strides[0], "source_part": columns * own,
            "row_bytes": columns, "scales": made.scales, "source_scales_stride": made.scales.strides[0],
            "source_scales_part": scale_bytes * own, "scale_bytes": scale_bytes, "used": made.values[:, 0],
        }  # fmt: skip


def random_stack(
    kernels: Kernels, type_name: str, matrices: int, width: int, blocks: int, generator: np.random.Generator
) -> Stack:
    if type_name in FLOAT_TYPES:
        columns = int(generator.choice([1, 3, 31, 64])) * blocks
        raw = random_floats(type_name, matrices * width, columns, "ordinary", generator)
    else:
        columns = TensorType[type_name].block_size * blocks
        raw = random_blocks(type_name, matrices * width, blocks, "ordinary", generator)
    return Stack(kernels, type_name, raw.reshape(matrices, width, -1), columns)


def bound(stack: Stack, weights: Doubles, used: Doubles, numbers: NDArray[np.integer[Any]]) -> Doubles:
    """The error of each result: the sum of the magnitudes of its terms times the roundings on their way.

    As in test_matmul.py, but that all sums of an offset are taken for sums of magnitudes.
    """
    sizes = np.abs(weights)
    terms = weights.shape[2]
    if stack.type_name not in FLOAT_TYPES:
        flat = stack.raw.reshape(-1, stack.raw.shape[2])
        offset = offsets(flat, stack.type_name).reshape(weights.shape)
        sizes = np.abs(weights - offset) + np.abs(offset)
        terms = 2 * terms // SHAPES[stack.type_name].span
    magnitude = np.einsum("rpc,rpwc->rpw", np.abs(used), sizes[numbers])
    return (gamma(terms + 8) * (magnitude + 10) + TINY) * np.ones_like(magnitude)


@pytest.mark.parametrize("type_name", [*QUANTIZED_TYPES, *FLOAT_TYPES])
@settings(deadline=None, max_examples=25)
@given(
    matrices=st.integers(1, 6),
    width=st.sampled_from([1, 15, 16, 17, 33, 48]),
    rows=st.sampled_from([1, 2, 5, 9, 50]),
    parts=st.integers(1, 4),
    blocks=st.integers(1, 2),
    shared=st.booleans(),
    routed=st.booleans(),
    with_bias=st.booleans(),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_with_a_stack(
    kernels: Kernels, type_name: str, matrices: int, width: int, rows: int, parts: int, blocks: int, shared: bool,
    routed: bool, with_bias: bool, threads: int, seed: int,
) -> None:  # fmt: skip
    """Any number of rows for a matrix, none too; the bits do not depend on threads; other matrices are not read."""
    generator = np.random.default_rng(seed)
    parts = parts if routed else min(parts, matrices)
    stack = random_stack(kernels, type_name, matrices, width, blocks, generator)
    x = generator.standard_normal((rows, stack.columns * (1 if shared else parts))).astype(np.float32)
    bias = generator.standard_normal((matrices, width)).astype(np.float32) if with_bias else None
    numbers = generator.integers(0, matrices, (rows, parts)) if routed else None
    result, used = stack.multiply(x, parts, shared, numbers, bias, threads)
    chosen = np.broadcast_to(np.arange(parts), (rows, parts)) if numbers is None else numbers
    weights = decoded(stack.raw.reshape(-1, stack.raw.shape[2]), type_name).reshape(matrices, width, -1)
    used = np.broadcast_to(used, (rows, parts, stack.columns))
    expected = np.einsum("rpc,rpwc->rpw", used, weights[chosen])
    if bias is not None:
        expected = expected + bias[chosen]
    assert (np.abs(result - expected) <= bound(stack, weights, used, chosen)).all()
    for other in (1, threads + 1):
        assert np.array_equal(stack.multiply(x, parts, shared, numbers, bias, other)[0], result)


@pytest.mark.parametrize("type_name", ["F32", "Q8_0", "Q4_K"])
def test_what_is_no_number_shows_in_its_own_row_alone(kernels: Kernels, type_name: str) -> None:
    generator = np.random.default_rng(5)
    stack = random_stack(kernels, type_name, 3, 20, 1, generator)
    x = generator.standard_normal((9, stack.columns)).astype(np.float32)
    numbers = generator.integers(0, 3, (9, 2))
    x[4, 0] = np.nan
    result, _ = stack.multiply(x, 2, True, numbers, None, 2)
    assert np.isnan(result[4]).all()
    assert np.isfinite(np.delete(result, 4, axis=0)).all()


def test_the_planner_knows_the_sizes_of_the_kernels() -> None:
    """Which it cannot import: that would load the compiler."""
    assert (cpu_experts.RESULT_BYTES, cpu_experts.ROW_BLOCK) == (RESULT_BYTES, ROW_BLOCK)


def test_every_format_has_a_kernel() -> None:
    from edgellm.kernels.experts import VARIANTS

    assert {RECIPES[packed_type(name)].format for name in (*QUANTIZED_TYPES, *FLOAT_TYPES)} <= set(VARIANTS)
