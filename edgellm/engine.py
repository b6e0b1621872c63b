"""The engine: turns prompts into tokens with one executor, for any number of threads at once.

Each request is a ``CacheSequence`` (its tokens and where they lie in the cache) and a ``_Writer`` (how logits become
text). The executor is used for one step at a time: a thread takes its turn, runs one chunk of its prompt or one token,
and lets the next thread go on, so requests advance side by side. A step takes rows of several sequences, so a later
scheduler can put what several threads want into one step without touching either class.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from edgellm.cache import PagedCache, blocks_for
from edgellm.errors import ContextOverflowError, EdgeLLMError, InvalidSettingError, OutOfMemoryError
from edgellm.locks import ForkAwareLock
from edgellm.memory import available_bytes, format_bytes
from edgellm.platforms.batch import BLOCK_TOKENS, Batch, Executor, Float32Array
from edgellm.results import FinishReason, Step, Timings
from edgellm.sampling import Sampler, Sampling, log_softmax, top_logprobs
from edgellm.stop_strings import StopStrings

if TYPE_CHECKING:
    from edgellm.tokenizer import Tokenizer

LOGITS_CHUNK_BYTES = 32 << 20
"""Most bytes of logits that one step of ``Engine.logits`` asks the executor for."""


@dataclass(frozen=True)
class Request:
    """What a caller wants from one generation; see ``LLM.generate``."""

    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    logprobs: int = 0
    cancel: threading.Event | None = None
    scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InvalidSettingError: one is negative or not an integer.
        """
        for name, value in (("max_tokens", self.max_tokens), ("logprobs", self.logprobs)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise InvalidSettingError(f"{name} is {value!r}", "give a whole number that is not negative")


class CacheSequence:
    """The tokens of one request, how many of them are computed, and the cache blocks that hold those."""

    __slots__ = (
        "_position",
        "_single",
        "_token",
        "blocks",
        "cached",
        "computed",
        "prompt_tokens",
        "remember",
        "scales",
        "tokens",
    )

    def __init__(self, tokens: Sequence[int], remember: bool = True, scales: tuple[float, ...] = ()) -> None:
        self.scales = scales
        self.tokens = list(tokens)
        self.prompt_tokens = len(self.tokens)
        self.remember = remember
        self.computed = 0
        self.cached = 0
        self.blocks: list[int] = []
        self._token = np.zeros(1, np.int32)
        self._position = np.zeros(1, np.int32)
        self._single: Batch | None = None

    def next_rows(self, rows: int, outputs: int) -> Batch:
        """The batch that computes the next ``rows`` tokens, with the logits of the last ``outputs`` of them."""
        if rows == 1 and outputs == 1:
            return self._next_row()
        positions = np.arange(self.computed, self.computed + rows, dtype=np.int32)
        return Batch(
            tokens=np.array(self.tokens[self.computed : self.computed + rows], np.int32),
            positions=positions,
            sequences=np.zeros(rows, np.int32),
            block_tables=np.array([self.blocks], np.int32),
            outputs=np.arange(rows - outputs, rows, dtype=np.int32),
            scales=self.scales,
        )

    def _next_row(self) -> Batch:
        """Decoding uses the same arrays again and again: building a batch would cost more than all else here."""
        batch = self._single
        if batch is None or batch.block_tables.shape[1] != len(self.blocks):
            zero = np.zeros(1, np.int32)
            table = np.array([self.blocks], np.int32)
            batch = self._single = Batch(self._token, self._position, zero, table, zero, self.scales)
        self._token[0] = self.tokens[self.computed]
        self._position[0] = self.computed
        return batch


class _Writer:
    """How the logits of one request become tokens and text: sampler, detokenizer, stop strings."""

    def __init__(self, tokenizer: Tokenizer, vocabulary_size: int, prompt: Sequence[int], request: Request) -> None:
        self._ends = tokenizer.end_of_generation
        self._sampler = Sampler(
            request.sampling,
            vocabulary_size,
            prompt,
            end_of_generation=self._ends,
            token_text=tokenizer.token_bytes,
            encode=partial(tokenizer.encode, add_special=False, parse_special=True),
        )
        self._decoder = tokenizer.stream(special=False, after=prompt)
        self._stops = StopStrings(request.stop)
        # Special tokens are not shown, so their names can only be met as tokens.
        named = ((tokenizer.token_id(stop), stop) for stop in request.stop)
        self._stop_tokens = {token: stop for token, stop in named if token is not None and tokenizer.is_special(token)}
        self._stop_text: str | None = None
        self._top = min(request.logprobs, vocabulary_size)
        self._limit = request.max_tokens
        self.count = 0

    def write(self, logits: Float32Array, room: bool) -> Step:
        """Choose a token; the step has a finish reason if it is the last, as it is without ``room`` for another."""
        token = self._sampler.sample(logits)
        self._sampler.accept(token)
        self.count += 1
        finish: FinishReason | None = None
        text = ""
        if token in self._stop_tokens:
            finish, self._stop_text = "stop", self._stop_tokens[token]
        elif token in self._ends:
            finish = "stop"
        else:
            text = self._stops.push(self._decoder.push(token))
            if self._stops.matched is not None:
                finish = "stop"
            elif not room or self.count == self._limit:
                finish = "length"
        if finish is not None:
            text, finish = self._finish(text, finish)
        logprob, top = self._logprobs(logits, token) if self._top else (None, ())
        return Step(text, token, logprob, top, finish, stop_text=self._stop_text)

    def end(self, finish: FinishReason) -> Step:
        """A last step without a token."""
        text, finish = self._finish("", finish)
        return Step(text, None, finish_reason=finish, stop_text=self._stop_text)

    def _finish(self, text: str, finish: FinishReason) -> tuple[str, FinishReason]:
        text += self._stops.push(self._decoder.flush())
        text += self._stops.flush()
        if self._stops.matched is None:
            return text, finish
        self._stop_text = self._stops.matched
        return text, "stop"

    def _logprobs(self, logits: Float32Array, token: int) -> tuple[float, tuple[tuple[int, float], ...]]:
        logprobs = log_softmax(logits)
        return float(logprobs[token]), tuple(top_logprobs(logprobs, self._top))


class Engine:
    """Runs requests on one executor. All methods may be called from any thread."""

    def __init__(
        self,
        executor: Executor,
        tokenizer: Tokenizer,
        context_length: int,
        blocks: int | None = None,
        chunk_rows: int | None = None,
    ) -> None:
        """Reserve the cache.

        Args:
            executor: runs the model; the engine owns it from now on and closes it.
            tokenizer: of the same model.
            context_length: most tokens of one request, prompt and answer together.
            blocks: size of the cache; by default just one full context.
            chunk_rows: most tokens of a prompt computed in one step; by default all that the executor can. Smaller
                chunks let others have their turn, and cancelling take effect, sooner.
        """
        self.context_length = context_length
        self.executor = executor
        self._tokenizer = tokenizer
        self._vocabulary_size = executor.graph.vocabulary_size
        # Some models compute more logits than there are tokens, to round the number up.
        self._tokens = min(self._vocabulary_size, tokenizer.vocabulary_size)
        blocks = blocks_for(context_length) if blocks is None else blocks
        executor.reserve(blocks)
        self.cache = PagedCache(blocks, executor.copy_block)
        self._chunk_rows = max(1, min(chunk_rows or executor.max_rows, executor.max_rows))
        # Two locks make the turns fair: who wants the next turn waits at the gate, and whoever just had one queues up
        # behind. A single lock would let a thread that comes back at once starve all others.
        self._gate = ForkAwareLock()
        self._step_lock = ForkAwareLock()
        # Sequences that ended, to be given back at the next turn: an abandoned stream is finalized by the garbage
        # collector, possibly inside a turn of the same thread, where waiting for the lock would never end.
        self._retired: deque[CacheSequence] = deque()
        self._closed = False

    def check_open(self) -> None:
        """Raise EdgeLLMError if the engine was closed."""
        if self._closed:
            raise EdgeLLMError("the model is closed", "load it again with LLM.load")

    def prepare(self, prompt_ids: Sequence[int], spare: int = 1) -> list[int]:
        """Check a prompt; an empty one becomes the token that begins a text.

        Raises:
            InvalidSettingError: an id is not of the vocabulary, or the prompt is empty and the model has no such token.
            ContextOverflowError: the prompt leaves less than ``spare`` tokens of the context.
        """
        ids = list(prompt_ids)
        if not ids:
            begin = self._tokenizer.bos_id
            if begin is None:
                raise InvalidSettingError(
                    "the prompt is empty, and this model has no token that begins a text", "give a prompt"
                )
            ids = [begin]
        try:
            array = np.array(ids)
            valid = array.ndim == 1 and array.dtype.kind in "iu" and array.min() >= 0 and array.max() < self._tokens
        except (ValueError, TypeError, OverflowError):
            valid = False
        if not valid:
            raise InvalidSettingError(
                "a prompt of token ids holds something that is no id of this model",
                f"ids are whole numbers from 0 to {self._tokens - 1}",
            )
        if len(ids) > self.context_length:
            raise ContextOverflowError(len(ids), self.context_length)
        if len(ids) + spare > self.context_length:
            hint = "which leaves no room for an answer: shorten the prompt or load the model with a larger --context"
            raise ContextOverflowError(len(ids), self.context_length, hint)
        return [int(token) for token in ids]

    def stream(self, prompt_ids: Sequence[int], request: Request) -> Iterator[Step]:
        """Generate; the prompt is checked now, the work is done as the steps are taken.

        Raises:
            InvalidSettingError, ContextOverflowError: see ``prepare``; or a setting is wrong.
            OutOfMemoryError: (while iterating) running requests fill the whole cache.
            EdgeLLMError: (while iterating) the engine was closed.
        """
        self.check_open()
        prompt = self.prepare(prompt_ids, spare=0 if request.max_tokens == 0 else 1)
        writer = _Writer(self._tokenizer, self._tokens, prompt, request)
        return self._generate(prompt, request, writer)

    def logits(self, ids: Sequence[int], scales: tuple[float, ...] = ()) -> Float32Array:
        """Logits after each token, float32 (len(ids), vocabulary), computed from nothing; ``scales`` of adapters.

        Raises:
            OutOfMemoryError: the result does not fit the free memory.
        """
        self.check_open()
        if not len(ids):
            return np.empty((0, self._vocabulary_size), np.float32)
        sequence = CacheSequence(self.prepare(ids, spare=0), remember=False, scales=scales)
        row_bytes = 4 * self._vocabulary_size
        needed, free = len(ids) * row_bytes, available_bytes()
        if free is not None and needed > free:
            raise OutOfMemoryError(
                f"the logits of {len(ids)} tokens take {format_bytes(needed)}, {format_bytes(free)} are free",
                "ask for fewer tokens at a time",
            )
        result = np.empty((len(ids), self._vocabulary_size), np.float32)
        rows = max(1, min(self._chunk_rows, LOGITS_CHUNK_BYTES // row_bytes))
        try:
            for begin in range(0, len(ids), rows):
                part = result[begin : begin + rows]
                with self.turn():
                    self._compute(sequence, len(part), len(part), part)
        finally:
            self.retire(sequence)
        return result

    def memory(self) -> dict[str, int]:
        """The executor's bytes, and ``cache_used``: those of the cache that hold something."""
        with self.turn():
            return {**self.executor.memory(), "cache_used": self.cache.used * self.executor.block_bytes}

    def forget(self) -> None:
        """Drop all remembered prefixes; the next prompt is computed from its first token."""
        with self.turn():
            self.cache.forget()

    def close(self) -> None:
        """Give all memory back once the running step is done; requests under way end with an error."""
        if self._gate.torn or self._step_lock.torn:
            self._closed = True  # a forked child: the step will never be done here
            return
        with self._gate, self._step_lock:
            if not self._closed:
                self._closed = True
                self._retired.clear()
                self.executor.close()

    def _generate(self, prompt: list[int], request: Request, writer: _Writer) -> Iterator[Step]:
        sequence = CacheSequence(prompt, scales=request.scales)
        logits = np.empty(self._vocabulary_size, np.float32)
        try:
            begin = perf_counter()
            ready = self._prefill(sequence, request.cancel, logits)
            prompt_end = perf_counter()
            if not ready:
                step = writer.end("cancelled")
            elif request.max_tokens == 0:
                step = writer.end("length")
            else:
                step = self._write(sequence, writer, logits)
            generated_seconds = perf_counter() - prompt_end
            while step.finish_reason is None:
                yield step
                resumed = perf_counter()
                if request.cancel is not None and request.cancel.is_set():
                    step = writer.end("cancelled")
                else:
                    assert step.id is not None
                    sequence.tokens.append(step.id)
                    with self.turn():
                        self._compute(sequence, 1, 1, logits)
                    step = self._write(sequence, writer, logits)
                generated_seconds += perf_counter() - resumed
        finally:
            self.retire(sequence)
        timings = Timings(len(prompt), sequence.cached, prompt_end - begin, writer.count, generated_seconds)
        yield replace(step, timings=timings)

    def _prefill(self, sequence: CacheSequence, cancel: threading.Event | None, logits: Float32Array) -> bool:
        """Compute what is not cached of the prompt, chunk by chunk; False if it was cancelled."""
        total = sequence.prompt_tokens
        while sequence.computed < total:
            if cancel is not None and cancel.is_set():
                return False
            with self.turn():
                if not sequence.blocks:
                    # The last token is computed in any case: its logits are wanted.
                    sequence.blocks, sequence.computed = self.cache.open(sequence.tokens, total - 1, sequence.scales)
                    sequence.cached = sequence.computed
                rows = min(self._chunk_rows, total - sequence.computed)
                self._compute(sequence, rows, int(sequence.computed + rows == total), logits)
        return True

    def _write(self, sequence: CacheSequence, writer: _Writer, logits: Float32Array) -> Step:
        # The maximum is not a number if any value is none: a broken model must not pass for an answer.
        if not isfinite(logits.max()):
            raise EdgeLLMError("the model computed values that are not numbers", "the model file may be damaged")
        return writer.write(logits[: self._tokens], room=len(sequence.tokens) + 1 < self.context_length)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Have the executor and the cache to oneself for one step."""
        with self._gate:
            self._step_lock.acquire()
        try:
            self.check_open()
            while self._retired:
                self._settle(self._retired.popleft())
            yield
        finally:
            self._step_lock.release()

    def retire(self, sequence: CacheSequence) -> None:
        """A sequence has ended; what it holds is given back at the next turn."""
        self._retired.append(sequence)

    def _compute(self, sequence: CacheSequence, rows: int, outputs: int, logits: Float32Array) -> None:
        """Compute the next tokens of a sequence within a turn; the last ``outputs`` rows' logits go to ``logits``."""
        self.cache.extend(sequence.blocks, sequence.computed + rows)
        result = self.executor.step(sequence.next_rows(rows, outputs))
        if outputs:
            np.copyto(logits, result if logits.ndim == 2 else result[0])
        sequence.computed += rows
        if sequence.remember and sequence.computed == sequence.prompt_tokens:
            full = sequence.computed // BLOCK_TOKENS  # requests that begin alike can share these at once
            self.cache.remember(sequence.tokens[: full * BLOCK_TOKENS], sequence.blocks[:full], sequence.scales)

    def _settle(self, sequence: CacheSequence) -> None:
        """Give back what an ended sequence holds."""
        if sequence.remember:
            self.cache.remember(sequence.tokens[: sequence.computed], sequence.blocks, sequence.scales)
        self.cache.release(sequence.blocks)
        sequence.blocks = []
