"""From a graph to a plan: which kernels run in which order, on which buffers, and where threads must meet.

The planner walks the operations once. It gives every value a buffer (reused as soon as its value is dead), fuses what
can be fused (quantizing into the norm or activation before a product, an addition into the product or norm before
it), and puts a barrier only where an operation touches what another thread may still be writing or reading.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.graph import (
    Activation,
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
    inputs_of,
)
from edgellm.kernels import records
from edgellm.kernels.packing import FLOAT_FORMATS, PackedMatrix, aligned_empty
from edgellm.platforms.cpu_amx import TiledProducts, without_codes
from edgellm.platforms.cpu_cache import BlockLayout, CacheMemory
from edgellm.platforms.cpu_parts import (
    FEW_ROWS,
    MANY_ROWS,
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
    matmul_kernel,
    padded,
)


class Planner:
    """Turns a graph into steps. After `plan`, ``steps[:body]`` run once per step and ``steps[body:]`` once for every
    MAX_OUTPUTS rows whose logits are wanted. With tiles, ``tiled_body`` runs in place of the body for many rows."""

    def __init__(
        self,
        graph: Graph,
        matrices: dict[str, PackedMatrix],
        vectors: dict[str, NDArray[np.float32]],
        cache_type: str,
        cache: CacheMemory,
        threads: int,
        tiles: TiledProducts | None = None,
    ) -> None:
        self._graph, self._matrices, self._vectors = graph, matrices, vectors
        self._cache, self._cache_type, self._threads = cache, cache_type, threads
        self.inputs = Inputs()
        self.pool = BufferPool()
        self.steps: list[Step] = []
        self.body = 0
        self.tiled_body: list[Step] = []
        self._tiles = tiles
        self.embeddings: list[tuple[Embedding, Buffer]] = []
        self.rope_tables: list[RopeTable] = []
        self.attention_records: list[tuple[int, Int64Array, Int64Array]] = []  # layer, store's and attention's record
        self.adapter_scales: list[tuple[Scale, NDArray[np.float32]]] = []  # and the constants that hold them
        self._buffers: dict[str, Buffer] = {}
        self._quantized: dict[str, Quantized] = {}
        self._constants: list[NDArray[Any]] = []
        self._tables: dict[tuple[tuple[float, ...], float], RopeTable] = {}
        self._readers: dict[str, list[Operation]] = defaultdict(list)
        self._last_use = self._find_last_uses()
        self._fine = fine_products(graph)
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
        return MAX_ROWS if self._count == ROWS else MAX_OUTPUTS

    def _new(self, value: Value) -> Buffer:
        buffer = self.pool.take(self._rows(), 4 * padded(value.width))
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
            if self._tiles is not None:
                self._tiles.release(name, self.pool)

    # -- quantized activations ----------------------------------------------------------------------------------

    def _wants_codes(self, value: Value) -> bool:
        return value.width % 32 == 0 and any(
            isinstance(op, Linear) and self._matrices[op.weight].format.name not in FLOAT_FORMATS
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
        tiles = self._tiles if self._count == ROWS else None
        matrices = [self._matrices[op.weight] for op in self._readers[value.name] if isinstance(op, Linear)]
        return tiles is None or any(
            not tiles.takes(matrix) for matrix in matrices if matrix.format.name not in FLOAT_FORMATS
        )

    def _leave_codes_to_few(self, value: Value, codes_field: int) -> None:
        """The last step quantizes its result, perhaps: not for many rows if nobody reads that."""
        if value.name in self._quantized and not self._many_read_codes(value):
            self.steps.append(without_codes(self.steps[-1], codes_field, self._quantized[value.name]))

    # -- operations ---------------------------------------------------------------------------------------------

    def plan(self) -> list[Step]:
        """All steps, with barriers."""
        operations = self._graph.operations
        number = 0
        while number < len(operations):
            number += self._plan_one(number, operations[number])
        self.logits = self._buffers[self._graph.logits.name]
        body, head = self.steps[: self.body], self.steps[self.body :]
        if self._tiles is not None:
            self.tiled_body = [replace(step) for step in body if step.rows != FEW_ROWS]
            place_barriers(self.tiled_body, 0)
        body = [step for step in body if step.rows != MANY_ROWS]
        self.steps, self.body = body + head, len(body)
        place_barriers(self.steps, self.body)
        return self.steps

    def _plan_one(self, number: int, operation: Operation) -> int:
        """Plan one operation, or two that were fused; returns how many."""
        used = 1
        match operation:
            case Embedding():
                self.embeddings.append((operation, self._new(operation.out)))
            case Linear():
                target, accumulate, used = self._target(number, operation)
                self._linear(operation, target, accumulate)
            case Norm():
                target, accumulate, used = self._target(number, operation)
                self._norm(operation, target, accumulate)
            case Rope():
                self._rope(number, operation)
            case Attention():
                self._attention(operation)
            case Activation():
                self._activation(operation)
            case Add():
                target = self._new(operation.out)
                a, b = self._buffers[operation.a.name], self._buffers[operation.b.name]
                self._elementwise("add", operation.out.width, a, b, target)
            case Scale():
                source = self._buffers[operation.x.name]
                target = self._new(operation.out)
                self._elementwise("scale", operation.x.width, source, None, target, factor=operation.factor)
                if operation.adapter is not None:
                    self.adapter_scales.append((operation, self._constants[-1]))
            case SoftCap():
                source = self._buffers[operation.x.name]
                target = self._new(operation.out)
                self._elementwise("softcap", operation.x.width, source, None, target, factor=operation.cap)
            case SelectRows():
                self._select_rows(operation)
        self._release_dead(number + used - 1)
        return used

    def _target(self, number: int, operation: Linear | Norm) -> tuple[Buffer, bool, int]:
        """Where a product or norm writes, whether it adds to what is there, and how many operations that covers.

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

    def _linear(self, operation: Linear, target: Buffer, accumulate: bool) -> None:
        matrix = self._matrices[operation.weight]
        fields: dict[str, int] = {}
        if matrix.format.name in FLOAT_FORMATS:
            reads = [self._buffers[operation.x.name]]
        else:
            quantized = self._quantized_input(operation.x)
            reads = [quantized.codes, quantized.scales]
            fields = {
                "scales": quantized.scales.address,
                "scales_stride": quantized.scales.stride,
                "fine_codes": quantized.fine_codes,
                "fine_scales": quantized.fine_scales,
            }
        bias = self._constant(self._vectors[operation.bias], 16 * matrix.groups) if operation.bias else 0
        record = make_record(
            records.MATMUL,
            rows=self.inputs.count_address(self._count),
            weights=matrix.data.ctypes.data,
            groups=matrix.groups,
            blocks=matrix.blocks,
            input=reads[0].address,
            input_stride=reads[0].stride,
            output=target.address,
            output_stride=target.stride,
            bias=bias,
            accumulate=int(accumulate),
            group_bytes=matrix.format.group_bytes(matrix.blocks),
            **fields,
        )
        kernel = matmul_kernel(matrix.format.name, operation.out.name in self._fine)
        self._emit(kernel, record, reads, [target])
        if self._tiles is not None and self._count == ROWS and self._tiles.takes(matrix):
            self.steps[-1].rows = FEW_ROWS
            self.steps += self._tiles.steps(
                operation, record, matrix, self._buffers[operation.x.name], target, self.pool
            )

    def _norm(self, operation: Norm, target: Buffer, accumulate: bool) -> None:
        source = self._buffers[operation.x.name]
        fields: dict[str, int] = {}
        written = [target]
        # The result is quantized at once, unless it only goes into a sum.
        if operation.heads == 1 and not accumulate:
            fields, more = self._quantize_fields(operation.out)
            written = [target, *more]
        record = make_record(
            records.NORM,
            rows=self.inputs.count_address(self._count),
            parts=operation.heads,
            width=operation.x.width // operation.heads,
            input=source.address,
            input_stride=source.stride,
            output=target.address,
            output_stride=target.stride,
            weight=self._vector(operation.weight),
            bias=self._vector(operation.bias),
            epsilon=self._constant(operation.epsilon),
            accumulate=int(accumulate),
            by_column=int(operation.heads == 1),
            **fields,
        )
        share = (self._count, operation.heads) if operation.heads > 1 else ()
        self._emit(f"norm.{operation.kind}", record, [source], written, *share)
        if fields:
            self._leave_codes_to_few(operation.out, records.NORM.codes)

    def _rope_table(self, operation: Rope) -> RopeTable:
        key = (operation.frequencies, operation.magnitude)
        if key not in self._tables:
            shape = (MAX_ROWS, len(operation.frequencies))
            frequencies = np.asarray(operation.frequencies, np.float64)
            table = RopeTable(
                frequencies, operation.magnitude, np.zeros(shape, np.float32), np.zeros(shape, np.float32)
            )
            self._tables[key] = table
            self.rope_tables.append(table)
        return self._tables[key]

    def _rope(self, number: int, operation: Rope) -> None:
        target = self._in_place(operation.out, operation.x, number)
        table = self._rope_table(operation)
        record = make_record(
            records.ROPE,
            rows=self.inputs.count_address(self._count),
            heads=operation.heads,
            width=operation.x.width // operation.heads,
            pairs=len(operation.frequencies),
            values=target.address,
            stride=target.stride,
            cosines=table.cosines.ctypes.data,
            sines=table.sines.ctypes.data,
        )
        kernel = "rope.interleaved" if operation.interleaved else "rope.halves"
        self._emit(kernel, record, [], [target], self._count, operation.heads)

    def _attention(self, operation: Attention) -> None:
        layout = BlockLayout.of(self._graph.cache[operation.layer], self._cache_type)
        q, k, v = (self._buffers[value.name] for value in (operation.q, operation.k, operation.v or operation.k))
        shared = {
            "rows": self.inputs.count_address(ROWS),
            "heads": operation.kv_heads,
            "key_width": layout.key_width,
            "value_width": layout.value_width,
            "block_bytes": layout.block_bytes,
            "head_key_bytes": layout.head_key_bytes,
            "head_value_bytes": layout.head_value_bytes,
            "values_offset": layout.values_offset,
        }
        store = make_record(
            records.CACHE, keys=k.address, keys_stride=k.stride, values=v.address, values_stride=v.stride,
            slots=self.inputs.slots.ctypes.data, **shared,
        )  # fmt: skip
        cache = self._cache.layer(operation.layer)
        self._emit(f"cache.{self._cache_type}", store, [k, v], [cache], ROWS, operation.kv_heads)
        target = self._new(operation.out)
        scratch_stride = 1024 + 16 * padded(layout.value_width)
        scratch = self.pool.take(self._threads, scratch_stride)
        attend = make_record(
            records.ATTENTION, group=operation.heads // operation.kv_heads, queries=q.address,
            queries_stride=q.stride, output=target.address, output_stride=target.stride,
            positions=self.inputs.positions.ctypes.data, sequences=self.inputs.sequences.ctypes.data,
            tables_stride=self.inputs.table_stride.ctypes.data, window=operation.window or 0,
            constants=self._constant([operation.scale, operation.softcap or 0.0]),
            sinks=self._vector(operation.sinks), scratch=scratch.address, scratch_stride=scratch_stride, **shared,
        )  # fmt: skip
        self._emit(f"attention.{self._cache_type}", attend, [q, cache], [target, scratch])
        self.pool.give(scratch)
        self.attention_records.append((operation.layer, store, attend))

    def _activation(self, operation: Activation) -> None:
        target = self._new(operation.out)
        gate = self._buffers[operation.gate.name]
        up = self._buffers[operation.up.name] if operation.up else None
        self._elementwise(operation.kind, operation.out.width, gate, up, target, out=operation.out)

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

    def _select_rows(self, operation: SelectRows) -> None:
        source = self._buffers[operation.x.name]
        self.body = len(self.steps)
        self._count = OUTPUTS
        target = self._new(operation.out)
        record = make_record(
            records.ROWS,
            rows=self.inputs.count_address(OUTPUTS),
            width=padded(operation.x.width),
            input=source.address,
            input_stride=source.stride,
            output=target.address,
            output_stride=target.stride,
            index=self.inputs.chosen.ctypes.data,
        )
        self._emit("rows.select", record, [source], [target])
        # The head may run several times on the same hidden rows, so their buffer is never reused.
        self._last_use[operation.x.name] = len(self._graph.operations) + 1


def place_barriers(steps: list[Step], body: int) -> None:
    """A barrier before a step that reads what others wrote, or writes what others read or wrote, since the last
    one; none where both split their work alike, so that each thread touches only its own part."""
    written: dict[int, set[object]] = defaultdict(set)
    read: dict[int, set[object]] = defaultdict(set)
    for number, step in enumerate(steps):
        share: object = step.share if step.share is not None else ("alone", number)
        reads, writes = ({id(buffer.data) for buffer in group} for group in (step.reads, step.writes))
        conflict = any(written[key] - {share} for key in reads | writes)
        conflict = conflict or any(read[key] - {share} for key in writes)
        if conflict or number == body:
            step.barrier = number > 0
            written.clear()
            read.clear()
        for key in writes:
            written[key].add(share)
        for key in reads:
            read[key].add(share)
