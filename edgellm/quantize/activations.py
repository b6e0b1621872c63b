"""What a model's matrices are multiplied by, on a text: the statistics that quantization can be guided by.

The model runs in plain float32 on its decoded weights, so that what is seen is exact, whatever the weights' type.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import EdgeLLMError, InvalidSettingError
from edgellm.gguf import GGUFFile
from edgellm.graph import Graph, Linear, Operation, StackedLinear
from edgellm.memory import available_bytes
from edgellm.models import build_graph
from edgellm.platforms.batch import BLOCK_TOKENS, Batch
from edgellm.platforms.reference import Array, ReferenceExecutor, Values
from edgellm.tokenizer import Tokenizer
from edgellm.weights import WeightStore

Progress = Callable[[str, int, int], None]
Observe = Callable[[str, str, int | None, NDArray[np.float32]], None]
"""Called with a weight, the value it is multiplied with, which matrix of a stack it is (or None), and the rows
(float32, (rows, columns)) that it is multiplied by."""
ROWS = 2048
"""Most tokens of one step: decoding the weights is spread over all of them."""
LONGEST_TEXT = 256 << 20


class Watcher(ReferenceExecutor):
    """Runs a graph and shows what each matrix is multiplied by.

    Args:
        graph: the model.
        weights: its weights. They are kept once decoded if that takes no more than half of the free memory.
        observe: told.
    """

    max_rows = ROWS

    def __init__(self, graph: Graph, weights: WeightStore, observe: Observe) -> None:
        self._observe = observe
        super().__init__(graph, weights)
        free = available_bytes()
        values = sum(weights.info(name).rows * weights.info(name).columns for name in weights.names)
        self._keeps = free is None or 4 * values < free // 2

    def _evaluate(self, operation: Operation, values: Values, batch: Batch) -> Array:
        if isinstance(operation, Linear) and (operation.rows is None or operation.rows[0] == 0):
            self._observe(operation.weight, operation.x.name, None, values[operation.x.name])
        elif isinstance(operation, StackedLinear):
            self._observe_parts(operation, values)
        result = super()._evaluate(operation, values, batch)
        if not self._keeps:
            self._decoded.clear()
        return result

    def _observe_parts(self, operation: StackedLinear, values: Values) -> None:
        x = values[operation.x.name]
        parts = x.reshape(len(x), 1 if operation.shared else operation.parts, -1)
        for place in range(operation.parts):
            rows = parts[:, 0 if operation.shared else place]
            if operation.route is None:
                self._observe(operation.weight, operation.x.name, place, rows)
                continue
            numbers = values[operation.route.name][:, place].astype(np.int64)
            for number in np.unique(numbers).tolist():
                self._observe(operation.weight, operation.x.name, number, rows[numbers == number])


def read_text(path: str | os.PathLike[str]) -> str:
    """The text in a file.

    Raises:
        EdgeLLMError: it cannot be read, is not UTF-8 text, or larger than ``LONGEST_TEXT``.
    """
    try:
        if os.stat(path).st_size > LONGEST_TEXT:  # noqa: PTH116
            raise EdgeLLMError(f"{path} is larger than {LONGEST_TEXT >> 20} MB", "give a shorter text")
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            return file.read()
    except UnicodeDecodeError as error:
        raise EdgeLLMError(f"{path} is neither an importance matrix nor UTF-8 text: {error.reason}") from None
    except OSError as error:
        raise EdgeLLMError(f"cannot read {path}: {error.strerror}") from error


def chunks_of(file: GGUFFile, text: str, context: int, most: int | None) -> list[list[int]]:
    """A text as token ids, cut into chunks of ``context`` tokens; what does not fill one is left out.

    Where the model's texts begin with a token of their own, it stands in the place of each chunk's first, as in
    llama.cpp.

    Raises:
        EdgeLLMError: the text is shorter than one chunk.
    """
    tokenizer = Tokenizer.load(file)
    ids = tokenizer.encode(text)
    count = len(ids) // context
    if count == 0:
        raise EdgeLLMError(f"the text has {len(ids)} tokens, fewer than one chunk of {context}", "give a longer text")
    chunks = [ids[context * number : context * (number + 1)] for number in range(min(count, most or count))]
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        for chunk in chunks:
            chunk[0] = tokenizer.bos_id
    return chunks


def watch(file: GGUFFile, chunks: Sequence[Sequence[int]], observe: Observe, progress: Progress | None = None) -> None:
    """Run a model over chunks of tokens, all of the same length, each a text of its own.

    Raises:
        InvalidSettingError: a chunk is longer than the model's context.
        OutOfMemoryError: the cache does not fit.
    """
    length = len(chunks[0])
    graph = build_graph(file)
    if length > min(graph.context_length, ROWS):
        most = min(graph.context_length, ROWS)
        raise InvalidSettingError(f"chunks of {length} tokens are too long, at most {most} are possible")
    executor = Watcher(graph, WeightStore(file), observe)
    try:
        blocks = -(-length // BLOCK_TOKENS)
        together = ROWS // length
        executor.reserve(blocks * together)
        if progress is not None:
            progress("calibrate", 0, len(chunks))
        for first in range(0, len(chunks), together):
            executor.step(_batch(chunks[first : first + together], blocks))
            if progress is not None:
                progress("calibrate", min(first + together, len(chunks)), len(chunks))
    finally:
        executor.close()


def _batch(chunks: Sequence[Sequence[int]], blocks: int) -> Batch:
    length, count = len(chunks[0]), len(chunks)
    return Batch(
        np.array(chunks, np.int32).reshape(-1),
        np.tile(np.arange(length, dtype=np.int32), count),
        np.repeat(np.arange(count, dtype=np.int32), length),
        np.arange(count * blocks, dtype=np.int32).reshape(count, blocks),
        np.array([0], np.int32),  # nobody wants logits, but one row of them costs little
    )
