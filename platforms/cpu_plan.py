"""From a graph to a plan: which kernels run in which order, on which buffers, and where threads must meet.

The planner walks the operations once. It gives every value a buffer (reused as soon as its value is dead), fuses what
can be fused (quantizing into the norm or activation before a product, an addition into the product or norm before
it), and puts a barrier only where an operation touches what another thread may still be writing or reading.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np

from edgellm.graph import (
    Activation,
    Add,
    Attention,
    Embedding,
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
)
from edgellm.kernels import records
from edgellm.kernels.attention_layout import scratch_bytes
from edgellm.kernels.packing import FLOAT_FORMATS
from edgellm.platforms.cpu_cache import BlockLayout
from edgellm.platforms.cpu_experts import ExpertPlanner
from edgellm.platforms.cpu_parts import (
    FEW_ROWS,
    MANY_ROWS,
    OUTPUTS,
    ROWS,
    Buffer,
    RopeTable,
    Step,
    activation_variant,
    cache_variant,
    make_record,
    matmul_kernel,
    padded,
    weight_key,
)


class Planner(ExpertPlanner):
    """Turns a graph into steps. After `plan`, ``steps[:body]`` run once per step and ``steps[body:]`` once for every
    MAX_OUTPUTS rows whose logits are wanted. With tiles, ``tiled_body`` runs in place of the body for many rows, and
    ``tiled_head`` in place of the rest for many of whose logits are wanted."""

    # -- operations ---------------------------------------------------------------------------------------------

    def plan(self) -> list[Step]:
        """All steps, with barriers."""
        operations = self._graph.operations
        number = 0
        while number < len(operations):
            number += self._plan_one(number, operations[number])
        self.logits = self._buffers[self._graph.logits.name]
        body, head = self.steps[: self.body], self.steps[self.body :]
        if self._tiles:
            self.tiled_body = [replace(step) for step in body if step.rows != FEW_ROWS]
            self.tiled_head = [replace(step) for step in head if step.rows != FEW_ROWS]
            place_barriers(self.tiled_body, 0)
            place_barriers(self.tiled_head, 0)
        body, head = ([step for step in part if step.rows != MANY_ROWS] for part in (body, head))
        self.steps, self.body = body + head, len(body)
        place_barriers(self.steps, self.body)
        link_products(self.steps)
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
            case WeightedSum():
                target, accumulate, used = self._target(number, operation)
                self._weighted_sum(operation, target, accumulate)
            case Route() | StackedLinear() | Slice() | Join() | RoundRows():
                self._plan_other(operation)
        self._release_dead(number + used - 1)
        return used

    def _linear(self, operation: Linear, target: Buffer, accumulate: bool) -> None:
        matrix = self._matrices[weight_key(operation)]
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
        bias = 0
        if operation.bias:
            rows = slice(None) if operation.rows is None else slice(*operation.rows)
            bias = self._constant(self._vectors[operation.bias][rows], 16 * matrix.groups)
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
        tiles = self._tiles_for(operation)
        if tiles is not None:
            self.steps[-1].rows = FEW_ROWS
            source, fine = self._buffers[operation.x.name], operation.out.name in self._fine
            rounded = self._quantized[operation.x.name] if operation.x.name in self._rounded else None
            self.steps += tiles.steps(operation, record, matrix, source, target, self.pool, fine, rounded)

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
            shape = (self.max_rows, len(operation.frequencies))
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
        variant = cache_variant(self._graph.cache[operation.layer], self._cache_type)
        self._emit(f"cache.{variant}", store, [k, v], [cache], ROWS, operation.kv_heads)
        target = self._new(operation.out)
        scratch_stride = scratch_bytes(layout.value_width)
        scratch = self.pool.take(self._threads, scratch_stride)
        attend = make_record(
            records.ATTENTION, group=operation.heads // operation.kv_heads, queries=q.address,
            queries_stride=q.stride, output=target.address, output_stride=target.stride,
            positions=self.inputs.positions.ctypes.data, sequences=self.inputs.sequences.ctypes.data,
            tables_stride=self.inputs.table_stride.ctypes.data, window=operation.window or 0,
            constants=self._constant([operation.scale, operation.softcap or 0.0]),
            sinks=self._vector(operation.sinks), scratch=scratch.address, scratch_stride=scratch_stride, **shared,
        )  # fmt: skip
        self._emit(f"attention.{variant}", attend, [q, cache], [target, scratch])
        self.pool.give(scratch)
        self.attention_records.append((operation.layer, store, attend))

    def _activation(self, operation: Activation) -> None:
        target = self._new(operation.out)
        gate = self._buffers[operation.gate.name]
        up = self._buffers[operation.up.name] if operation.up else None
        self._elementwise(activation_variant(operation), operation.out.width, gate, up, target, out=operation.out)

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


def link_products(steps: list[Step]) -> None:
    """Tell each product which one comes next, the last one the first: that of the next token."""
    products = [step.record for step in steps if step.kernel.startswith("matmul.")]
    for number, record in enumerate(products):
        following = products[(number + 1) % len(products)]
        record[records.MATMUL.following // 8] = following.ctypes.data
