"""An executor and a tokenizer small enough to check every cache slot they touch."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Sequence

import numpy as np

from edgellm.graph import CacheLayer, Graph, Value
from edgellm.platforms.batch import BLOCK_TOKENS, Batch, Float32Array


class FakeExecutor:
    """Stores in each slot its token, its position and a digest of everything before it, as a real cache does.

    Logits depend on the whole visible sequence, read back through the block table: a wrong table, a slot overwritten
    by somebody else or a slot computed after other tokens fails an assertion or gives other logits.
    """

    def __init__(
        self,
        vocabulary_size: int = 64,
        context_length: int = 512,
        max_rows: int = 16,
        script: Callable[[tuple[int, ...]], int] | None = None,
        step_seconds: float = 0.0,
    ) -> None:
        self.graph = Graph("fake", (), (CacheLayer(1, 1, 1),), Value("logits", vocabulary_size), context_length, 1)
        self.max_rows = max_rows
        self.block_bytes = BLOCK_TOKENS * 16
        self.script = script
        self.step_seconds = step_seconds
        self.rows = 0
        self.steps: list[tuple[int, ...]] = []  # the whole sequence each step ended with
        self.copies = 0
        self.closed = False
        self._busy = False

    def reserve(self, blocks: int) -> None:
        self.tokens = np.full((blocks, BLOCK_TOKENS), -1, np.int64)
        self.digests = np.zeros((blocks, BLOCK_TOKENS), np.int64)

    def step(self, batch: Batch) -> Float32Array:
        assert not self.closed, "step after close"
        assert not self._busy, "two steps at once"
        self._busy = True
        try:
            return self._step(batch)
        finally:
            self._busy = False

    def _step(self, batch: Batch) -> Float32Array:
        rows = len(batch.tokens)
        assert 1 <= rows <= self.max_rows
        for array in (batch.tokens, batch.positions, batch.sequences, batch.block_tables, batch.outputs):
            assert array.dtype == np.int32
        if self.step_seconds:
            time.sleep(self.step_seconds)
        self.rows += rows
        visible: list[tuple[int, ...]] = []
        for token, position, sequence in zip(batch.tokens, batch.positions, batch.sequences, strict=True):
            table = batch.block_tables[sequence]
            before = self._read(table, int(position))
            visible.append((*before, int(token)))
            slot = table[position // BLOCK_TOKENS], position % BLOCK_TOKENS
            self.tokens[slot] = token
            self.digests[slot] = hash(visible[-1])
        self.steps.append(visible[-1])
        return np.array([self.logits_after(visible[row]) for row in batch.outputs], np.float32)

    def _read(self, table: np.ndarray, length: int) -> tuple[int, ...]:
        """The tokens of the first ``length`` positions, each checked to have been computed after just these."""
        slots = [(table[position // BLOCK_TOKENS], position % BLOCK_TOKENS) for position in range(length)]
        tokens = tuple(int(self.tokens[slot]) for slot in slots)
        if length:
            assert self.digests[slots[-1]] == hash(tokens), "a slot holds what was computed after other tokens"
        return tokens

    def logits_after(self, tokens: Sequence[int]) -> Float32Array:
        """What the fake model computes after these tokens."""
        if self.script is not None:
            logits = np.zeros(self.graph.vocabulary_size, np.float32)
            logits[self.script(tuple(tokens))] = 20
            return logits
        generator = np.random.default_rng(abs(hash(tuple(tokens))))
        return generator.standard_normal(self.graph.vocabulary_size).astype(np.float32)

    def copy_block(self, source: int, destination: int) -> None:
        assert source != destination
        self.copies += 1
        self.tokens[destination] = self.tokens[source]
        self.digests[destination] = self.digests[source]

    def memory(self) -> dict[str, int]:
        return {"weights": 0, "cache": self.tokens.nbytes + self.digests.nbytes, "buffers": 0}

    def close(self) -> None:
        self.closed = True


class FakeTokenizer:
    """Ids are indices into a list of byte strings; ``ends`` end a generation."""

    add_bos = add_eos = False
    eos_id = None

    def __init__(
        self, pieces: Sequence[bytes], ends: Sequence[int] = (), bos_id: int | None = None, special: Sequence[int] = ()
    ) -> None:
        self.pieces = list(pieces)
        self.special = frozenset(special)
        self.vocabulary_size = len(self.pieces)
        self.end_of_generation = frozenset(ends)
        self.bos_id = bos_id

    def token_bytes(self, token: int) -> bytes:
        return self.pieces[token]

    def token_id(self, text: str) -> int | None:
        return self.pieces.index(text.encode()) if text.encode() in self.pieces else None

    def is_special(self, token: int) -> bool:
        return token in self.special

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return [self.pieces.index(bytes([byte])) for byte in text.encode()]

    def stream(self, special: bool = True, after: Sequence[int] = ()) -> FakeDecoder:
        return FakeDecoder([b"" if token in self.special else piece for token, piece in enumerate(self.pieces)])


class FakeDecoder:
    """Gives out whole characters only."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._pieces[token])

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)
