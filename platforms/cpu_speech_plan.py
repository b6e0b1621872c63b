"""Plans of a speech model's encoder and decoder: what they have beyond the graphs of language models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.graph import (
    Attention,
    CrossAttention,
    Embedding,
    Graph,
    Input,
    Linear,
    Operation,
    SelectRows,
    StoreSource,
    Unfold,
)
from edgellm.kernels import records, sound_records, tile_layout
from edgellm.kernels.attention_layout import scratch_bytes
from edgellm.kernels.packing import PackedMatrix, aligned_zeros
from edgellm.platforms.batch import BLOCK_TOKENS, Float32Array
from edgellm.platforms.choosing import MOST_CANDIDATES, RULES
from edgellm.platforms.cpu_cache import BlockLayout, CacheMemory
from edgellm.platforms.cpu_double_plan import DoublePlanner, double_operations
from edgellm.platforms.cpu_parts import (
    OUTPUTS,
    ROWS,
    Buffer,
    BufferPool,
    Int64Array,
    Step,
    make_record,
    padded,
)
from edgellm.platforms.cpu_plan import Planner
from edgellm.platforms.cpu_tiles import Int8Tiles
from edgellm.platforms.cpu_whole import WholeMemory

FRAMES = OUTPUTS
"""The count of rows before the convolution that takes every other one: an encoder has no rows to choose."""


def fine_speech_products(graph: Graph) -> frozenset[str]:
    """Names of the products that take activations in two parts, of 16 bits together.

    All of a decoder: they wait for memory, and rounding there harms most; that of the head costs 2 % of the time. None
    of an encoder, with its many rows.
    """
    if not any(isinstance(operation, SelectRows) for operation in graph.operations):
        return frozenset()
    return frozenset(operation.out.name for operation in graph.operations if isinstance(operation, Linear))


class FittingPool(BufferPool):
    """Gives the smallest free buffer that is large enough, unless it is far too large.

    An encoder's buffers are megabytes each, of many sizes, and few of them are in use at the same time.
    """

    _FAR = 3

    def take(self, rows: int, stride: int) -> Buffer:
        """A zeroed or used buffer of at least rows * stride bytes."""
        size = rows * stride + 64
        fitting = [free for free, buffers in self._free.items() if buffers and size <= free <= self._FAR * size]
        if not fitting:
            return super().take(rows, stride)
        return Buffer(self._free[min(fitting)].pop(), stride)


def source_blocks(length: int) -> int:
    """Blocks of the cache that a source of so many rows takes."""
    return -(-length // BLOCK_TOKENS)


def cache_shape(layout: BlockLayout, heads: int) -> dict[str, int]:
    """The fields of a record that say how keys and values lie."""
    return {
        "heads": heads,
        "key_width": layout.key_width,
        "value_width": layout.value_width,
        "block_bytes": layout.block_bytes,
        "head_key_bytes": layout.head_key_bytes,
        "head_value_bytes": layout.head_value_bytes,
        "values_offset": layout.values_offset,
    }


class EncoderPlanner(DoublePlanner):
    """The plan of an encoder: its ``tiled_body`` runs once for a source. Its numbers of rows are those of the model.

    Args:
        graph, matrices, vectors, cache_type, cache, threads: as those of `Planner`; the cache is one layer's.
        source, source_type: where keys and values for the decoder go, and their type unless that is int8.
        whole: where those of the encoder go, if its attention multiplies int8.

    Attributes:
        frames: where the input goes.
        source_records: layer and record of what stores keys and values for the decoder.
        source_slots: where the rows of the current source go.
        source: its number.
        whole_records: of attention with int8 keys, which get the address of their memory.
    """

    tiles_for_outputs = False  # these are frames before the convolution
    frames: Buffer

    def __init__(
        self,
        graph: Graph,
        matrices: dict[str, PackedMatrix],
        vectors: dict[str, NDArray[np.float32]],
        cache_type: str,
        cache: CacheMemory,
        threads: int,
        source: CacheMemory | WholeMemory,
        source_type: str,
        whole: WholeMemory | None = None,
    ) -> None:
        self.max_rows = -(-graph.source_length // tile_layout.ROWS) * tile_layout.ROWS  # products write whole tiles
        self._source, self._source_type, self._whole = source, source_type, whole
        self.whole_records: list[Int64Array] = []
        self.source = np.zeros(1, np.int32)
        self._kept: set[str] = set()
        self.source_records: list[tuple[int, Int64Array]] = []
        self.source_slots = np.zeros(graph.source_length, np.int32)
        self.max_outputs = 2 * graph.source_length
        super().__init__(
            graph, matrices, vectors, cache_type, cache, threads, [Int8Tiles(threads, graph.source_length)]
        )
        formats = {name: matrix.format.name for name, matrix in matrices.items()}
        self._doubles = double_operations(graph, formats) if whole is None else 0
        self.value_bytes = 8 if self._doubles else 4
        self.pool = FittingPool()
        widest = self.value_bytes * padded(
            max(operation.out.width for operation in graph.operations if isinstance(operation, Linear))
        )
        for buffer in [self.pool.take(self.max_rows, widest) for _ in range(2)]:  # the others fit into these first
            self.pool.give(buffer)
        self._fine = fine_speech_products(graph)
        inputs = self.inputs
        inputs.rows[0], inputs.outputs[0] = graph.source_length, self.max_outputs
        inputs.positions[:] = graph.source_length - 1  # every row sees all
        inputs.slots[:] = np.arange(self.max_rows)
        inputs.table_stride[0] = 4 * source_blocks(graph.source_length)
        self._count = FRAMES

    def _plan_one(self, number: int, operation: Operation) -> int:
        if number == self._doubles and self.value_bytes == 8:
            self._narrow_all()
        used = self._plan_own(number, operation)
        if number + used == len(self._graph.operations):
            self.body = len(self.steps)  # an encoder has no head
        return used

    def _plan_own(self, number: int, operation: Operation) -> int:
        match operation:
            case Input():
                self._take_input(operation)
            case Unfold():
                self._unfold(operation)
            case StoreSource():
                self._store_source(operation)
            case Embedding():
                self._positions(operation)
            case Attention():
                if self.value_bytes == 8:
                    self._double_attention(operation)
                elif self._whole is None:
                    # The layers run one after another, so that one layer's room does for all.
                    self._attention(replace(operation, layer=0))
                else:
                    self._whole_attention(operation, self._whole)
            case _:
                return super()._plan_one(number, operation)
        self._release_dead(number)
        return 1

    def _release_dead(self, number: int) -> None:
        for name in [name for name in self._kept if self._last_use.get(name, -1) <= number]:
            self._kept.remove(name)
            del self._buffers[name]  # not to the pool: the next source needs it again
        super()._release_dead(number)

    def _take_input(self, operation: Input) -> None:
        if self.value_bytes == 4:
            self.frames = self._new(operation.out)
            return
        self.frames = self.pool.take(self._rows(), 4 * padded(operation.out.width))
        self._widen(self.frames, operation)

    def _positions(self, operation: Embedding) -> None:
        """The table of positions, which is the same for every source."""
        table = self._vectors[operation.weight]
        stride = self.value_bytes * padded(operation.out.width)
        data = aligned_zeros(self.max_rows * stride)[: len(table) * stride]
        rows = data.view(f"f{self.value_bytes}").reshape(len(table), -1)
        rows[:, : table.shape[1]] = operation.scale * table
        self._buffers[operation.out.name] = Buffer(data, stride)
        self._kept.add(operation.out.name)

    def _unfold(self, operation: Unfold) -> None:
        source, there = self._buffers[operation.x.name], self._count_address()
        if operation.stride != 1:
            self._count = ROWS
        target = self._new(operation.out)
        record = make_record(
            sound_records.UNFOLD, rows=self._count_address(), input_rows=there,
            width=operation.x.width * self.value_bytes // 4, size=operation.size, stride=operation.stride,
            input=source.address, input_stride=source.stride, output=target.address, output_stride=target.stride,
        )  # fmt: skip
        self._emit("unfold.rows", record, [source], [target])

    def _whole_attention(self, operation: Attention, memory: WholeMemory) -> None:
        """Attention with int8 keys, which are stored first."""
        assert operation.v is not None
        layout, rows = memory.layout, self._count_address()
        q, k, v = (self._buffers[value.name] for value in (operation.q, operation.k, operation.v))
        target = self._new(operation.out)
        scratch = self.pool.take(self._threads, layout.scratch_bytes)
        constants = self._constant([operation.scale])
        none = np.zeros(self.max_rows, np.int32)
        self._constants.append(none)
        store = layout.record(rows, k, v, none, scratch, constants)
        attend = layout.record(rows, q, target, none, scratch, constants)
        marker = memory.layer(0)
        self._emit(f"whole_attention.store_{layout.values}", store, [k, v], [marker, scratch])
        self._emit(f"whole_attention.attend_{layout.values}", attend, [q, marker], [target, scratch])
        self.pool.give(scratch)
        self.whole_records += [store, attend]

    def _store_source(self, operation: StoreSource) -> None:
        layer = self._graph.source[operation.layer]
        k, v = self._buffers[operation.k.name], self._buffers[operation.v.name]
        if isinstance(self._source, WholeMemory):
            layout = self._source.layout
            scratch = self.pool.take(self._threads, layout.scratch_bytes)
            record = layout.record(self._count_address(), k, v, self.source, scratch, self._constant([1.0]))
            marker = self._source.layer(operation.layer)
            self._emit(f"whole_attention.store_{layout.values}", record, [k, v], [marker, scratch])
            self.pool.give(scratch)
            self.source_records.append((operation.layer, record))
            return
        record = make_record(
            records.CACHE, rows=self._count_address(), keys=k.address, keys_stride=k.stride, values=v.address,
            values_stride=v.stride, slots=self.source_slots.ctypes.data,
            **cache_shape(BlockLayout.of(layer, self._source_type), layer.kv_heads),
        )  # fmt: skip
        self._emit(f"cache.{self._source_type}", record, [k, v], [self._source.layer(operation.layer)])
        self.source_records.append((operation.layer, record))


class DecoderPlanner(Planner):
    """The plan of a decoder that attends to sources.

    Attributes:
        sources: the source of each row of a step.
        cross_records: layer and record of each attention to a source.
        cross_steps: layer, step and queries of each attention to a source.
        queries: of layers whose attention is looked at, where they are kept.
        rules, tokens, scores: what the choosing step is told and what it finds.
    """

    max_outputs = 64
    source_memory: CacheMemory | WholeMemory

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._fine = fine_speech_products(self._graph)
        self.sources = np.zeros(self.max_rows, np.int32)
        self._last_rows = np.full(self.max_rows, self._graph.source_length - 1, np.int32)
        self._table_stride = np.array([4 * source_blocks(self._graph.source_length)], np.int64)
        self.cross_records: list[tuple[int, Int64Array]] = []
        self.cross_steps: list[tuple[int, Step, Buffer]] = []
        self.queries: dict[int, Buffer] = {}
        self._aligning_steps: list[Step] = []
        self._row_numbers = np.arange(self.max_rows, dtype=np.int32)
        self.rules = np.zeros((self.max_outputs, RULES), np.int32)
        self.tokens = np.zeros((self.max_outputs, MOST_CANDIDATES), np.int32)
        self.scores = np.zeros((self.max_outputs, MOST_CANDIDATES), np.float32)

    def aligning(self, layers: set[int]) -> list[Step]:
        """The body again, with the queries of some layers' attention to sources kept in ``queries``."""
        steps: list[Step] = []
        by_step = {id(step): (layer, buffer) for layer, step, buffer in self.cross_steps}
        for step in self.steps[: self.body]:
            layer, source = by_step.get(id(step), (-1, None))
            if source is not None and layer in layers:
                kept = self.queries[layer] = Buffer(aligned_zeros(self.max_rows * source.stride), source.stride)
                record = make_record(
                    records.ROWS, rows=self.inputs.count_address(ROWS), width=source.stride // 4,
                    input=source.address, input_stride=source.stride, output=kept.address, output_stride=kept.stride,
                    index=self._row_numbers.ctypes.data,
                )  # fmt: skip
                steps.append(Step("rows.select", record, [source], [kept], barrier=True))
            steps.append(step)
        self._aligning_steps = steps  # the plan holds addresses of their records, not the records
        return steps

    def choosing(self, timestamps: int, bias: Float32Array) -> Step:
        """The step after the head that chooses tokens by ``rules``.

        Args:
            timestamps: number of the first timestamp.
            bias: (kinds, vocabulary).
        """
        wide = np.full((len(bias), padded(bias.shape[1])), -np.inf, np.float32)
        wide[:, : bias.shape[1]] = bias
        self._constants.append(wide)
        self.choose_record = make_record(
            sound_records.CHOOSE, rows=self.inputs.count_address(OUTPUTS), logits=self.logits.address,
            logits_stride=self.logits.stride, bias=wide.ctypes.data, bias_stride=wide.strides[0],
            rules=self.rules.ctypes.data, timestamps=timestamps, count=1, tokens=self.tokens.ctypes.data,
            scores=self.scores.ctypes.data,
        )  # fmt: skip
        return Step("choose.tokens", self.choose_record, [self.logits], [], barrier=True)

    def _plan_one(self, number: int, operation: Operation) -> int:
        if not isinstance(operation, CrossAttention):
            return super()._plan_one(number, operation)
        queries = self._buffers[operation.q.name]
        self._cross_attention(operation)
        self.cross_steps.append((operation.layer, self.steps[-1], queries))
        self._release_dead(number)
        return 1

    def _cross_attention(self, operation: CrossAttention) -> None:
        if isinstance(self.source_memory, WholeMemory):
            self._whole_cross_attention(operation, self.source_memory)
            return
        layer = self._graph.source[operation.layer]
        layout = BlockLayout.of(layer, self._cache_type)
        q, target = self._buffers[operation.q.name], self._new(operation.out)
        scratch_stride = scratch_bytes(layout.value_width)
        scratch = self.pool.take(self._threads, scratch_stride)
        record = make_record(
            records.ATTENTION, rows=self.inputs.count_address(ROWS), group=1, queries=q.address,
            queries_stride=q.stride, output=target.address, output_stride=target.stride,
            positions=self._last_rows.ctypes.data, sequences=self.sources.ctypes.data,
            tables_stride=self._table_stride.ctypes.data, constants=self._constant([operation.scale, 0.0]),
            scratch=scratch.address, scratch_stride=scratch_stride, **cache_shape(layout, layer.kv_heads),
        )  # fmt: skip
        self._emit(f"attention.{self._cache_type}", record, [q], [target, scratch])
        self.pool.give(scratch)
        self.cross_records.append((operation.layer, record))

    def _whole_cross_attention(self, operation: CrossAttention, memory: WholeMemory) -> None:
        layout = memory.layout
        q, target = self._buffers[operation.q.name], self._new(operation.out)
        scratch = self.pool.take(self._threads, layout.scratch_bytes)
        rows, constants = self.inputs.count_address(ROWS), self._constant([operation.scale])
        record = layout.record(rows, q, target, self.sources, scratch, constants)
        self._emit(f"whole_attention.attend_{layout.values}", record, [q], [target, scratch])
        self.pool.give(scratch)
        self.cross_records.append((operation.layer, record))
