"""The CPU executor: a graph on quantized weights, one call of compiled code per step."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import EdgeLLMError, InvalidSettingError, OutOfMemoryError
from edgellm.folders import kernels_folder
from edgellm.graph import Graph
from edgellm.kernels.library import KernelLibrary
from edgellm.kernels.packing import PackedMatrix
from edgellm.kernels.target import current_target
from edgellm.locks import ForkAwareLock
from edgellm.memory import release_code
from edgellm.platforms.amx import amx_mode
from edgellm.platforms.batch import BLOCK_TOKENS, Batch, Float32Array, Int32Array
from edgellm.platforms.cpu_amx import tile_kernels
from edgellm.platforms.cpu_cache import CacheMemory
from edgellm.platforms.cpu_parts import Embedded, Int64Array, Step, kernel_names
from edgellm.platforms.cpu_plan import Planner
from edgellm.platforms.cpu_tiles import Int8Tiles, int8_tile_kernels, tiles_for
from edgellm.platforms.cpu_weights import WeightLoader, read_vectors
from edgellm.platforms.features import physical_cores
from edgellm.platforms.idle_cores import IdleCores
from edgellm.platforms.scores import KERNELS as SCORE_KERNELS
from edgellm.platforms.scores import CompiledScores, RowDivergence, RowScores
from edgellm.platforms.team_size import TeamSize
from edgellm.platforms.threads import KERNELS as TEAM_KERNELS
from edgellm.platforms.threads import ThreadTeam
from edgellm.weights import WeightStore

Progress = Callable[[str, int, int], None]
MAX_THREADS = 256


def _plan_array(steps: list[Step], addresses: dict[str, int]) -> Int64Array:
    """The plan as `edgellm.kernels.team` walks it."""
    rows = np.zeros((len(steps), 4), np.int64)
    product = 0
    for row, step in zip(rows[::-1], reversed(steps), strict=True):
        if step.kernel.startswith("matmul."):
            product = step.record.ctypes.data
        row[:] = addresses[step.kernel], step.record.ctypes.data, int(step.barrier), product
    return rows


def _within(numbers: NDArray[np.integer], limit: int) -> bool:
    """Whether all are at least 0 and below the limit; a decode step's single one is asked for without NumPy's loops."""
    if numbers.size == 1:
        return 0 <= numbers.item() < limit
    return bool(numbers.min() >= 0 and numbers.max() < limit)


class CPUExecutor:
    """Runs a graph with compiled kernels; see ``edgellm.platforms.batch.Executor``.

    Args:
        graph: the model.
        weights: its weights; they are packed for the kernels, and the file's pages are given back.
        threads: compute threads; None: one per physical core, fewer while other processes keep the cores busy.
        cache_type: "f16", "q8_0" or "f32".
        progress: called with ("kernels" | "weights", done, total).
        meanwhile: called once while other threads pack the weights: for whatever else a start needs.

    Raises:
        UnsupportedModelError, InvalidSettingError, OutOfMemoryError.
    """

    planner_type: type[Planner] = Planner
    takes_amx = True
    max_rows = Planner.max_rows
    max_outputs = Planner.max_outputs

    def __init__(
        self,
        graph: Graph,
        weights: WeightStore,
        threads: int | None = None,
        cache_type: str = "f16",
        progress: Progress | None = None,
        meanwhile: Callable[[], object] | None = None,
    ) -> None:
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise InvalidSettingError(f"threads is {threads}", f"use 1 to {MAX_THREADS}")
        self.graph = graph
        self._weights = weights
        self._progress = progress
        self._lock = ForkAwareLock()
        self._cache = CacheMemory(graph.cache, cache_type)
        self.block_bytes = self._cache.block_bytes
        self.threads = threads or physical_cores()
        self._adapt = threads is None
        self._load(cache_type, meanwhile)
        self._tables = np.zeros(0, np.int32)
        self._scales: tuple[float, ...] = ()  # of the adapters, as the kernels know them
        self._closed = False

    # -- loading ------------------------------------------------------------------------------------------------

    def _kernel_names(self, formats: dict[str, str], cache_type: str) -> set[str]:
        return kernel_names(self.graph, formats, cache_type)

    def _whole_graph(self) -> Graph:
        """All operations that name weights."""
        return self.graph

    def _load_kernels(self, cache_type: str, loader: WeightLoader) -> None:
        formats = {name: matrix.format.name for name, matrix in loader.matrices.items()}
        names = self._kernel_names(formats, cache_type) | set(TEAM_KERNELS) | loader.kernels
        mode = amx_mode() if self.takes_amx else None
        self._tiles = tiles_for(mode, self.threads)
        self._many_rows = max(tiles.fewest_rows for tiles in self._tiles)
        names |= int8_tile_kernels(names) | (tile_kernels(loader.matrices, mode) if mode else set())
        library = self._library = KernelLibrary(current_target(), kernels_folder(), self._progress)
        self._addresses = library.load(sorted(names))
        release_code("llvmlite")  # tens of megabytes, for linking alone
        self._size = TeamSize(self.threads, self._adapt, IdleCores())
        self._team = ThreadTeam(self._addresses, self.threads, keep_alive=library)

    def _load(self, cache_type: str, meanwhile: Callable[[], object] | None) -> None:
        """Pack the weights on all threads and plan; ``meanwhile`` is called in between."""
        loader = WeightLoader(self._weights, self._whole_graph())
        self._weight_bytes = loader.total_bytes
        self._load_kernels(cache_type, loader)
        try:
            loader.start(self._team, self._addresses)
            try:
                self._plan(loader.matrices, cache_type)
                if meanwhile is not None:
                    meanwhile()
                loader.finish(self._progress)
            finally:
                loader.stop()
        except MemoryError as error:
            self._team.close()
            raise OutOfMemoryError("the model does not fit the memory", "use a smaller model") from error
        except BaseException:
            self._team.close()
            raise

    def _plan(self, matrices: dict[str, PackedMatrix], cache_type: str) -> None:
        vectors = read_vectors(self._whole_graph(), self._weights)
        planner = self.planner_type(self.graph, matrices, vectors, cache_type, self._cache, self.threads, self._tiles)
        steps = planner.plan()
        self._planner = planner  # keeps buffers, constants and matrices alive
        self._matrices = matrices
        self._inputs = planner.inputs
        self._all_of_few = _plan_array(steps, self._addresses)
        self._body = _plan_array(steps[: planner.body], self._addresses)
        self._head = _plan_array(steps[planner.body :], self._addresses)
        self._tiled_body = _plan_array(planner.tiled_body, self._addresses)
        self._tiled_head = _plan_array(planner.tiled_head, self._addresses)
        vocabulary = self.graph.vocabulary_size
        logits = planner.logits
        count = planner.max_outputs
        self._logits = np.lib.stride_tricks.as_strided(
            logits.data[: count * logits.stride].view(np.float32), (count, vocabulary), (logits.stride, 4)
        )
        self._embedded = [
            Embedded.of(operation, self._weights, buffer.data[: self.max_rows * buffer.stride].view(np.float32))
            for operation, buffer in planner.embeddings
        ]

    # -- the cache ----------------------------------------------------------------------------------------------

    def reserve(self, blocks: int) -> None:
        """Allocate an empty cache of ``blocks`` blocks, in place of the one before."""
        from edgellm.kernels.records import ATTENTION, CACHE

        with self._lock:
            self._check_open()
            self._cache.reserve(blocks)
            for layer, store, attend in self._planner.attention_records:
                store[CACHE.cache // 8] = attend[ATTENTION.cache // 8] = self._cache.address(layer)

    def copy_block(self, source: int, destination: int) -> None:
        """Copy the keys and values of one block, in all layers."""
        with self._lock:
            self._check_open()
            self._check_blocks(np.array([source, destination]))
            self._cache.copy(source, destination)

    def _check_blocks(self, blocks: NDArray[np.integer]) -> None:
        # Without a sign, what is negative is very large.
        if blocks.size and blocks.view(f"u{blocks.itemsize}").max() >= self._cache.blocks:
            raise InvalidSettingError(f"a cache block is out of range; {self._cache.blocks} are reserved")

    # -- a step -------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> Float32Array:
        """Logits (outputs, vocabulary) of the rows asked for; valid until the next step."""
        with self._lock:
            self._check_open()
            self._take(batch)
            begin, waited = time.perf_counter(), self._team.waited
            logits = self._run(len(batch.tokens), batch.outputs)
            now = time.perf_counter()
            self._size.note(len(batch.tokens), now - begin, self._team.waited - waited, now)
            return logits

    def begin(self, batch: Batch) -> None:
        """Run all operations but those on the rows of ``batch.outputs``."""
        with self._lock:
            self._check_open()
            self._take(batch)
            begin, waited = time.perf_counter(), self._team.waited
            self._run_body(len(batch.tokens))
            now = time.perf_counter()
            self._size.note(len(batch.tokens), now - begin, self._team.waited - waited, now)

    def logits_of(self, rows: Int32Array) -> Float32Array:
        """Logits (rows, vocabulary) of some rows of the step that was begun last; valid until the next call."""
        with self._lock:
            return self._logits_of(rows)

    def score(self, rows: Int32Array, targets: Int32Array) -> RowScores:
        """How probable a target is after each of the rows."""
        with self._lock:
            return self._scorer.score(self._logits_of(rows), targets)

    def compare(self, rows: Int32Array, targets: Int32Array, base: Float32Array) -> RowDivergence:
        """The same, and the divergence from what another model computed for these rows."""
        with self._lock:
            return self._scorer.compare(self._logits_of(rows), targets, base)

    def _logits_of(self, rows: Int32Array) -> Float32Array:
        self._check_open()
        if not 1 <= len(rows) <= self.max_outputs:
            what = f"the logits of {len(rows)} rows were asked for"
            raise InvalidSettingError(what, f"ask for 1 to {self.max_outputs}")
        if rows.min() < 0 or rows.max() >= self._inputs.rows[0]:
            raise InvalidSettingError("an output names a row that is not in the step")
        return self._run_outputs(rows)

    @cached_property
    def _scorer(self) -> CompiledScores:
        """Its kernels are loaded when they are first needed: chats never do."""
        addresses = self._library.load(SCORE_KERNELS)
        return CompiledScores(self.max_outputs, addresses, lambda plan: self._team.run(plan, self._size.threads))

    def _run(self, rows: int, outputs: NDArray[np.int32]) -> Float32Array:
        """All steps; those of few rows in one go: between two plans the threads wait for the interpreter."""
        count = len(outputs)
        if rows >= self._many_rows or not 0 < count <= min(self._planner.max_outputs, Int8Tiles.fewest_rows - 1):
            self._run_body(rows)
            return self._run_head(outputs)
        self._choose(outputs)
        self._team.run(self._all_of_few, self._size.threads)
        return self._logits[:count]

    def _choose(self, outputs: NDArray[np.int32]) -> None:
        """Tell the kernels which rows' logits are wanted."""
        self._inputs.chosen[: len(outputs)] = outputs
        self._inputs.outputs[0] = len(outputs)

    def _run_body(self, rows: int) -> None:
        body = self._tiled_body if rows >= self._many_rows else self._body
        self._team.run(body, self._size.threads)

    def _run_head(self, outputs: NDArray[np.int32]) -> Float32Array:
        count = len(outputs)
        if 0 < count <= self._planner.max_outputs:
            return self._run_outputs(outputs)
        logits = np.empty((count, self.graph.vocabulary_size), np.float32)
        for first in range(0, count, self._planner.max_outputs):
            part = outputs[first : first + self._planner.max_outputs]
            logits[first : first + len(part)] = self._run_outputs(part)
        return logits

    def _run_outputs(self, outputs: NDArray[np.int32]) -> Float32Array:
        self._choose(outputs)
        head = self._tiled_head if len(outputs) >= Int8Tiles.fewest_rows else self._head
        self._team.run(head, self._size.threads)
        return self._logits[: len(outputs)]

    def _take(self, batch: Batch) -> None:
        """Check a batch and copy it to where the kernels look."""
        rows, inputs = len(batch.tokens), self._inputs
        if not 1 <= rows <= self.max_rows:
            raise InvalidSettingError(f"a step of {rows} rows", f"use 1 to {self.max_rows}")
        self._check_rows(batch)
        inputs.rows[0] = rows
        inputs.positions[:rows] = batch.positions
        inputs.sequences[:rows] = batch.sequences
        # What is left of the processor's caches after a step is little: each call counts where there is one row.
        if rows == 1:
            position = int(batch.positions[0])
            block = int(batch.block_tables[batch.sequences[0], position // BLOCK_TOKENS])
            inputs.slots[0] = block * BLOCK_TOKENS + position % BLOCK_TOKENS
        else:
            blocks = batch.block_tables[batch.sequences, batch.positions // BLOCK_TOKENS]
            inputs.slots[:rows] = blocks * BLOCK_TOKENS + batch.positions % BLOCK_TOKENS
        self._set_tables(batch.block_tables)
        self._set_scales(batch)
        for embedded in self._embedded:
            embedded.look_up(batch)
        for table in self._planner.rope_tables:
            table.set(batch.positions)

    def _set_scales(self, batch: Batch) -> None:
        """Tell the kernels how much of each adapter is wanted, if that is not as in the step before."""
        scales = tuple(batch.scales)
        if scales != self._scales:
            for operation, constant in self._planner.adapter_scales:
                constant[0] = operation.factor * batch.scale_of(operation.adapter)
            self._scales = scales

    def _check_rows(self, batch: Batch) -> None:
        """Nothing that a kernel turns into an address may lie outside its buffer."""
        sequences, width = batch.block_tables.shape
        if not len(batch.tokens) == len(batch.positions) == len(batch.sequences):
            raise InvalidSettingError("a step has different numbers of tokens, positions and sequences")
        for embedded in self._embedded:
            if not _within(embedded.ids(batch), embedded.reader.rows):
                what = "position" if embedded.positions else "token id"
                raise InvalidSettingError(f"a {what} is not within 0 to {embedded.reader.rows - 1}")
        if not _within(batch.positions, width * BLOCK_TOKENS):
            raise InvalidSettingError("a position lies outside its block table")
        if not _within(batch.sequences, sequences):
            raise InvalidSettingError("a row names a sequence without a block table")
        if batch.outputs.size and not _within(batch.outputs, len(batch.tokens)):
            raise InvalidSettingError("an output names a row that is not in the step")
        self._check_blocks(batch.block_tables)

    def _set_tables(self, tables: NDArray[np.int32]) -> None:
        if tables.size > self._tables.size:
            from edgellm.kernels.records import ATTENTION

            self._tables = np.zeros(2 * tables.size, np.int32)
            for _layer, _store, attend in self._planner.attention_records:
                attend[ATTENTION.tables // 8] = self._tables.ctypes.data
        self._tables[: tables.size] = tables.reshape(-1)
        self._inputs.table_stride[0] = 4 * tables.shape[1]

    # -- the rest -----------------------------------------------------------------------------------------------

    def memory(self) -> dict[str, int]:
        """Bytes of packed weights, of the reserved cache and of buffers."""
        if self._closed:
            return {"weights": 0, "cache": 0, "buffers": 0}
        return {
            "weights": self._weight_bytes,
            "cache": self._cache.blocks * self.block_bytes,
            "buffers": self._planner.pool.total_bytes,
        }

    def _check_open(self) -> None:
        if self._closed:
            raise EdgeLLMError("the executor is closed")

    def close(self) -> None:
        """End the threads and give all memory back; the executor cannot be used afterwards. May be called again."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._team.close()
            self._cache.clear()
            self._matrices = {}
            self._embedded = []
            self._logits = np.zeros((0, 0), np.float32)
            del self._planner
