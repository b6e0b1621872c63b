"""The reference executor: a graph run in plain NumPy floating point, slow and obvious.

It is what every kernel, architecture and other executor is tested against, so it does each operation as
``edgellm.graph`` words it, on weights decoded to floating point, and nothing more cleverly than a reader can check.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import InvalidSettingError, OutOfMemoryError
from edgellm.graph import (
    Activation,
    ActivationKind,
    Add,
    Attention,
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
from edgellm.platforms.batch import BLOCK_TOKENS, Batch, Float32Array
from edgellm.weights import WeightStore

Array = NDArray[np.floating[Any]]
Values = dict[str, Array]


class ReferenceExecutor:
    """Runs a graph in NumPy; see ``edgellm.platforms.batch.Executor`` for what each method promises.

    Args:
        graph: the model.
        weights: its weights; each is decoded when first needed and then kept.
        dtype: precision of all values, weights and sums; the cache is float32 with "float32", else float64.
    """

    max_rows = 512

    def __init__(self, graph: Graph, weights: WeightStore, dtype: Literal["float32", "float64"] = "float32") -> None:
        self.graph = graph
        self._weights = weights
        self._dtype = np.dtype(dtype)
        self._decoded: Values = {}
        self._keys: list[Array] = []
        self._values: list[Array] = []
        self._blocks = 0
        self._closed = False
        self._last_uses = _last_uses(graph)
        tables = [op for op in graph.operations if isinstance(op, Embedding) and not op.positions]
        self._vocabulary_size = min(weights.info(table.weight).shape[0] for table in tables)
        numbers = sum(layer.kv_heads * (layer.key_dim + layer.value_dim) for layer in graph.cache)
        self.block_bytes = BLOCK_TOKENS * numbers * self._dtype.itemsize
        self.reserve(0)

    def reserve(self, blocks: int) -> None:
        """Allocate an empty cache of ``blocks`` blocks, in place of the one before."""
        try:
            # zeros, not empty: the system hands out such pages only when they are first written
            shapes = [(blocks, BLOCK_TOKENS, layer.kv_heads, layer.key_dim) for layer in self.graph.cache]
            self._keys = [np.zeros(shape, self._dtype) for shape in shapes]
            shapes = [(blocks, BLOCK_TOKENS, layer.kv_heads, layer.value_dim) for layer in self.graph.cache]
            self._values = [np.zeros(shape, self._dtype) for shape in shapes]
        except (MemoryError, ValueError) as error:
            size = blocks * self.block_bytes
            raise OutOfMemoryError(f"a cache of {size:,} bytes does not fit", "choose a smaller --context") from error
        self._blocks = blocks

    def step(self, batch: Batch) -> Float32Array:
        """Logits (outputs, vocabulary) of the rows asked for; their keys and values are in the cache afterwards."""
        values = self._run(batch, keep=False)
        return values[self.graph.logits.name].astype(np.float32, copy=False)

    def trace(self, batch: Batch) -> Values:
        """Like ``step``, but returns every value of the graph by name, to compare another executor with."""
        return self._run(batch, keep=True)

    def copy_block(self, source: int, destination: int) -> None:
        """Copy the keys and values of one block, in all layers."""
        for array in (*self._keys, *self._values):
            array[destination] = array[source]

    def memory(self) -> dict[str, int]:
        """Bytes of decoded weights (and pages of the file), of the reserved cache, and of lasting buffers (none)."""
        decoded = sum(weight.nbytes for weight in self._decoded.values())
        return {
            "weights": decoded + self._weights.resident_bytes,
            "cache": self._blocks * self.block_bytes,
            "buffers": 0,
        }

    def close(self) -> None:
        """Drop the weights and the cache; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._decoded.clear()
            self._weights.release()
            self.reserve(0)

    def _weight(self, name: str) -> Array:
        if name not in self._decoded:
            self._decoded[name] = self._weights.float32(name).astype(self._dtype, copy=False)
            self._weights.release(name)
        return self._decoded[name]

    def _run(self, batch: Batch, keep: bool) -> Values:
        self._check(batch)
        values: Values = {}
        with np.errstate(all="ignore"):  # a damaged file may hold any numbers
            for operation, finished in zip(self.graph.operations, self._last_uses, strict=True):
                values[operation.out.name] = self._evaluate(operation, values, batch)
                for name in () if keep else finished:
                    del values[name]
        return values

    def _check(self, batch: Batch) -> None:
        rows = len(batch.tokens)
        if rows > self.max_rows:
            raise InvalidSettingError(f"a step of {rows} rows was asked for, at most {self.max_rows} fit one")
        table_tokens = batch.block_tables.shape[1] * BLOCK_TOKENS
        for what, numbers, limit in (
            ("token id", batch.tokens, self._vocabulary_size),
            ("position", batch.positions, min(self.graph.context_length, table_tokens)),
            ("sequence", batch.sequences, len(batch.block_tables)),
            ("output row", batch.outputs, rows),
        ):
            outside = (numbers < 0) | (numbers >= limit)
            if outside.any():
                raise InvalidSettingError(f"{what} {numbers[outside][0]} is not within 0 to {limit - 1}")

    def _evaluate(self, operation: Operation, values: Values, batch: Batch) -> Array:
        match operation:
            case Embedding(weight=weight, scale=scale, positions=by_position):
                rows: Array = self._weights.rows(weight, batch.positions if by_position else batch.tokens)
                rows = rows.astype(self._dtype, copy=False)
                rows *= scale
                return rows
            case Norm(x=x):
                bias = None if operation.bias is None else self._weight(operation.bias)
                weight_array = None if operation.weight is None else self._weight(operation.weight)
                return norm(values[x.name], weight_array, bias, operation)
            case Linear(x=x, weight=weight, bias=bias_name):
                product: Array = values[x.name] @ self._weight(weight).T
                return product if bias_name is None else product + self._weight(bias_name)
            case Rope(x=x):
                return rotate(values[x.name], batch.positions, operation)
            case Attention():
                return self._attend(operation, values, batch)
            case Activation(gate=gate, up=up, kind=kind):
                active = ACTIVATIONS[kind](values[gate.name])
                return active if up is None else active * values[up.name]
            case Add(a=a, b=b):
                return values[a.name] + values[b.name]
            case Scale(x=x, factor=factor):
                return values[x.name] * self._dtype.type(factor)
            case SoftCap(x=x, cap=cap):
                return soft_cap(values[x.name], cap)
            case SelectRows(x=x):
                return values[x.name][batch.outputs]

    def _attend(self, operation: Attention, values: Values, batch: Batch) -> Array:
        layer = self.graph.cache[operation.layer]
        rows = len(batch.tokens)
        group = operation.heads // layer.kv_heads
        q = values[operation.q.name].reshape(rows, layer.kv_heads, group, layer.key_dim)
        keys, cached_values = self._keys[operation.layer], self._values[operation.layer]
        blocks = batch.block_tables[batch.sequences, batch.positions // BLOCK_TOKENS]
        self._check_blocks(blocks)
        slots = batch.positions % BLOCK_TOKENS
        keys[blocks, slots] = values[operation.k.name].reshape(rows, layer.kv_heads, layer.key_dim)
        cached_values[blocks, slots] = values[operation.v.name].reshape(rows, layer.kv_heads, layer.value_dim)

        sinks = None if operation.sinks is None else self._weight(operation.sinks).reshape(layer.kv_heads, -1, 1, 1)
        out = np.empty((rows, layer.kv_heads, group, layer.value_dim), self._dtype)
        for sequence in np.unique(batch.sequences):
            chosen = np.flatnonzero(batch.sequences == sequence)
            positions = batch.positions[chosen]
            first = 0 if operation.window is None else max(0, int(positions.min()) - operation.window + 1)
            first_block, last_block = first // BLOCK_TOKENS, int(positions.max()) // BLOCK_TOKENS
            table = batch.block_tables[sequence, first_block : last_block + 1]
            self._check_blocks(table)
            count = int(positions.max()) + 1 - first_block * BLOCK_TOKENS
            k = keys[table].reshape(-1, layer.kv_heads, layer.key_dim)[:count]
            v = cached_values[table].reshape(-1, layer.kv_heads, layer.value_dim)[:count]
            key_positions = first_block * BLOCK_TOKENS + np.arange(count)
            out[chosen] = attend(q[chosen], k, v, positions, key_positions, operation, sinks)
        return out.reshape(rows, operation.out.width)

    def _check_blocks(self, blocks: NDArray[np.int32]) -> None:
        if blocks.size and not 0 <= blocks.min() <= blocks.max() < self._blocks:
            raise InvalidSettingError(f"a block table leads outside the {self._blocks} blocks of the cache")


def _last_uses(graph: Graph) -> list[list[str]]:
    """For each operation the values that nothing after it reads."""
    last: dict[str, int] = {}
    for index, operation in enumerate(graph.operations):
        for field in vars(operation).values():
            if isinstance(field, Value):
                last[field.name] = index
    last.pop(graph.logits.name)
    finished: list[list[str]] = [[] for _ in graph.operations]
    for name, index in last.items():
        finished[index].append(name)
    return finished


def norm(x: Array, weight: Array | None, bias: Array | None, operation: Norm) -> Array:
    """Root-mean-square or layer norm of each of ``operation.heads`` parts of each row."""
    parts: Array = x.reshape(len(x), operation.heads, x.shape[1] // operation.heads)
    if operation.kind == "layer":
        parts = parts - parts.mean(axis=-1, keepdims=True)
    mean_square = np.square(parts).mean(axis=-1, keepdims=True)
    parts = parts / np.sqrt(mean_square + x.dtype.type(operation.epsilon))
    if weight is not None:
        parts = parts * weight
    if bias is not None:
        parts = parts + bias
    return parts.reshape(x.shape)


def rotate(x: Array, positions: NDArray[np.int32], operation: Rope) -> Array:
    """Turn the pairs of each head by their angles, which are computed in float64."""
    angles = positions[:, None].astype(np.float64) * np.array(operation.frequencies)
    cosine = (operation.magnitude * np.cos(angles)).astype(x.dtype)[:, None, :]  # (rows, 1, pairs)
    sine = (operation.magnitude * np.sin(angles)).astype(x.dtype)[:, None, :]
    pairs = len(operation.frequencies)
    heads = x.reshape(len(x), operation.heads, x.shape[1] // operation.heads)
    if operation.interleaved:
        first, second = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    else:
        first, second = slice(0, pairs), slice(pairs, 2 * pairs)
    out = heads.copy()
    out[..., first] = heads[..., first] * cosine - heads[..., second] * sine
    out[..., second] = heads[..., second] * cosine + heads[..., first] * sine
    return out.reshape(x.shape)


def attend(
    q: Array,
    k: Array,
    v: Array,
    positions: NDArray[np.int32],
    key_positions: NDArray[np.integer[Any]],
    operation: Attention,
    sinks: Array | None,
) -> Array:
    """Attention of one sequence.

    Args:
        q: (rows, kv_heads, group, key_dim).
        k: (keys, kv_heads, key_dim).
        v: (keys, kv_heads, value_dim).
        positions: (rows,) of the queries.
        key_positions: (keys,) of the keys.
        operation: scale, window and softcap.
        sinks: (kv_heads, group, 1, 1) or None.

    Returns:
        (rows, kv_heads, group, value_dim).
    """
    scores: Array = q.transpose(1, 2, 0, 3) @ k.transpose(1, 2, 0)[:, None]  # (kv_heads, group, rows, keys)
    scores *= scores.dtype.type(operation.scale)
    if operation.softcap is not None:
        scores = soft_cap(scores, operation.softcap)
    seen = key_positions <= positions[:, None]
    if operation.window is not None:
        seen &= key_positions > positions[:, None] - operation.window
    scores[:, :, ~seen] = -np.inf
    largest = scores.max(axis=-1, keepdims=True)
    if sinks is not None:
        largest = np.maximum(largest, sinks)
    weights = np.exp(scores - largest)
    total = weights.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks - largest)
    mixed: Array = (weights / total) @ v.transpose(1, 0, 2)[:, None]  # (kv_heads, group, rows, value_dim)
    return mixed.transpose(2, 0, 1, 3)


def soft_cap(x: Array, cap: float) -> Array:
    """``cap * tanh(x / cap)``."""
    limit = x.dtype.type(cap)
    return limit * np.tanh(x / limit)


def _silu(x: Array) -> Array:
    active: Array = x / (1 + np.exp(-x))
    return active


def _gelu_tanh(x: Array) -> Array:
    """Hendrycks and Gimpel 2016, by the tanh."""
    inner = np.sqrt(2 / np.pi).astype(x.dtype) * (x + x.dtype.type(0.044715) * x * x * x)
    active: Array = x / 2 * (1 + np.tanh(inner))
    return active


def _gelu(x: Array) -> Array:
    """Hendrycks and Gimpel 2016, exactly: ``x * Phi(x)``. NumPy has no error function of its own."""
    erf = np.array([math.erf(value) for value in (x.ravel() / math.sqrt(2)).tolist()], x.dtype)
    return x / 2 * (1 + erf.reshape(x.shape))


def _relu_squared(x: Array) -> Array:
    """So et al. 2021."""
    return np.square(np.maximum(x, 0))


ACTIVATIONS: dict[ActivationKind, Callable[[Array], Array]] = {
    "silu": _silu,
    "gelu_tanh": _gelu_tanh,
    "gelu": _gelu,
    "relu_squared": _relu_squared,
}
