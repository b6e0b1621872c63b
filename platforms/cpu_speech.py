"""The CPU executor of speech models: the decoder as any graph, and the encoder on the same threads and weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from edgellm.errors import InvalidSettingError
from edgellm.graph import Embedding, Graph, Input
from edgellm.kernels.packing import PackedMatrix
from edgellm.kernels.records import ATTENTION, CACHE
from edgellm.kernels.sound_records import CHOOSE, WHOLE
from edgellm.platforms.alignment import KERNELS as ALIGNMENT_KERNELS
from edgellm.platforms.alignment import AlignmentPlan
from edgellm.platforms.batch import BLOCK_TOKENS, Batch, Float32Array, Int32Array
from edgellm.platforms.choosing import BIAS, END, FIRST_TEXT, MOST_CANDIDATES, RULES
from edgellm.platforms.cpu import CPUExecutor, Progress, _plan_array
from edgellm.platforms.cpu_cache import CacheMemory
from edgellm.platforms.cpu_double_plan import double_kernels
from edgellm.platforms.cpu_parts import kernel_names
from edgellm.platforms.cpu_speech_plan import DecoderPlanner, EncoderPlanner, fine_speech_products, source_blocks
from edgellm.platforms.cpu_tiles import Int8Tiles
from edgellm.platforms.cpu_weights import read_vectors
from edgellm.platforms.cpu_whole import WholeLayout, WholeMemory, supports
from edgellm.platforms.mel import KERNELS as MEL_KERNELS
from edgellm.platforms.mel import MelPlan
from edgellm.weights import WeightStore

_ENCODER_CACHE = "f32"


class CPUSpeechExecutor(CPUExecutor):
    """Runs a speech model with compiled kernels; see ``edgellm.platforms.batch.SpeechExecutor``.

    With weights that are not quantized the encoder computes its first blocks in float64, see
    `edgellm.platforms.cpu_double_plan`.

    Args:
        encoder: the graph from frames to keys and values.
        decoder: the graph from tokens to logits.
        weights, threads, cache_type, progress, meanwhile: as those of `CPUExecutor`; the cache type is also that of
            the keys and values of sources,
        quantized_sources: unless these are int8, and those within the encoder too; else the latter are float32, of
            which there is one layer's at a time.
    """

    planner_type = DecoderPlanner
    takes_amx = False  # whose inputs are laid out for fewer rows than an encoder has
    _planner: DecoderPlanner

    def __init__(
        self,
        encoder: Graph,
        decoder: Graph,
        weights: WeightStore,
        threads: int | None = None,
        cache_type: str = "f16",
        progress: Progress | None = None,
        meanwhile: Callable[[], object] | None = None,
        quantized_sources: bool = False,
    ) -> None:
        self.encoder_graph = encoder
        self.sources = 0
        self._whole: WholeMemory | None = None
        self._source_memory: CacheMemory | WholeMemory = CacheMemory(decoder.source, cache_type)
        if quantized_sources and supports(decoder.source[0]) and supports(encoder.cache[0]):
            self._use_whole_attention(encoder, decoder)
        self._encoder_cache = CacheMemory(encoder.cache[:1], _ENCODER_CACHE)
        self._source_blocks = source_blocks(decoder.source_length)
        self._source_tables = np.zeros(0, np.int32)
        self._filled: set[int] = set()
        super().__init__(decoder, weights, threads, cache_type, progress, meanwhile)

    # -- loading ------------------------------------------------------------------------------------------------

    def _use_whole_attention(self, encoder: Graph, decoder: Graph) -> None:
        heads, source = encoder.cache[0], decoder.source[0]
        keys = encoder.source_length
        self._whole = WholeMemory(1, WholeLayout(heads.kv_heads, heads.key_dim, keys, "f32"))
        layout = WholeLayout(source.kv_heads, source.key_dim, keys, "q8")
        self._source_memory = WholeMemory(len(decoder.source), layout)

    def _whole_graph(self) -> Graph:
        return replace(self.graph, operations=self.encoder_graph.operations + self.graph.operations)

    def _kernel_names(self, formats: dict[str, str], cache_type: str) -> set[str]:
        names = set()
        for graph, kind in ((self.encoder_graph, _ENCODER_CACHE), (self.graph, cache_type)):
            names |= kernel_names(graph, formats, kind, fine_speech_products(graph))
        if self._whole is not None:
            kinds = ("store_f32", "store_q8", "attend_f32", "attend_q8")
            names |= {f"whole_attention.{kind}" for kind in kinds}
        else:
            names |= double_kernels(self.encoder_graph, formats)
        return (
            names
            | MEL_KERNELS
            | ALIGNMENT_KERNELS
            | {"unfold.rows", "choose.tokens", f"cache.{cache_type}", f"attention.{cache_type}"}
        )

    def _plan(self, matrices: dict[str, PackedMatrix], cache_type: str) -> None:
        class OwnPlanner(DecoderPlanner):  # planners are made with what all of them need: this one has more
            source_memory = self._source_memory

        self.planner_type = OwnPlanner
        super()._plan(matrices, cache_type)
        vectors = read_vectors(self._whole_graph(), self._weights)
        for operation in self.encoder_graph.operations:
            if isinstance(operation, Embedding):
                vectors[operation.weight] = self._weights.float32(operation.weight)
        planner = EncoderPlanner(
            self.encoder_graph, matrices, vectors, _ENCODER_CACHE, self._encoder_cache, self.threads,
            self._source_memory, cache_type, self._whole,
        )  # fmt: skip
        planner.plan()
        self._encoder_plan = _plan_array(planner.tiled_body, self._addresses)
        self._encoder_planner = planner
        self._frames = self._view(planner.frames.data, planner.frames.stride, 2 * self.graph.source_length)
        self._encoded = self._view(planner.logits.data, planner.logits.stride, self.graph.source_length)
        self._align = AlignmentPlan(self._team, self._addresses)
        self._mel = MelPlan(self._bins, 2 * self.graph.source_length, self._team, self._addresses)
        if self._whole is None:
            self._encoder_cache.reserve(self._source_blocks)
        else:
            self._whole.reserve(1)
            for record in planner.whole_records:
                record[WHOLE.store // 8] = self._whole.address(0)
        self._encoder_table = np.arange(self._source_blocks, dtype=np.int32)
        for _layer, store, attend in planner.attention_records:
            store[CACHE.cache // 8] = attend[ATTENTION.cache // 8] = self._encoder_cache.address(0)
            attend[ATTENTION.tables // 8] = self._encoder_table.ctypes.data

    @staticmethod
    def _view(data: object, stride: int, rows: int) -> Float32Array:
        assert isinstance(data, np.ndarray)
        return data[: rows * stride].view(np.float32).reshape(rows, -1)

    # -- sources ------------------------------------------------------------------------------------------------

    def reserve_sources(self, count: int) -> None:
        """Make room for so many sources, in place of those before.

        Raises:
            OutOfMemoryError: they do not fit the memory.
        """
        with self._lock:
            self._check_open()
            self._filled.clear()
            self.sources = 0
            self._reserve(count, self._source_memory)
            self.sources = count

    def _reserve(self, count: int, memory: CacheMemory | WholeMemory) -> None:
        """Reserve the memory and tell the kernels where it is."""
        stores, attends = self._encoder_planner.source_records, self._planner.cross_records
        if isinstance(memory, WholeMemory):
            memory.reserve(count)
            for layer, record in [*stores, *attends]:
                record[WHOLE.store // 8] = memory.address(layer)
            return
        memory.reserve(count * self._source_blocks)
        self._source_tables = np.arange(count * self._source_blocks, dtype=np.int32)
        for layer, record in stores:
            record[CACHE.cache // 8] = memory.address(layer)
        for layer, record in attends:
            record[ATTENTION.cache // 8] = memory.address(layer)
            record[ATTENTION.tables // 8] = self._source_tables.ctypes.data

    def spectrogram(self, samples: Float32Array) -> Float32Array:
        """Log-mel frames (2 * source_length, mel_bins) of sound at 16 kHz, with silence after it; valid until the next.

        Raises:
            InvalidSettingError: there are more samples than frames.
        """
        with self._lock:
            self._check_open()
            return self._mel.run(samples, self._size.threads)[:, : self._bins]

    def encode(self, frames: Float32Array, source: int) -> None:
        """Run the encoder.

        Raises:
            InvalidSettingError: there is no such source, or the frames are not of the model's shape.
        """
        with self._lock:
            self._check_open()
            rows, bins = 2 * self.graph.source_length, self._bins
            if frames.shape != (rows, bins):
                raise InvalidSettingError(f"frames of the shape {frames.shape} were given, expected {(rows, bins)}")
            if not 0 <= source < self.sources:
                raise InvalidSettingError(f"source {source} is not within 0 to {self.sources - 1}")
            self._frames[:, :bins] = frames
            first = source * self._source_blocks * BLOCK_TOKENS
            self._encoder_planner.source[0] = source
            self._encoder_planner.source_slots[:] = np.arange(first, first + self.graph.source_length)
            self._team.run(self._encoder_plan, self._size.threads)
            self._filled.add(source)
            for embedded in self._embedded:  # the system keeps many pages around each row that was read
                self._weights.release(embedded.reader.name)

    @property
    def _bins(self) -> int:
        return next(op.out.width for op in self.encoder_graph.operations if isinstance(op, Input))

    def encoded(self) -> Float32Array:
        """The encoder's output (source_length, width) for the frames read last; a copy."""
        return self._encoded[:, : self.encoder_graph.embedding_width].copy()

    # -- tokens -------------------------------------------------------------------------------------------------

    def prepare_choosing(self, timestamps: int, bias: Float32Array) -> None:
        """Set what `choose` goes by: the number of the first timestamp, and the rows of biases (kinds, vocabulary)."""
        with self._lock:
            self._check_open()
            step = self._planner.choosing(timestamps, bias)
            self._kinds = len(bias)
            chosen = _plan_array([step], self._addresses)
            self._choosing = np.concatenate([self._head, chosen])
            self._choosing_many = np.concatenate([self._tiled_head, chosen])

    def choose(self, batch: Batch, rules: Int32Array, count: int) -> tuple[Int32Array, Float32Array]:
        """Run the decoder and choose the likeliest tokens for each output.

        Args:
            batch: the step.
            rules: (outputs, RULES), see `edgellm.platforms.choosing`.
            count: candidates for each output, at most MOST_CANDIDATES.

        Returns:
            Tokens and their log-probabilities, (outputs, count) each, the best first; -1 where none was allowed.
        """
        with self._lock:
            self._check_open()
            self._check_rules(rules, len(batch.outputs), count)
            self._take(batch)
            self._run_body(len(batch.tokens))
            tokens = np.empty((len(rules), count), np.int32)
            scores = np.empty((len(rules), count), np.float32)
            planner = self._planner
            planner.choose_record[CHOOSE.count // 8] = count
            for first in range(0, len(rules), planner.max_outputs):
                part = batch.outputs[first : first + planner.max_outputs]
                end = first + len(part)
                planner.rules[: len(part)] = rules[first:end]
                self._inputs.chosen[: len(part)], self._inputs.outputs[0] = part, len(part)
                plan = self._choosing_many if len(part) >= Int8Tiles.fewest_rows else self._choosing
                self._team.run(plan, self._size.threads)
                tokens[first:end] = planner.tokens[: len(part), :count]
                scores[first:end] = planner.scores[: len(part), :count]
            return tokens, scores

    def last_logits(self, count: int) -> Float32Array:
        """The logits (count, vocabulary) by which `choose` chose last, of at most ``max_outputs``."""
        return self._logits[:count]

    # -- alignment ----------------------------------------------------------------------------------------------

    def alignment(self, batch: Batch, heads: tuple[tuple[int, int], ...], frames: int) -> Float32Array:
        """Run the decoder and see how rows attend to their sources.

        Args:
            batch: the step; all its rows are of one source.
            heads: (layer, head) of the attention to look at.
            frames: rows of the source that count.

        Returns:
            (heads, rows, frames), each row with the sum 1.
        """
        with self._lock:
            self._check_open()
            if not 1 <= frames <= self.graph.source_length or len(set(batch.sources.tolist())) != 1:
                raise InvalidSettingError(f"alignment of {frames} frames of {len(set(batch.sources.tolist()))} sources")
            self._take(batch)
            layers = {layer for layer, _ in heads}
            if not layers <= set(self._planner.queries):
                self._aligning = _plan_array(self._planner.aligning(layers), self._addresses)
            self._team.run(self._aligning, self._size.threads)
            rows, source = len(batch.tokens), int(batch.sources[0])
            found = np.empty((len(heads), rows, frames), np.float32)
            for number, (layer, head) in enumerate(heads):
                kept = self._planner.queries[layer]
                keys = self._source_keys(layer, source, head)[:frames]
                width = keys.shape[1]
                queries = self._view(kept.data, kept.stride, self.max_rows)[:rows, head * width : (head + 1) * width]
                scores = queries @ keys.T * np.float32(width**-0.5)
                np.exp(scores - scores.max(axis=1, keepdims=True), out=scores)
                np.divide(scores, scores.sum(axis=1, keepdims=True), out=found[number])
            return found

    def _source_keys(self, layer: int, source: int, head: int) -> Float32Array:
        if isinstance(self._source_memory, WholeMemory):
            return self._source_memory.keys(layer, source, head)
        return self._source_memory.keys(layer, source * self._source_blocks, self._source_blocks, head)

    def smooth(self, weights: Float32Array) -> Float32Array:
        """Attention (heads, rows, frames) smoothed over frames and averaged over heads."""
        return self._align.smooth(weights)

    def warp(self, gains: Float32Array) -> tuple[Int32Array, Int32Array]:
        """Rows and frames of the path through (rows, frames) with the largest sum."""
        return self._align.warp(gains)

    def _check_rules(self, rules: Int32Array, outputs: int, count: int) -> None:
        if rules.shape != (outputs, RULES) or not 1 <= count <= MOST_CANDIDATES:
            raise InvalidSettingError(f"rules of the shape {rules.shape} for {outputs} outputs, {count} candidates")
        limits = rules[:, FIRST_TEXT : END + 1]
        if rules[:, BIAS].min(initial=0) < 0 or rules[:, BIAS].max(initial=0) >= self._kinds:
            raise InvalidSettingError("a rule names a bias that there is not")
        if limits.min(initial=0) < 0 or limits.max(initial=0) > self.graph.vocabulary_size:
            raise InvalidSettingError("a rule names a token that there is not")

    def _take(self, batch: Batch) -> None:
        if len(batch.sources) != len(batch.tokens):
            raise InvalidSettingError("a step of a speech model names the source of each row")
        missing = set(np.unique(batch.sources).tolist()) - self._filled
        if missing:
            raise InvalidSettingError(f"source {min(missing)} has not been encoded")
        super()._take(batch)
        self._planner.sources[: len(batch.sources)] = batch.sources

    # -- the rest -----------------------------------------------------------------------------------------------

    def memory(self) -> dict[str, int]:
        """Bytes of packed weights, of caches and of buffers."""
        found = super().memory()
        if not self._closed:
            for memory in (self._source_memory, self._encoder_cache, self._whole):
                found["cache"] += 0 if memory is None else memory.total_bytes
            found["buffers"] += self._encoder_planner.pool.total_bytes
        return found

    def close(self) -> None:
        """End the threads and give all memory back."""
        closing = not self._closed
        super().close()
        if closing:
            self._source_memory.clear()
            self._encoder_cache.clear()
            if self._whole is not None:
                self._whole.clear()
            self._filled.clear()
            self._frames = self._encoded = np.zeros((0, 0), np.float32)
            del self._encoder_planner
