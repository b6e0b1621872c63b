"""What all planning of operations shares: buffers and their lifetimes, constants, quantized activations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.graph import (
    Add,
    Embedding,
    Graph,
    Linear,
    Norm,
    Operation,
    RoundRows,
    Scale,
    StackedLinear,
    Value,
    WeightedSum,
    inputs_of,
)
from edgellm.kernels import records
from edgellm.kernels.packing import FLOAT_FORMATS, PackedMatrix, aligned_empty
from edgellm.platforms.cpu_amx import AMXTiles
from edgellm.platforms.cpu_cache import CacheMemory
from edgellm.platforms.cpu_parts import (
    FEW_ROWS,
    MAX_OUTPUTS,
    MAX_ROWS,
    OUTPUTS,
    ROWS,
    Buffer,
    BufferPool,
    Inputs,
    Int64Array,
    Quantized,
    RopeTable,
    Step,
    fine_products,
    make_record,
    padded,
    weight_key,
    without_codes,
)
from edgellm.platforms.cpu_tiles import Int8Tiles


class PlanBase:
    """Buffers, steps and what they need; the operations are planned by the classes made from it.

    A step has at most ``max_rows`` rows, and logits of at most ``max_outputs`` are computed at once.
    """

    max_rows = MAX_ROWS
    max_outputs = MAX_OUTPUTS
    tiles_for_outputs = True
    value_bytes = 4  # of a number of a value

    def __init__(
        self,
        graph: Graph,
        matrices: dict[str, PackedMatrix],
        vectors: dict[str, NDArray[np.float32]],
        cache_type: str,
        cache: CacheMemory,
        threads: int,
        tiles: Sequence[AMXTiles | Int8Tiles] = (),
    ) -> None:
        self._graph, self._matrices, self._vectors = graph, matrices, vectors
        self._cache, self._cache_type, self._threads = cache, cache_type, threads
        self.inputs = Inputs.of(self.max_rows, self.max_outputs)
        self.pool = BufferPool()
        self.steps: list[Step] = []
        self.body = 0
        self.tiled_body: list[Step] = []
        self.tiled_head: list[Step] = []
        self._tiles = tiles
        self.embeddings: list[tuple[Embedding, Buffer]] = []
        self.rope_tables: list[RopeTable] = []
        self.attention_records: list[tuple[int, Int64Array, Int64Array]] = []  # layer, store's and attention's record
        self.adapter_scales: list[tuple[Scale, NDArray[np.float32]]] = []  # and the constants that hold them
        self._buffers: dict[str, Buffer] = {}
        self._quantized: dict[str, Quantized] = {}
        self._constants: list[NDArray[Any]] = []
        self._scratch: dict[int, Buffer] = {}  # memory of threads, by its size for each
        self._route_lists: dict[str, tuple[Buffer, Buffer]] = {}
        self._tables: dict[tuple[tuple[float, ...], float], RopeTable] = {}
        self._readers: dict[str, list[Operation]] = defaultdict(list)
        self._last_use = self._find_last_uses()
        self._fine = fine_products(graph)
        self._rounded = {operation.out.name for operation in graph.operations if isinstance(operation, RoundRows)}
        self._count = ROWS
        self.logits = Buffer(aligned_empty(0), 0)

    # -- bookkeeping --------------------------------------------------------------------------------------------

    def _find_last_uses(self) -> dict[str, int]:
        last = {}
        for number, operation in enumerate(self._graph.operations):
            for value in inputs_of(operation):
                last[value.name] = number
                self._readers[value.name].append(operation)
        last[self._graph.logits.name] = len(self._graph.operations)
        return last

    def _constant(self, values: Any, width: int | None = None) -> int:
        """Address of float32 constants, padded with zeros to whole vectors."""
        flat = np.asarray(values, np.float32).reshape(-1)
        array = np.zeros(padded(max(width or 0, flat.size)), np.float32)
        array[: flat.size] = flat
        self._constants.append(array)
        return array.ctypes.data

    def _vector(self, name: str | None) -> int:
        return 0 if name is None else self._constant(self._vectors[name])

    def _rows(self) -> int:
        return self.max_rows if self._count == ROWS else self.max_outputs

    def _new(self, value: Value) -> Buffer:
        buffer = self.pool.take(self._rows(), self.value_bytes * padded(value.width))
        self._buffers[value.name] = buffer
        return buffer

    def _dead_after(self, value: Value, number: int) -> bool:
        return self._last_use.get(value.name, -1) <= number

    def _in_place(self, out: Value, x: Value, number: int) -> Buffer:
        """A buffer for ``out`` that starts as a copy of ``x``: x's own if nobody reads x later."""
        source = self._buffers[x.name]
        if self._dead_after(x, number):
            self._buffers[out.name] = source
            return source
        target = self._new(out)
        self._elementwise("scale", x.width, source, None, target, factor=1.0)
        return target

    def _emit(self, kernel: str, record: Int64Array, reads: list[Buffer], writes: list[Buffer], *share: object) -> None:
        self.steps.append(Step(kernel, record, reads, writes, share or None))

    def _release_dead(self, number: int) -> None:
        """Give back the buffers of values that no later operation reads."""
        kept = {id(self._buffers[name].data) for name in self._buffers if self._last_use.get(name, -1) > number}
        for name in [name for name in self._buffers if self._last_use.get(name, -1) <= number]:
            buffer = self._buffers.pop(name)
            if id(buffer.data) not in kept:
                self.pool.give(buffer)
                kept.add(id(buffer.data))  # values may share a buffer: it must not be given back twice
            quantized = self._quantized.pop(name, None)
            if quantized is not None:
                self.pool.give(quantized.codes)
                self.pool.give(quantized.scales)
            for more in self._route_lists.pop(name, ()):
                self.pool.give(more)
            for tiles in self._tiles:
                tiles.release(name, self.pool)

    # -- quantized activations ----------------------------------------------------------------------------------

    def _wants_codes(self, value: Value) -> bool:
        return value.width % 32 == 0 and any(
            isinstance(op, Linear | StackedLinear) and self._matrices[weight_key(op)].format.name not in FLOAT_FORMATS
            for op in self._readers[value.name]
        )

    def _new_quantized(self, value: Value) -> Quantized:
        # 64 bytes more than a power of two keep rows out of each other's cache sets.
        codes_bytes, scales_bytes = value.width + 64, value.width // 32 * 16
        if any(isinstance(op, Linear) and op.out.name in self._fine for op in self._readers[value.name]):
            quantized = Quantized(
                self.pool.take(self._rows(), 2 * codes_bytes),
                self.pool.take(self._rows(), 2 * scales_bytes),
                codes_bytes,
                scales_bytes,
            )
        else:
            quantized = Quantized(self.pool.take(self._rows(), codes_bytes), self.pool.take(self._rows(), scales_bytes))
        self._quantized[value.name] = quantized
        return quantized

    def _quantize_fields(self, value: Value) -> tuple[dict[str, int], list[Buffer]]:
        """Record fields and buffers for a kernel that quantizes its result at once, if a product wants that."""
        if not self._wants_codes(value):
            return {}, []
        quantized = self._new_quantized(value)
        fields = {
            "codes": quantized.codes.address,
            "codes_stride": quantized.codes.stride,
            "scales": quantized.scales.address,
            "scales_stride": quantized.scales.stride,
            "fine_codes": quantized.fine_codes,
            "fine_scales": quantized.fine_scales,
        }
        return fields, [quantized.codes, quantized.scales]

    def _quantized_input(self, value: Value) -> Quantized:
        if value.name not in self._quantized:
            source = self._buffers[value.name]
            fields, written = self._quantize_fields(value)
            record = make_record(
                records.QUANTIZE,
                rows=self.inputs.count_address(self._count),
                blocks=value.width // 32,
                input=source.address,
                input_stride=source.stride,
                **fields,
            )
            self._emit("quantize.all", record, [source], written)
            if not self._many_read_codes(value):
                self.steps[-1].rows = FEW_ROWS
        return self._quantized[value.name]

    def _many_read_codes(self, value: Value) -> bool:
        """Whether the codes of a value are wanted when there are many rows: products on tiles do not read them."""
        return any(
            self._tiles_for(op) is None and self._matrices[weight_key(op)].format.name not in FLOAT_FORMATS
            for op in self._readers[value.name]
            if isinstance(op, Linear | StackedLinear)
        )

    def _tiles_for(self, operation: Linear | StackedLinear) -> AMXTiles | Int8Tiles | None:
        """What makes the steps of a product of many rows, if it is one on tiles."""
        if not isinstance(operation, Linear) or (self._count == OUTPUTS and not self.tiles_for_outputs):
            return None
        matrix, rounded = self._matrices[weight_key(operation)], operation.x.name in self._rounded
        able = [tiles for tiles in self._tiles if self._count == ROWS or isinstance(tiles, Int8Tiles)]
        return next((tiles for tiles in able if tiles.takes(matrix, rounded)), None)

    def _leave_codes_to_few(self, value: Value, codes_field: int) -> None:
        """The last step quantizes its result, perhaps: not for many rows if nobody reads that."""
        if value.name in self._quantized and not self._many_read_codes(value):
            self.steps.append(without_codes(self.steps[-1], codes_field, self._quantized[value.name]))

    def _target(self, number: int, operation: Linear | Norm | WeightedSum) -> tuple[Buffer, bool, int]:
        """Where a product, norm or sum writes, whether it adds to what is there, and how many operations that covers.

        If its only reader is the next operation and adds it to a value that dies there, it accumulates into that
        value; but not into its own input, which other threads may still be reading.
        """
        out = operation.out
        following = self._graph.operations[number + 1] if number + 1 < len(self._graph.operations) else None
        if isinstance(following, Add) and out in (following.a, following.b) and self._dead_after(out, number + 1):
            other = following.a if following.b == out else following.b
            if other != out and self._dead_after(other, number + 1) and other.name in self._buffers:
                target = self._buffers[other.name]
                if target.data is not self._buffers[operation.x.name].data:
                    self._buffers[following.out.name] = target
                    return target, True, 2
        return self._new(out), False, 1

    def _elementwise(
        self, kind: str, width: int, a: Buffer, b: Buffer | None, target: Buffer, *, factor: float = 0.0,
        out: Value | None = None,
    ) -> None:  # fmt: skip
        fields, written = self._quantize_fields(out) if out else ({}, [])
        record = make_record(
            records.ACTIVATION,
            rows=self.inputs.count_address(self._count),
            width=width,
            a=a.address,
            a_stride=a.stride,
            b=b.address if b else 0,
            b_stride=b.stride if b else 0,
            output=target.address,
            output_stride=target.stride,
            factor=self._constant(factor),
            **fields,
        )
        self._emit(f"activation.{kind}", record, [a, *([b] if b else [])], [target, *written])
        if out and fields:
            self._leave_codes_to_few(out, records.ACTIVATION.codes)
