"""What an executor is asked for in one step, and what every executor offers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from edgellm.graph import Graph

if TYPE_CHECKING:
    from edgellm.platforms.scores import RowDivergence, RowScores

BLOCK_TOKENS = 32
"""Tokens per block of the paged cache; a multiple of 16, the number of lanes of a kernel."""

Int32Array = NDArray[np.int32]
Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """The rows of one step: one row per token, of one or several sequences.

    Rows of one sequence stand in rising order of position. Position p of sequence s has its keys and values in
    cache block ``block_tables[s, p // BLOCK_TOKENS]`` at slot ``p % BLOCK_TOKENS``.
    """

    tokens: Int32Array  # (rows,)
    positions: Int32Array  # (rows,)
    sequences: Int32Array  # (rows,): index into block_tables
    block_tables: Int32Array  # (sequences, blocks)
    outputs: Int32Array  # (outputs,): rows whose logits are wanted
    scales: tuple[float, ...] = ()  # of each adapter of the graph, for all rows; empty: 1 for each
    sources: Int32Array = field(default_factory=lambda: np.zeros(0, np.int32))  # (rows,): which source each attends to

    def scale_of(self, adapter: int | None) -> float:
        """The scale of an adapter by its number; 1 for None."""
        return 1.0 if adapter is None or not len(self.scales) else float(self.scales[adapter])


class StepExecutor(Protocol):
    """Runs a graph on one kind of machine, together with the cache that the graph needs."""

    graph: Graph
    max_rows: int
    block_bytes: int

    def reserve(self, blocks: int) -> None:
        """Allocate a cache of that many blocks; memory is touched only as it is used."""

    def step(self, batch: Batch) -> Float32Array:
        """Run all operations; returns logits (outputs, vocabulary), valid until the next step."""

    def copy_block(self, source: int, destination: int) -> None:
        """Copy one cache block, all layers."""

    def memory(self) -> dict[str, int]:
        """Bytes held: weights, cache (reserved), buffers."""

    def close(self) -> None:
        """Give all memory and threads back."""


class Executor(StepExecutor, Protocol):
    """Runs a language model, and can work on its logits part by part, where all of them would not fit."""

    max_outputs: int

    def begin(self, batch: Batch) -> None:
        """Run all operations but those on the rows of ``batch.outputs``, which the following three do for some of them
        at a time, at most ``max_outputs``. Until the next step they may be called again and again."""

    def logits_of(self, rows: Int32Array) -> Float32Array:
        """Logits (rows, vocabulary) of some output rows, by their numbers in the batch; valid until the next call."""

    def score(self, rows: Int32Array, targets: Int32Array) -> RowScores:
        """How probable a target is after each of the rows."""

    def compare(self, rows: Int32Array, targets: Int32Array, base: Float32Array) -> RowDivergence:
        """The same, and the divergence from what another model computed for these rows."""


class SpeechExecutor(StepExecutor, Protocol):
    """Runs the decoder of a speech model, like any executor, and the encoder before it."""

    sources: int

    def reserve_sources(self, count: int) -> None:
        """Make room for the keys and values of so many sources."""

    def spectrogram(self, samples: Float32Array) -> Float32Array:
        """Log-mel frames (2 * source_length, mel_bins) of sound at 16 kHz; valid until the next call."""

    def encode(self, frames: Float32Array, source: int) -> None:
        """Read log-mel frames (2 * source_length, mel_bins) and keep what the decoder needs as number ``source``."""

    def encoded(self) -> Float32Array:
        """The encoder's output (source_length, width) for the frames read last; a copy."""

    def prepare_choosing(self, timestamps: int, bias: Float32Array) -> None:
        """Set what `choose` goes by: the number of the first timestamp, and the rows of biases (kinds, vocabulary)."""

    def choose(self, batch: Batch, rules: Int32Array, count: int) -> tuple[Int32Array, Float32Array]:
        """Like ``step``, but gives the ``count`` likeliest tokens of each output that its rules allow, and their
        log-probabilities; see `edgellm.platforms.choosing`."""

    def last_logits(self, count: int) -> Float32Array:
        """The logits (count, vocabulary) by which `choose` chose last, of at most 64 outputs."""

    def alignment(self, batch: Batch, heads: tuple[tuple[int, int], ...], frames: int) -> Float32Array:
        """Like ``step``, of rows of one source; gives (heads, rows, frames): how they attend to its first frames."""

    def smooth(self, weights: Float32Array) -> Float32Array:
        """Attention (heads, rows, frames) smoothed over frames and averaged over heads: (rows, frames)."""

    def warp(self, gains: Float32Array) -> tuple[Int32Array, Int32Array]:
        """Rows and frames of the monotone path through (rows, frames) with the largest sum."""
