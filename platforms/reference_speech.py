"""The reference executor of speech models: encoder and decoder in plain NumPy."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import InvalidSettingError
from edgellm.graph import CrossAttention, Graph, Input, Operation, StoreSource, Unfold
from edgellm.platforms.alignment import smooth_reference, warp_reference
from edgellm.platforms.batch import BLOCK_TOKENS, Batch, Float32Array, Int32Array
from edgellm.platforms.choosing import allowed_log_probabilities, best
from edgellm.platforms.mel import log_mel_reference
from edgellm.platforms.reference import ReferenceExecutor, Values
from edgellm.weights import WeightStore

Array = NDArray[np.floating[Any]]


class _Half(ReferenceExecutor):
    """Encoder or decoder, which share what the one has stored for the other."""

    def __init__(self, graph: Graph, weights: WeightStore, dtype: Literal["float32", "float64"]) -> None:
        self.max_rows = max(self.max_rows, graph.source_length)
        self.frames: Array = np.zeros((0, 0))
        self.source = 0
        self.stored: dict[tuple[int, int], tuple[Array, Array]] = {}
        self.weights_of: dict[int, Array] = {}
        super().__init__(graph, weights, dtype)

    def _evaluate(self, operation: Operation, values: Values, batch: Batch) -> Array:
        match operation:
            case Input():
                return self.frames.astype(self._dtype, copy=False)
            case Unfold(x=x, size=size, stride=stride):
                return unfold(values[x.name], size, stride)
            case StoreSource(k=k, v=v, layer=layer):
                self.stored[layer, self.source] = values[k.name], values[v.name]
                return values[k.name]
            case CrossAttention():
                return self._cross_attend(operation, values[operation.q.name], batch)
            case _:
                return super()._evaluate(operation, values, batch)

    def _cross_attend(self, operation: CrossAttention, q: Array, batch: Batch) -> Array:
        weights = self.cross_weights(operation, q, batch)
        out = np.empty_like(q)
        for source in np.unique(batch.sources):
            chosen = np.flatnonzero(batch.sources == source)
            v = self.stored[operation.layer, int(source)][1]
            v = v.reshape(len(v), operation.heads, -1).transpose(1, 0, 2)  # (heads, keys, head)
            out[chosen] = (weights[chosen].transpose(1, 0, 2) @ v).transpose(1, 0, 2).reshape(len(chosen), -1)
        return out

    def cross_weights(self, operation: CrossAttention, q: Array, batch: Batch) -> Array:
        """(rows, heads, keys): how much each row attends to each of its source's rows."""
        split = q.reshape(len(q), operation.heads, -1)
        found = np.empty((len(q), operation.heads, self.graph.source_length), self._dtype)
        for source in np.unique(batch.sources):
            chosen = np.flatnonzero(batch.sources == source)
            k = self.stored[operation.layer, int(source)][0].reshape(-1, operation.heads, split.shape[2])
            scores = np.einsum("rhd,khd->rhk", split[chosen], k) * self._dtype.type(operation.scale)
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            found[chosen] = scores / scores.sum(axis=-1, keepdims=True)
        self.weights_of[operation.layer] = found
        return found


class ReferenceSpeechExecutor:
    """Runs a speech model in NumPy; see ``edgellm.platforms.batch.SpeechExecutor`` for what each method promises.

    In float64 unless told otherwise: the rows of Whisper base's encoder reach 500 and amplify roundings, so that even
    NumPy's results in float32 are up to 1.7e-3 from these, where values reach 24.
    """

    def __init__(
        self,
        encoder: Graph,
        decoder: Graph,
        weights: WeightStore,
        dtype: Literal["float32", "float64"] = "float64",
    ) -> None:
        self.graph, self.encoder_graph = decoder, encoder
        self._encoder, self._decoder = _Half(encoder, weights, dtype), _Half(decoder, weights, dtype)
        self._decoder.stored = self._encoder.stored
        self._blocks = -(-encoder.source_length // BLOCK_TOKENS)
        self._encoder.reserve(self._blocks)
        self.max_rows, self.block_bytes = self._decoder.max_rows, self._decoder.block_bytes
        self.sources = 0
        self._encoded: Array = np.zeros((0, 0))

    def reserve(self, blocks: int) -> None:
        """Allocate an empty cache for the decoder."""
        self._decoder.reserve(blocks)

    def reserve_sources(self, count: int) -> None:
        """Forget all sources and allow so many."""
        self._encoder.stored.clear()
        self.sources = count

    def encode(self, frames: Float32Array, source: int) -> None:
        """Run the encoder."""
        rows = self.encoder_graph.source_length
        if not 0 <= source < self.sources:
            raise InvalidSettingError(f"source {source} is not within 0 to {self.sources - 1}")
        if len(frames) != 2 * rows:
            raise InvalidSettingError(f"{len(frames)} frames were given, the encoder reads {2 * rows}")
        self._encoder.frames, self._encoder.source = frames, source
        zeros = np.zeros(rows, np.int32)
        positions = np.arange(rows, dtype=np.int32)
        tables = np.arange(self._blocks, dtype=np.int32)[None]
        self._encoded = self._encoder.step(Batch(zeros, positions, zeros, tables, zeros[:0]))

    def encoded(self) -> Float32Array:
        """What the encoder made of the frames read last."""
        return self._encoded.astype(np.float32)

    def step(self, batch: Batch) -> Float32Array:
        """Run the decoder."""
        for source in np.unique(batch.sources).tolist():
            if (0, source) not in self._encoder.stored:
                raise InvalidSettingError(f"source {source} has not been encoded")
        return self._decoder.step(batch)

    def spectrogram(self, samples: Float32Array) -> Float32Array:
        """Log-mel frames (2 * source_length, mel_bins) of sound at 16 kHz, with silence after it."""
        bins = next(op.out.width for op in self.encoder_graph.operations if isinstance(op, Input))
        return log_mel_reference(samples, bins, 2 * self.encoder_graph.source_length).astype(np.float32)

    def prepare_choosing(self, timestamps: int, bias: Float32Array) -> None:
        """Set what `choose` goes by: the number of the first timestamp, and the rows of biases (kinds, vocabulary)."""
        self._timestamps, self._bias = timestamps, bias

    def choose(self, batch: Batch, rules: Int32Array, count: int) -> tuple[Int32Array, Float32Array]:
        """Run the decoder and choose the ``count`` likeliest tokens for each output: tokens, log-probabilities."""
        self._last = self.step(batch)
        return best(allowed_log_probabilities(self._last, self._bias, rules, self._timestamps), count)

    def last_logits(self, count: int) -> Float32Array:
        """The logits (count, vocabulary) by which `choose` chose last."""
        return self._last[:count]

    def alignment(self, batch: Batch, heads: tuple[tuple[int, int], ...], frames: int) -> Float32Array:
        """(heads, rows, frames): how the rows of a step attend to the first frames of their source."""
        self.step(batch)
        found = np.stack([self._decoder.weights_of[layer][:, head, :frames] for layer, head in heads])
        shares: Float32Array = (found / found.sum(axis=-1, keepdims=True)).astype(np.float32)
        return shares

    def smooth(self, weights: Float32Array) -> Float32Array:
        """Attention (heads, rows, frames) smoothed over frames and averaged over heads."""
        return smooth_reference(weights)

    def warp(self, gains: Float32Array) -> tuple[Int32Array, Int32Array]:
        """Rows and frames of the path through (rows, frames) with the largest sum."""
        return warp_reference(gains)

    def copy_block(self, source: int, destination: int) -> None:
        """Copy one block of the decoder's cache."""
        self._decoder.copy_block(source, destination)

    def memory(self) -> dict[str, int]:
        """Bytes of both."""
        first, second = self._encoder.memory(), self._decoder.memory()
        return {name: first[name] + second[name] for name in first}

    def close(self) -> None:
        """Drop weights and caches."""
        self._encoder.close()
        self._decoder.close()


def unfold(x: Array, size: int, stride: int) -> Array:
    """Rows with their neighbours beside them, zeros outside: see ``edgellm.graph.Unfold``."""
    rows, width = x.shape
    before = size // 2
    wide = np.zeros((rows + size, width), x.dtype)
    wide[before : before + rows] = x
    count = rows // stride
    return np.concatenate([wide[tap : tap + stride * count : stride] for tap in range(size)], axis=1)
