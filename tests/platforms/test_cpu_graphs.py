"""Random graphs: whatever a model may come to look like, its plan computes what the graph says, threads in any order.

Values are read early and late, several times or never, added to themselves and to what was fused with them, so that a
buffer given back too soon, a wrong fusion or a missing barrier shows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batches import Sequences
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import load_kernels
from numpy.typing import NDArray

from edgellm.gguf import GGUFFile, open_gguf
from edgellm.graph import (
    Activation,
    Add,
    Attention,
    CacheLayer,
    Embedding,
    Graph,
    Linear,
    Norm,
    Operation,
    Rope,
    Scale,
    SelectRows,
    SoftCap,
    Value,
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
)  # fmt: skip


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
        for kind in self._random.choice([kind for kind in KINDS if kind not in ("rope", "attention")], 3):
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

    def _add(self, kind: str) -> None:
        out, x = self._new(), self._pick()
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
            case "activation":
                name: Any = str(self._random.choice(["silu", "gelu_tanh"]))
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
    store = WeightStore(weights)
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
