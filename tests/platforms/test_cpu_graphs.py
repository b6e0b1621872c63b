"""Random graphs: whatever a model may come to look like, its plan computes what the graph says, threads in any order.

Values are read early and late, several times or never, added to themselves and to what was fused with them, so that a
buffer given back too soon, a wrong fusion or a missing barrier shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batches import Sequences
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import load_kernels
from numpy.typing import NDArray

from edgellm.gguf import GGUFFile, TensorInfo, open_gguf
from edgellm.graph import (
    Activation,
    Add,
    Attention,
    CacheLayer,
    Embedding,
    Graph,
    Join,
    Linear,
    Norm,
    Operation,
    Rope,
    RoundRows,
    Route,
    Scale,
    SelectRows,
    Slice,
    SoftCap,
    StackedLinear,
    Value,
    WeightedSum,
)
from edgellm.platforms.cpu import CPUExecutor
from edgellm.platforms.cpu_parts import MAX_OUTPUTS
from edgellm.platforms.reference import ReferenceExecutor
from edgellm.weights import WeightStore

WIDTH = 64
VOCABULARY = 1024  # so that a buffer of logits for 16 rows is as large as one of WIDTH values for 256
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
KINDS = (
    "linear", "norm", "head norm", "rope", "attention", "activation", "add", "residual", "residual", "scale", "softcap",
    "some rows", "latent", "parts", "shared part", "mixture", "stack", "rounded", "gate",
)  # fmt: skip
STACK = "stack of "
"""Before the name of a matrix (WIDTH, WIDTH): its rows as four matrices (16, WIDTH)."""


class Stacks(WeightStore):
    """Weights that can be read as stacks of matrices, too."""

    def info(self, name: str) -> TensorInfo:
        """With another shape for a stack."""
        if not name.startswith(STACK):
            return super().info(name)
        return replace(super().info(name.removeprefix(STACK)), name=name, shape=(4, 16, WIDTH))

    def raw(self, name: str) -> NDArray[np.uint8]:
        return super().raw(name.removeprefix(STACK))

    def rows(self, name: str, ids: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        return super().rows(name.removeprefix(STACK), ids)

    def release(self, name: str | None = None) -> None:
        super().release(None if name is None else name.removeprefix(STACK))


class GraphMaker:
    """Appends operations on values of one width, chosen by chance."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._operations: list[Operation] = []
        self._cache: list[CacheLayer] = []
        self._values: list[Value] = []

    def make(self, count: int) -> Graph:
        """``count`` operations between the embedding and the choice of rows, and some more after it."""
        self._append(Embedding(self._new(), "token_embd.weight", 2.0))
        for kind in self._random.choice(KINDS, count):
            self._add(str(kind))
        chosen = self._new()
        self._append(SelectRows(chosen, self._values[-1]))
        self._values = [chosen]  # only what was chosen has the number of rows that is left
        for kind in self._random.choice(
            [kind for kind in KINDS if kind not in ("rope", "attention", "latent", "shared part")], 3
        ):
            self._add(str(kind))
        normalized = self._new()
        self._append(Norm(normalized, self._values[-1], "output_norm.weight", 1e-5))
        logits = Value("logits", VOCABULARY)
        self._operations.append(Linear(logits, normalized, "token_embd.weight"))
        return Graph("random", tuple(self._operations), tuple(self._cache), logits, 256, WIDTH)

    def _new(self) -> Value:
        return Value(f"v{len(self._operations)}", WIDTH)

    def _append(self, operation: Operation) -> None:
        self._operations.append(operation)
        self._values.append(operation.out)

    def _pick(self) -> Value:
        """Often the newest, as in models, sometimes any."""
        if self._random.random() < 0.5:
            return self._values[-1]
        return self._values[int(self._random.integers(len(self._values)))]

    def _matrix(self) -> str:
        return f"blk.{self._random.integers(2)}.{self._random.choice(MATRICES)}.weight"

    def _write(self, make: Callable[..., Operation], width: int, *fields: Any) -> Value:
        """An operation whose result is not as wide as others, so that nothing picks it by chance."""
        operation = make(Value(f"v{len(self._operations)}", width), *fields)
        self._operations.append(operation)
        return operation.out

    def _add_several(self, kind: str, x: Value) -> None:
        """Operations in a row that lead back to the common width."""
        heads = int(self._random.choice([1, 2, 4]))
        match kind:
            case "some rows":
                first = int(self._random.integers(0, WIDTH - 40))
                bias = "blk.0.attn_norm.weight" if heads == 1 else None
                half = self._write(Linear, 40, x, self._matrix(), bias, (first, first + 40))
                rest = self._write(Linear, 24, self._pick(), self._matrix(), None, (0, 24))
                self._append(Join(self._new(), half, rest, 1 if heads == 4 else heads))
            case "parts":
                a = self._write(Slice, WIDTH // 2, x, heads, 3)
                b = self._write(Slice, WIDTH // 2, self._pick(), heads, 0)
                self._append(Join(self._new(), a, b, heads))
            case "shared part":
                a = self._write(Slice, WIDTH // 2, x, 4, 8)
                b = self._write(Slice, 8, x, 1, 5)
                turned = self._write(Rope, 8, b, 1, (1.0, 0.5, 0.2, 0.1), True)
                self._append(Join(self._new(), a, turned, 4, True))
            case "latent":
                self._cache.append(CacheLayer(1, 16, 8, values_in_keys=True))
                key = self._write(Slice, 16, self._pick(), 1, 20)
                seen = self._write(Attention, 32, x, key, None, len(self._cache) - 1, 4, 1, 0.25)
                rest = self._write(Slice, 32, x, 4, 0)
                self._append(Join(self._new(), seen, rest, 4))
            case "mixture":
                logits = self._write(Linear, 4, x, self._matrix(), None, (7, 11))
                route = self._write(Route, 8, logits, 4, "softmax", True)
                # All four, so that the sum does not depend on their order, which rounding may change.
                parts = self._write(StackedLinear, WIDTH, x, STACK + self._matrix(), 4, True, route)
                mixed = self._write(WeightedSum, 16, parts, route)
                if heads == 4:
                    mixed = self._write(Add, 16, self._write(Slice, 16, x, 1, 9), mixed)
                rest = self._write(Slice, 48, x, 1, 16)
                self._append(Join(self._new(), mixed, rest, 1))
            case _:
                gate = self._write(Linear, 1, x, self._matrix(), None, (heads, heads + 1))
                self._append(Activation(self._new(), gate, self._pick(), "sigmoid"))

    def _add(self, kind: str) -> None:
        out, x = self._new(), self._pick()
        if kind in ("some rows", "parts", "shared part", "latent", "mixture", "gate"):
            self._add_several(kind, x)
            return
        chance = self._random.random()
        match kind:
            case "linear":
                operation: Operation = Linear(
                    out, x, self._matrix(), "blk.0.attn_norm.weight" if chance < 0.3 else None
                )
            case "norm":
                weight = "blk.1.ffn_norm.weight" if chance < 0.7 else None
                operation = Norm(out, x, weight, 1e-5, "layer" if chance < 0.3 else "rms")
            case "head norm":
                operation = Norm(out, x, None, 1e-5, heads=4)
            case "rope":
                pairs = 4 if chance < 0.3 else 8
                operation = Rope(out, x, 4, tuple(0.5**i for i in range(pairs)), bool(chance < 0.5))
            case "attention":
                operation = self._attention(out)
            case "stack":
                operation = StackedLinear(out, x, STACK + self._matrix(), 4, True)
            case "rounded":
                operation = RoundRows(out, x)
            case "activation":
                name: Any = str(self._random.choice(["silu", "gelu_tanh", "gelu", "sigmoid"]))
                operation = Activation(out, x, self._pick() if chance < 0.5 else None, name)
            case "residual":
                branch = Linear(out, x, self._matrix()) if chance < 0.5 else Norm(out, x, None, 1e-5, heads=1)
                self._append(branch)
                other = x if chance < 0.1 else self._pick()
                operation = Add(self._new(), other, out) if chance < 0.7 else Add(self._new(), out, other)
            case "add":
                operation = Add(out, x, self._pick())
            case "scale":
                operation = Scale(out, x, 0.5)
            case _:
                operation = SoftCap(out, x, 4.0)
        self._append(operation)
        if kind in ("add", "residual", "activation"):  # keeps values of ordinary size
            self._append(Scale(self._new(), operation.out, 0.5))

    def _attention(self, out: Value) -> Attention:
        window = 7 if self._random.random() < 0.5 else None
        self._cache.append(CacheLayer(4, 16, 16, window))
        layer = len(self._cache) - 1
        return Attention(out, self._pick(), self._pick(), self._pick(), layer, 4, 4, 0.25, window)


@pytest.fixture(scope="module", params=["F32", "Q8_0"])
def weights(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> GGUFFile:
    """A file of matrices (WIDTH, WIDTH) and a vocabulary."""
    path = tiny_model(
        "llama", width=WIDTH, feed_forward=WIDTH, heads=4, kv_heads=4, head_dim=16, weight_types=(request.param,),
        embedding_type="F32", extra_tokens=VOCABULARY - 271,
    )  # fmt: skip
    return open_gguf(path)


def run(executor: CPUExecutor | ReferenceExecutor) -> NDArray[np.float64]:
    """All logits of two sequences, in steps of few and of many rows."""
    ids = np.random.default_rng(2).integers(0, 271, (2, 45)).tolist()
    sequences = Sequences.of([ids[0], ids[1][:25]])
    executor.reserve(sequences.blocks)
    steps = ((1, 0), (2, 1), (MAX_OUTPUTS + 7, 20), (1, 1), (0, 3), (18, 0))
    return np.concatenate([executor.step(sequences.take(*counts)).astype(np.float64) for counts in steps])


def in_order(executor: CPUExecutor, order: list[int]) -> None:
    """Let each thread do all its work between two barriers before the next begins."""
    kernels = load_kernels()

    def step(plan: NDArray[np.int64], threads: int) -> None:
        assert threads == len(order)
        for segment in np.split(plan, np.flatnonzero(plan[:, 2])):
            for thread in order:
                for address, record, _barrier, _unused in segment.tolist():
                    kernels.call_at(address, record, thread, threads)

    executor._team.run = step  # type: ignore[method-assign, assignment]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 25), order=st.permutations([0, 1, 2]))
def test_any_graph(weights: GGUFFile, seed: int, count: int, order: list[int]) -> None:
    graph = GraphMaker(seed).make(count)
    store = Stacks(weights)
    expected = run(ReferenceExecutor(graph, store, "float64"))
    executor = CPUExecutor(graph, store, 3)
    try:
        together = run(executor)
        in_order(executor, order)
        one_by_one = run(executor)
    finally:
        executor.close()
    assert np.allclose(one_by_one, together, rtol=1e-4, atol=1e-4)  # but for denormal numbers the same bits
    # The size of rounding errors depends on the graph (a difference of nearly equal values magnifies them), so this is
    # no fine bound; what goes wrong in a plan is not small.
    quantized = any(info.type.block_size > 1 for info in weights.tensors.values())
    difference = np.sqrt(np.square(together - expected).mean()) / expected.std()
    assert difference <= (0.1 if quantized else 0.01)
