"""Loading the weights of a CPU executor: packed for the kernels, on all threads, while the caller does other things."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import OutOfMemoryError, UnsupportedModelError
from edgellm.graph import Attention, Graph, Linear, Norm, Route, StackedLinear
from edgellm.kernels.packing import (
    CONVERSIONS,
    FORMATS,
    LANES,
    RECIPES,
    PackCall,
    PackedMatrix,
    i2_s_to_two_bits,
    pack_calls,
    packed_bytes,
    packed_type,
    ternary_to_two_bits,
    to_q8_0,
)
from edgellm.memory import available_bytes, format_bytes
from edgellm.platforms.arena import Arena
from edgellm.platforms.cpu_parts import weight_key
from edgellm.platforms.threads import ThreadTeam
from edgellm.weights import WeightStore

BATCH_BYTES = 4 << 20
"""So much of the file is packed at a time and then let go: large weights must not be in memory twice."""
CONVERTED_BYTES = 64 << 20
"""The same for weights that are converted, as float32."""
_REPORT_SECONDS = 0.1
Progress = Callable[[str, int, int], None]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Plan:
    """What becomes of one weight: ``kind`` is its type in the file, ``target`` the one it is packed as.

    It has ``matrices`` of ``rows`` each, from row ``first`` of the tensor on.
    """

    key: str
    name: str
    kind: str
    target: str
    rows: int
    columns: int
    first: int = 0
    matrices: int = 1

    @property
    def bytes(self) -> int:
        return self.matrices * packed_bytes(self.target, self.rows, self.columns)

    def pieces(self) -> Iterator[tuple[int, int, int]]:
        """First row in the tensor and the one after the last of pieces that are packed together, and where to."""
        stacked = self.matrices > 1 and self.rows % LANES > 0  # each matrix begins with a group of its own
        count, rows = (self.matrices, self.rows) if stacked else (1, self.matrices * self.rows)
        for number in range(count):
            start = number * packed_bytes(self.target, rows, self.columns)
            for first, end in self._pieces(rows):
                place = start + packed_bytes(self.target, first, self.columns)
                yield self.first + number * rows + first, self.first + number * rows + end, place

    def _pieces(self, rows: int) -> Iterator[tuple[int, int]]:
        limit, row_bytes = CONVERTED_BYTES, 4 * self.columns
        if self.kind == self.target:
            recipe = RECIPES[self.target]
            limit, row_bytes = BATCH_BYTES, self.columns // FORMATS[recipe.format].values * recipe.block_bytes
        step = LANES * max(1, limit // (LANES * row_bytes))
        for first in range(0, rows, step):
            yield first, min(rows, first + step)


def read_vectors(graph: Graph, weights: WeightStore) -> dict[str, NDArray[np.float32]]:
    """Norm weights, biases and sinks, decoded."""
    names: set[str | None] = set()
    for operation in graph.operations:
        match operation:
            case Norm():
                names |= {operation.weight, operation.bias}
            case Linear() | StackedLinear() | Route():
                names.add(operation.bias)
            case Attention():
                names.add(operation.sinks)
            case _:
                pass
    return {name: weights.float32(name) for name in sorted(filter(None, names))}


def planned_matrices(
    weights: WeightStore, graph: Graph, types: Mapping[str, str]
) -> tuple[dict[str, PackedMatrix], int]:
    """The packed matrices without their contents, and the bytes these would take.

    Args:
        weights: of a model.
        graph: the same model's.
        types: names of types that tensors are to have, by the tensors' names; the others are as they are.

    Raises:
        UnsupportedModelError: a weight is not a matrix.
    """
    products = {weight_key(op): op for op in graph.operations if isinstance(op, Linear | StackedLinear)}
    plans = [_plan_weight(weights, operation, types.get(operation.weight)) for operation in products.values()]
    nothing = np.zeros(0, np.uint8)
    matrices = {
        plan.key: PackedMatrix(FORMATS[RECIPES[plan.target].format], plan.rows, plan.columns, nothing) for plan in plans
    }
    return matrices, sum(plan.bytes for plan in plans)


def _plan_weight(weights: WeightStore, operation: Linear | StackedLinear, kind: str | None = None) -> _Plan:
    name = operation.weight
    info = weights.info(name)
    kind = kind or info.type.name
    what, dimensions = ("a stack of matrices", 3) if isinstance(operation, StackedLinear) else ("a matrix", 2)
    if len(info.shape) != dimensions:
        raise UnsupportedModelError(f"tensor {name} has {len(info.shape)} dimensions where {what} is expected")
    matrices, first = info.shape[0] if dimensions == 3 else 1, 0
    rows, columns = info.shape[-2:]
    if isinstance(operation, Linear) and operation.rows is not None:
        first, end = operation.rows
        rows = end - first
    target = packed_type(kind)
    if kind in CONVERSIONS and columns % 32:
        target = "F32"
    if kind == "I2_S" and (columns % 256 or not _fits_half(weights.scale(name))):
        target = "F32"
    return _Plan(weight_key(operation), name, kind, target, rows, columns, first, matrices)


def _fits_half(scale: float) -> bool:
    """Whether half precision holds a scale with its usual accuracy."""
    return scale == 0 or 2.0**-14 <= abs(scale) <= 65504


class WeightLoader:
    """Packs weights in a thread of its own, which leads the team meanwhile.

    The matrices have their places from the start; what is in them counts after `finish`. ``kernels`` are the names of
    those that packing needs.

    Args:
        weights: where they come from; the file's pages are given back as they are done.
        graph: its products name which; they lie in memory in their order. A stack of matrices is kept as its first
            matrix would be, with the others behind it.

    Raises:
        OutOfMemoryError: there is not enough memory.
        UnsupportedModelError: a weight is not a matrix.
    """

    def __init__(self, weights: WeightStore, graph: Graph) -> None:
        self._weights = weights
        products = {weight_key(op): op for op in graph.operations if isinstance(op, Linear | StackedLinear)}
        self._plans = [_plan_weight(weights, operation) for operation in products.values()]
        for kind in sorted({plan.kind for plan in self._plans if plan.kind in CONVERSIONS}):
            logger.warning("weights of type %s have no kernel: converted to %s", kind, packed_type(kind))
        needed, free = sum(64 + plan.bytes for plan in self._plans), available_bytes()
        if free is not None and needed > free:
            raise OutOfMemoryError(
                f"the packed weights take {format_bytes(needed)}, {format_bytes(free)} of memory are free",
                "use a smaller model or quantization, or close other programs",
            )
        try:
            arena = Arena(needed)
            self.matrices = {
                plan.key: PackedMatrix(
                    FORMATS[RECIPES[plan.target].format], plan.rows, plan.columns, arena.take(plan.bytes)
                )
                for plan in self._plans
            }
        except MemoryError as error:
            raise OutOfMemoryError("the weights do not fit the memory", "use a smaller model") from error
        self.kernels = {f"pack.{plan.target}" for plan in self._plans}
        self.total_bytes = sum(plan.bytes for plan in self._plans)
        self._done = 0
        self._cancelled = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def start(self, team: ThreadTeam, addresses: Mapping[str, int]) -> None:
        """Begin to pack; until `finish` nobody else may use the team."""
        self._thread = threading.Thread(target=self._run, args=(team, addresses), name="edgellm-weights", daemon=True)
        self._thread.start()

    def finish(self, progress: Progress | None = None) -> None:
        """Wait until all is packed. Interrupted or not, the thread has ended when this returns or raises.

        Raises:
            OutOfMemoryError: converting a weight took more memory than there is.
        """
        assert self._thread is not None
        total = len(self._plans)
        try:
            if progress is not None:
                progress("weights", 0, total)
                while self._thread.is_alive():
                    self._thread.join(_REPORT_SECONDS)
                    if self._done < total:
                        progress("weights", self._done, total)
            self._thread.join()
        finally:
            self.stop()
        if isinstance(self._error, MemoryError):
            raise OutOfMemoryError("the weights do not fit the memory", "use a smaller model") from self._error
        if self._error is not None:
            raise self._error
        if progress is not None:
            progress("weights", total, total)

    def stop(self) -> None:
        """End the thread, whether or not all is packed."""
        self._cancelled = True
        if self._thread is not None:
            self._thread.join()

    def _run(self, team: ThreadTeam, addresses: Mapping[str, int]) -> None:
        try:
            for calls, names in self._batches():
                rows = [(addresses[call.kernel], call.record.ctypes.data, 0, 0) for call in calls]
                team.run(np.array(rows, np.int64).reshape(-1, 4))
                for name in names:
                    self._weights.release(name)
        except BaseException as error:
            self._error = error

    def _batches(self) -> Iterator[tuple[list[PackCall], list[str]]]:
        """Calls to run together, and the weights whose pages can be given back then."""
        calls: list[PackCall] = []
        names: list[str] = []
        held = 0
        for number, plan in enumerate(self._plans):
            memory = self.matrices[plan.key].data
            for first, end, place in plan.pieces():
                if self._cancelled:
                    return
                raw = self._raw_rows(plan, first, end)
                calls += pack_calls(raw, plan.target, plan.columns, memory[place:])
                names.append(plan.name)
                held += raw.nbytes
                if held >= BATCH_BYTES:
                    yield calls, names
                    calls, names, held = [], [], 0
                    self._done = number
        yield calls, names

    def _raw_rows(self, plan: _Plan, first: int, end: int) -> NDArray[np.uint8]:
        """Some rows of a weight in the encoding of the type it is packed as."""
        if plan.kind == plan.target:
            return self._weights.raw(plan.name)[first:end]
        if plan.kind == "I2_S":
            return i2_s_to_two_bits(self._weights.raw(plan.name)[first:end], self._weights.scale(plan.name))
        if plan.kind == "TQ1_0":
            return ternary_to_two_bits(self._weights.raw(plan.name)[first:end])
        values = self._weights.rows(plan.name, np.arange(first, end))
        if plan.target == "Q8_0":
            return to_q8_0(values, CONVERSIONS[plan.kind])
        return values.view(np.uint8).reshape(end - first, -1)
