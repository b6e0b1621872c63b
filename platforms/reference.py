"""The reference executor: a graph run in plain NumPy floating point, slow and obvious.

It is what every kernel, architecture and other executor is tested against, so it does each operation as
``edgellm.graph`` words it, on weights decoded to floating point, and nothing more cleverly than a reader can check.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import CorruptFileError, InvalidSettingError, OutOfMemoryError
from edgellm.graph import (
    Activation,
    Add,
    Attention,
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
    WeightedSum,
    inputs_of,
)
from edgellm.platforms.batch import BLOCK_TOKENS, Batch, Float32Array, Int32Array
from edgellm.platforms.reference_operations import (
    activate,
    attend,
    join,
    norm,
    rotate,
    round_rows,
    route,
    slice_parts,
    soft_cap,
    weighted_sum,
)
from edgellm.platforms.scores import RowDivergence, RowScores, compare_rows, score_rows
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
    max_outputs = 64

    def __init__(self, graph: Graph, weights: WeightStore, dtype: Literal["float32", "float64"] = "float32") -> None:
        self.graph = graph
        self._weights = weights
        self._dtype = np.dtype(dtype)
        self._decoded: Values = {}
        self._keys: list[Array] = []
        self._values: list[Array] = []
        self._blocks = 0
        self._begun: dict[int, Float32Array] = {}  # logits by the number of their row
        self._closed = False
        self._last_uses = _last_uses(graph)
        tables = [op for op in graph.operations if isinstance(op, Embedding) and not op.positions]
        self._vocabulary_size = min((weights.info(table.weight).shape[0] for table in tables), default=1)
        self.block_bytes = BLOCK_TOKENS * sum(layer.numbers for layer in graph.cache) * self._dtype.itemsize
        self.reserve(0)

    def reserve(self, blocks: int) -> None:
        """Allocate an empty cache of ``blocks`` blocks, in place of the one before."""
        try:
            # zeros, not empty: the system hands out such pages only when they are first written
            shapes = [(blocks, BLOCK_TOKENS, layer.kv_heads, layer.key_dim) for layer in self.graph.cache]
            self._keys = [np.zeros(shape, self._dtype) for shape in shapes]
            widths = [0 if layer.values_in_keys else layer.value_dim for layer in self.graph.cache]
            shapes = [(*keys.shape[:3], width) for keys, width in zip(self._keys, widths, strict=True)]
            self._values = [np.zeros(shape, self._dtype) for shape in shapes]
        except (MemoryError, ValueError) as error:
            size = blocks * self.block_bytes
            raise OutOfMemoryError(f"a cache of {size:,} bytes does not fit", "choose a smaller --context") from error
        self._blocks = blocks

    def step(self, batch: Batch) -> Float32Array:
        """Logits (outputs, vocabulary) of the rows asked for; their keys and values are in the cache afterwards."""
        values = self._run(batch, keep=False)
        return values[self.graph.logits.name].astype(np.float32, copy=False)

    def begin(self, batch: Batch) -> None:
        """Run all operations."""
        logits = self.step(batch)
        self._begun = dict(zip(batch.outputs.tolist(), logits, strict=True))

    def logits_of(self, rows: Int32Array) -> Float32Array:
        """Logits (rows, vocabulary) of some output rows of the step that was begun last."""
        if not len(rows) or not all(row in self._begun for row in rows.tolist()):
            raise InvalidSettingError("rows were asked for that are no outputs of the step")
        return np.stack([self._begun[row] for row in rows.tolist()])

    def score(self, rows: Int32Array, targets: Int32Array) -> RowScores:
        """How probable a target is after each of the rows."""
        return score_rows(self.logits_of(rows), targets)

    def compare(self, rows: Int32Array, targets: Int32Array, base: Float32Array) -> RowDivergence:
        """The same, and the divergence from what another model computed for these rows."""
        return compare_rows(self.logits_of(rows), targets, base)

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

    def _matrix_of_stack(self, name: str, number: int) -> Array:
        """One of the matrices of a three-dimensional weight; the others are not even read."""
        key = f"{name}[{number}]"
        if key not in self._decoded:
            matrices, rows, _ = self._weights.info(name).shape
            if not 0 <= number < matrices:
                raise CorruptFileError(f"tensor {name} holds {matrices} matrices, number {number} was chosen")
            decoded = self._weights.rows(name, np.arange(number * rows, (number + 1) * rows))
            self._decoded[key] = decoded.astype(self._dtype, copy=False)
            self._weights.release(name)
        return self._decoded[key]

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
            case Embedding(weight=weight, scale=scale, positions=by_position, scales=scales):
                rows: Array = self._weights.rows(weight, batch.positions if by_position else batch.tokens)
                rows = rows.astype(self._dtype, copy=False)
                rows *= scale if scales is None else scale * self._weight(scales)
                return rows
            case Norm(x=x):
                bias = None if operation.bias is None else self._weight(operation.bias)
                weight_array = None if operation.weight is None else self._weight(operation.weight)
                return norm(values[x.name], weight_array, bias, operation)
            case Linear(x=x, weight=weight, bias=bias_name, rows=chosen):
                part = slice(None) if chosen is None else slice(*chosen)
                product: Array = values[x.name] @ self._weight(weight).reshape(-1, x.width)[part].T
                product = product.astype(self._dtype, copy=False)  # of rounded rows it is float64
                return product if bias_name is None else product + self._weight(bias_name)[part]
            case Rope(x=x):
                return rotate(values[x.name], batch.positions, operation)
            case Attention():
                return self._attend(operation, values, batch)
            case Activation(gate=gate, up=up, kind=kind):
                return activate(kind, values[gate.name], None if up is None else values[up.name])
            case Add(a=a, b=b):
                return values[a.name] + values[b.name]
            case Scale(x=x, factor=factor, adapter=adapter):
                return values[x.name] * self._dtype.type(factor * batch.scale_of(adapter))
            case SoftCap(x=x, cap=cap):
                return soft_cap(values[x.name], cap)
            case SelectRows(x=x):
                return values[x.name][batch.outputs]
            case Route(x=x, bias=bias_name):
                return route(values[x.name], None if bias_name is None else self._weight(bias_name), operation)
            case StackedLinear():
                return self._multiply_parts(operation, values)
            case WeightedSum(x=x, route=routes):
                return weighted_sum(values[x.name], values[routes.name])
            case Slice(x=x, heads=heads, first=first):
                return slice_parts(values[x.name], heads, first, operation.out.width // heads)
            case Join(a=a, b=b, heads=heads):
                return join(values[a.name], values[b.name], heads, operation.shared)
            case RoundRows(x=x):
                return round_rows(values[x.name])
            case _:
                raise NotImplementedError(f"{type(operation).__name__} is of speech models")

    def _multiply_parts(self, operation: StackedLinear, values: Values) -> Array:
        x = values[operation.x.name]
        parts = x.reshape(len(x), 1 if operation.shared else operation.parts, -1)
        out = np.empty((len(x), operation.parts, operation.out.width // operation.parts), self._dtype)
        if operation.route is None:
            numbers = np.broadcast_to(np.arange(operation.parts), out.shape[:2])
        else:
            numbers = values[operation.route.name][:, : operation.parts].astype(np.int64)
        for number in np.unique(numbers).tolist():
            rows, places = np.nonzero(numbers == number)
            product = parts[rows, 0 if operation.shared else places] @ self._matrix_of_stack(operation.weight, number).T
            out[rows, places] = product if operation.bias is None else product + self._weight(operation.bias)[number]
        return out.reshape(len(x), operation.out.width)

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
        if operation.v is not None:
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
            if operation.v is None:
                v = k[:, :, : layer.value_dim]
            else:
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
        for value in (*inputs_of(operation), operation.out):
            last[value.name] = index
    last.pop(graph.logits.name)
    finished: list[list[str]] = [[] for _ in graph.operations]
    for name, index in last.items():
        finished[index].append(name)
    return finished
