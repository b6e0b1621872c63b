"""How probable a model finds the tokens of given texts: what perplexity, divergence and multiple choice are made of.

Texts are computed side by side, whole ones in one step as far as they fit, and of every row of logits only a few
numbers are kept, so memory does not grow with the vocabulary or the texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from edgellm.engine import CacheSequence, Engine
from edgellm.errors import EdgeLLMError, InvalidSettingError
from edgellm.platforms.batch import BLOCK_TOKENS, Batch, Int32Array
from edgellm.platforms.scores import RowDivergence, RowScores


@dataclass(frozen=True)
class ScoredText:
    """A text whose tokens are to be scored.

    Attributes:
        tokens: ids of the whole text.
        first: the first token whose probability is wanted, from 1 to the number of tokens; that number: of none.
        remember: keep what is computed in the cache, and take over what is there: for texts that begin alike.
    """

    tokens: Sequence[int]
    first: int = 1
    remember: bool = False

    def __post_init__(self) -> None:
        """Check ``first``.

        Raises:
            InvalidSettingError: it is out of range.
        """
        if not 1 <= self.first <= len(self.tokens):
            raise InvalidSettingError(
                f"of a text of {len(self.tokens)} tokens those from {self.first} on were to be scored",
                "the first of all cannot be: nothing comes before it",
            )

    @property
    def rows(self) -> int:
        """Tokens that must be computed: the last one is only predicted."""
        return len(self.tokens) - (self.first < len(self.tokens))

    @property
    def new_rows(self) -> int:
        """The same without those that the cache may hold already."""
        return self.rows - (self.first - 1 if self.remember else 0)


def score_texts(engine: Engine, texts: Iterable[ScoredText], scales: tuple[float, ...] = ()) -> Iterator[RowScores]:
    """Scores of each text, in order.

    Raises:
        InvalidSettingError, ContextOverflowError, OutOfMemoryError, EdgeLLMError: as for ``Engine.stream``.
    """
    for group in _groups(texts, engine.executor.max_rows, engine):
        with _Group(engine, group, scales) as lane:
            parts: list[list[RowScores]] = [[] for _ in group]
            while lane.unfinished:
                with engine.turn():
                    lane.begin_step()
                    for text, rows, targets in lane.outputs():
                        parts[text].append(engine.executor.score(rows, targets))
        for found in parts:
            yield _checked(_joined(found))


def compare_texts(engine: Engine, base: Engine, texts: Iterable[ScoredText]) -> Iterator[RowDivergence]:
    """What a model makes of each text, and how far that is from a base with the same vocabulary.

    Raises:
        InvalidSettingError: the vocabularies have different sizes, or both are one engine.
        ContextOverflowError, OutOfMemoryError, EdgeLLMError: as for ``Engine.stream``.
    """
    sizes = [one.executor.graph.vocabulary_size for one in (base, engine)]
    if sizes[0] != sizes[1]:
        raise InvalidSettingError(
            f"the models have vocabularies of {sizes[0]} and {sizes[1]} tokens", "compare models of one family"
        )
    if base is engine:
        raise InvalidSettingError("a model was to be compared with itself", "load it twice")
    limit = min(one.executor.max_rows for one in (base, engine))
    outputs = min(one.executor.max_outputs for one in (base, engine))
    for group in _groups(texts, limit, engine, base):
        with ExitStack() as stack:
            theirs, ours = (stack.enter_context(_Group(one, group, (), limit)) for one in (base, engine))
            parts: list[list[RowDivergence]] = [[] for _ in group]
            while ours.unfinished:
                with base.turn(), engine.turn():
                    theirs.begin_step()
                    ours.begin_step()
                    for text, rows, targets in ours.outputs(outputs):
                        logits = base.executor.logits_of(rows)
                        parts[text].append(engine.executor.compare(rows, targets, logits))
        for found in parts:
            yield RowDivergence(
                _checked(_joined([part.base for part in found])),
                _checked(_joined([part.own for part in found])),
                np.concatenate([np.zeros(0), *(part.divergence for part in found)]),
            )


def _joined(parts: Sequence[RowScores]) -> RowScores:
    return RowScores(
        np.concatenate([np.zeros(0), *(part.logprobs for part in parts)]),
        np.concatenate([np.zeros(0, np.int32), *(part.best for part in parts)]),
    )


def _checked(scores: RowScores) -> RowScores:
    if np.isnan(scores.logprobs).any():
        raise EdgeLLMError("the model computed values that are not numbers", "the model file may be damaged")
    return scores


def _groups(texts: Iterable[ScoredText], limit: int, *engines: Engine) -> Iterator[list[ScoredText]]:
    """Texts that are computed together: as many in a row as one step and the caches hold, at least one."""
    room = min(engine.cache.capacity for engine in engines)
    group: list[ScoredText] = []
    rows = blocks = 0
    for text in texts:
        needed = -(-text.rows // BLOCK_TOKENS)
        if group and (rows + text.new_rows > limit or blocks + needed > room):
            yield group
            group, rows, blocks = [], 0, 0
        group.append(text)
        rows, blocks = rows + text.new_rows, blocks + needed
    if group:
        yield group


class _Group:
    """Texts that one engine computes together, a step at a time; a context manager that gives the cache back."""

    def __init__(
        self, engine: Engine, texts: Sequence[ScoredText], scales: tuple[float, ...], limit: int | None = None
    ) -> None:
        self._engine, self._texts, self._scales = engine, texts, scales
        self._limit = limit or engine.executor.max_rows
        self._sequences = []
        for text in texts:
            ids = engine.prepare(text.tokens, spare=0)
            self._sequences.append(CacheSequence(ids[: text.rows], text.remember, scales))
        self._step: list[tuple[int, int, int]] = []  # text, its first position in the step, and the end

    def __enter__(self) -> _Group:
        return self

    def __exit__(self, *_: object) -> None:
        for sequence in self._sequences:
            self._engine.retire(sequence)

    @property
    def unfinished(self) -> bool:
        """Whether tokens are left to compute."""
        return any(sequence.computed < sequence.prompt_tokens for sequence in self._sequences)

    def begin_step(self) -> None:
        """Compute the next tokens of each text, as many as a step holds; within a turn of the engine."""
        left, self._step = self._limit, []
        for number, sequence in enumerate(self._sequences):
            if self._texts[number].remember and not sequence.blocks:
                known = self._texts[number].first - 1  # the rows from there on are wanted
                sequence.blocks, sequence.computed = self._engine.cache.open(
                    sequence.tokens, min(known, sequence.prompt_tokens - 1), self._scales
                )
            rows = min(left, sequence.prompt_tokens - sequence.computed)
            if rows:
                self._engine.cache.extend(sequence.blocks, sequence.computed + rows)
                self._step.append((number, sequence.computed, sequence.computed + rows))
                left -= rows
        self._engine.executor.begin(self._batch())
        for number, _, end in self._step:
            self._sequences[number].computed = end

    def outputs(self, most: int | None = None) -> Iterator[tuple[int, Int32Array, Int32Array]]:
        """Of the step that was begun: the text, rows of the step whose logits are wanted, and the token after each."""
        most, at = most or self._engine.executor.max_outputs, 0
        for number, begin, end in self._step:
            text = self._texts[number]
            wanted = np.arange(max(begin, text.first - 1), min(end, len(text.tokens) - 1), dtype=np.int32)
            targets = np.array(text.tokens, np.int32)[wanted + 1]
            for start in range(0, len(wanted), most):
                part = slice(start, start + most)
                yield number, wanted[part] - begin + at, targets[part]
            at += end - begin

    def _batch(self) -> Batch:
        sequences = [self._sequences[number] for number, _, _ in self._step]
        spans = [(begin, end) for _, begin, end in self._step]
        tables = np.zeros((len(sequences), max(len(sequence.blocks) for sequence in sequences)), np.int32)
        for table, sequence in zip(tables, sequences, strict=True):
            table[: len(sequence.blocks)] = sequence.blocks
        tokens = [sequence.tokens[begin:end] for sequence, (begin, end) in zip(sequences, spans, strict=True)]
        counts = [end - begin for begin, end in spans]
        return Batch(
            tokens=np.concatenate([np.array(part, np.int32) for part in tokens]),
            positions=np.concatenate([np.arange(begin, end, dtype=np.int32) for begin, end in spans]),
            sequences=np.repeat(np.arange(len(sequences), dtype=np.int32), counts),
            block_tables=tables,
            outputs=self._output_rows(),
            scales=self._scales,
        )

    def _output_rows(self) -> Int32Array:
        found = [rows for _, rows, _ in self.outputs()]
        return np.concatenate(found) if found else np.zeros(0, np.int32)
