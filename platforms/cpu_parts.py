"""The parts of a plan: buffers, steps, what a step is told, and which kernels a graph needs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    Rope,
    RoundRows,
    Route,
    SelectRows,
    Slice,
    SoftCap,
    StackedLinear,
    WeightedSum,
)
from edgellm.kernels.packing import FLOAT_FORMATS, aligned_zeros
from edgellm.platforms.batch import Batch, Float32Array, Int32Array
from edgellm.weights import RowReader, WeightStore

MAX_ROWS = 256
MAX_OUTPUTS = 16
ROWS, OUTPUTS = "rows", "outputs"  # which of the two counts of a step an operation works on
ANY_ROWS, FEW_ROWS, MANY_ROWS = "any", "few", "many"  # the steps that a kernel call is for
Int64Array = NDArray[np.int64]


def padded(width: int) -> int:
    """A row's width in memory: whole vectors."""
    return -(-width // 16) * 16


@dataclass
class Buffer:
    """Memory for one matrix; ``size`` is its bytes."""

    data: NDArray[np.uint8]
    stride: int

    @property
    def address(self) -> int:
        """Of the first byte."""
        return self.data.ctypes.data


@dataclass
class Quantized:
    """An activation as int8 codes and block scales (see `edgellm.kernels.quantize`).

    Where a product wants the remainders too, each row's stand behind it: ``fine_codes`` and ``fine_scales`` are the
    bytes from one to the other, else 0.
    """

    codes: Buffer
    scales: Buffer
    fine_codes: int = 0
    fine_scales: int = 0


@dataclass
class Step:
    """One kernel call; ``share`` names how its work is split: equal names touch the same parts in the same thread.

    ``rows`` tells for which steps it is: those of few rows, of many, or any.
    """

    kernel: str
    record: Int64Array
    reads: list[Buffer]
    writes: list[Buffer]
    share: tuple[object, ...] | None = None
    barrier: bool = False
    rows: str = ANY_ROWS


@dataclass(frozen=True)
class Embedded:
    """A table that a step's rows are looked up in, and where they go.

    Attributes:
        reader: of the table.
        positions: whether rows are looked up by position, not by token.
        scales: what is looked up is multiplied by them, (columns,) or one number; None: by 1.
        buffer: float32, (rows, columns).
    """

    reader: RowReader
    positions: bool
    scales: Float32Array | np.float32 | None
    buffer: Float32Array

    @classmethod
    def of(cls, operation: Embedding, weights: WeightStore, buffer: Float32Array) -> Embedded:
        """Of an operation whose result has the memory ``buffer``."""
        reader = weights.reader(operation.weight)
        scales: Float32Array | np.float32 | None = None
        if operation.scales is not None:
            scales = np.float32(operation.scale) * weights.float32(operation.scales)
        elif operation.scale != 1.0:
            scales = np.float32(operation.scale)
        rows = buffer.reshape(-1, padded(reader.columns))[:, : reader.columns]
        return cls(reader, operation.positions, scales, rows)

    def ids(self, batch: Batch) -> Int32Array:
        """The rows of the table that are wanted."""
        return batch.positions if self.positions else batch.tokens

    def look_up(self, batch: Batch) -> None:
        """Write what a step's rows are in the table."""
        rows = self.buffer[: len(batch.tokens)]
        self.reader.read(self.ids(batch), rows)
        if self.scales is not None:
            rows *= self.scales


@dataclass
class RopeTable:
    """Cosines and sines of the step's positions for one table of frequencies."""

    frequencies: NDArray[np.float64]
    magnitude: float
    cosines: NDArray[np.float32]
    sines: NDArray[np.float32]

    def set(self, positions: NDArray[np.int32]) -> None:
        """Take the positions of a step's rows."""
        rows = len(positions)
        angles = positions[:, None] * self.frequencies
        np.multiply(np.cos(angles), self.magnitude, out=self.cosines[:rows], casting="same_kind")
        np.multiply(np.sin(angles), self.magnitude, out=self.sines[:rows], casting="same_kind")


@dataclass
class Inputs:
    """What a step is told: counts, positions and where the cache is, at addresses that do not change."""

    rows: Int64Array = field(default_factory=lambda: np.zeros(1, np.int64))
    outputs: Int64Array = field(default_factory=lambda: np.zeros(1, np.int64))
    table_stride: Int64Array = field(default_factory=lambda: np.zeros(1, np.int64))
    positions: NDArray[np.int32] = field(default_factory=lambda: np.zeros(MAX_ROWS, np.int32))
    sequences: NDArray[np.int32] = field(default_factory=lambda: np.zeros(MAX_ROWS, np.int32))
    slots: NDArray[np.int32] = field(default_factory=lambda: np.zeros(MAX_ROWS, np.int32))
    chosen: NDArray[np.int32] = field(default_factory=lambda: np.zeros(MAX_OUTPUTS, np.int32))

    @classmethod
    def of(cls, rows: int, outputs: int) -> Inputs:
        """For steps of up to so many rows and outputs."""
        positions, sequences, slots = (np.zeros(rows, np.int32) for _ in range(3))
        return cls(positions=positions, sequences=sequences, slots=slots, chosen=np.zeros(outputs, np.int32))

    def count_address(self, which: str) -> int:
        """Of the number of rows or of outputs."""
        return (self.rows if which == ROWS else self.outputs).ctypes.data


def make_record(kind: Any, **fields: int) -> Int64Array:
    """A record of `edgellm.kernels.records`; what is not named is 0."""
    values = np.zeros(len(kind), np.int64)
    for name, value in fields.items():
        values[getattr(kind, name) // 8] = value
    return values


class BufferPool:
    """Buffers that are free again, by size."""

    def __init__(self) -> None:
        self._free: dict[int, list[NDArray[np.uint8]]] = defaultdict(list)
        self.total_bytes = 0

    def take(self, rows: int, stride: int) -> Buffer:
        """A zeroed or used buffer of at least rows * stride bytes."""
        size = rows * stride + 64
        if self._free[size]:
            return Buffer(self._free[size].pop(), stride)
        data = aligned_zeros(size)
        self.total_bytes += size
        return Buffer(data, stride)

    def give(self, buffer: Buffer) -> None:
        """The buffer's value is dead."""
        self._free[len(buffer.data)].append(buffer.data)


def weight_key(operation: Linear | StackedLinear) -> str:
    """Under which name the packed weight of a product is kept: rows of a matrix are packed by themselves."""
    if isinstance(operation, Linear) and operation.rows is not None:
        return f"{operation.weight}[{operation.rows[0]}:{operation.rows[1]}]"
    return operation.weight


def activation_variant(operation: Activation) -> str:
    """The kernel of an activation, after ``activation.``."""
    by_row = operation.kind == "sigmoid" and operation.gate.width == 1 and operation.out.width > 1
    return "sigmoid_of_row" if by_row else operation.kind


def cache_variant(layer: CacheLayer, cache_type: str) -> str:
    """The kernels of a layer's cache, after ``cache.`` and ``attention.``."""
    return f"{cache_type}_latent" if layer.values_in_keys else cache_type


def kernel_names(
    graph: Graph, formats: dict[str, str], cache_type: str, fine: frozenset[str] | None = None
) -> set[str]:
    """All kernels that a plan of this graph may call.

    Args:
        graph: what is planned.
        formats: the packed format of each weight.
        cache_type: of keys and values.
        fine: products that take activations in two parts, if these are not those of `fine_products`.
    """
    names = {"quantize.all", "rows.select", "activation.add", "activation.scale"}
    fine = fine_products(graph) if fine is None else fine
    for operation in graph.operations:
        match operation:
            case Linear():
                names.add(matmul_kernel(formats[weight_key(operation)], operation.out.name in fine))
            case Norm():
                names.add(f"norm.{operation.kind}")
            case Rope():
                names.add("rope.interleaved" if operation.interleaved else "rope.halves")
            case Attention(layer=layer):
                variant = cache_variant(graph.cache[layer], cache_type)
                names |= {f"cache.{variant}", f"attention.{variant}"}
            case Activation():
                names.add(f"activation.{activation_variant(operation)}")
            case SoftCap():
                names.add("activation.softcap")
            case Route():
                names |= {f"routing.{operation.scores}", "routing.lists"}
            case StackedLinear():
                names.add(f"experts.{formats[weight_key(operation)]}")
                names |= {"routing.lists"} if operation.route else set()
            case WeightedSum():
                names.add("elements.weighted_sum")
            case Slice() | Join():
                names.add("elements.join")
            case RoundRows():
                names.add("elements.round_rows")
            case _:
                pass
    return names


def matmul_kernel(packed_format: str, fine: bool) -> str:
    """The kernel that multiplies by weights of a packed format, with remainders or without."""
    if packed_format in FLOAT_FORMATS:
        return f"floats.{packed_format}"
    return f"matmul.{packed_format}_fine" if fine else f"matmul.{packed_format}"


def fine_products(graph: Graph) -> frozenset[str]:
    """Names of the products that take activations in two parts, of 16 bits together.

    Of all rounding of activations, that before the vocabulary and before the values of attention does most harm, and
    it costs least to mend: the first runs for few rows and waits for memory anyway, the second is narrow where heads
    share their values.
    """
    values = {op.v.name for op in graph.operations if isinstance(op, Attention) and op.v is not None}
    rounded = {op.out.name for op in graph.operations if isinstance(op, RoundRows)}  # nothing remains of these
    for operation in reversed(graph.operations):  # what an adapter adds to them
        if isinstance(operation, Add) and operation.out.name in values:
            values |= {operation.a.name, operation.b.name}
    names, selected = set(), False
    for operation in graph.operations:
        selected = selected or isinstance(operation, SelectRows)
        if isinstance(operation, Linear) and operation.x.name not in rounded:
            narrow = 2 * operation.out.width <= operation.x.width
            if selected or (narrow and operation.out.name in values):
                names.add(operation.out.name)
    return frozenset(names)


def without_codes(step: Step, codes_field: int, quantized: Quantized) -> Step:
    """For many rows: a step that also quantizes its result, without that; the step itself is left to few rows."""
    record = step.record.copy()
    record[codes_field // 8] = 0
    step.rows = FEW_ROWS
    unread = id(quantized.codes.data), id(quantized.scales.data)
    writes = [buffer for buffer in step.writes if id(buffer.data) not in unread]
    return replace(step, record=record, writes=writes, rows=MANY_ROWS)
