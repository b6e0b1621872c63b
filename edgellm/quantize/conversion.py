"""Quantizing a model file: rows are read, quantized on all cores and written, some megabytes at a time."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import CorruptFileError, EdgeLLMError
from edgellm.gguf import GGUFFile, TensorInfo, TensorType, decode, open_gguf
from edgellm.platforms.features import available_cores
from edgellm.quantize.codes import KINDS
from edgellm.quantize.gptq import Calibration, Compensation, calibrate, compensation, quantize_rows
from edgellm.quantize.imatrix import ImportanceMatrix, collect, is_matrix, read
from edgellm.quantize.mixtures import FLOAT_TYPES, find_mixture
from edgellm.quantize.plan import Plan, PlannedTensor, make_plan
from edgellm.quantize.rows import Bytes, Float32, RowQuantizer, ValueRangeError
from edgellm.quantize.settings import QuantizeSettings
from edgellm.splitting import padded, published, refuse_existing, zeros

Progress = Callable[[str, int, int], None]
"""Called with the stage ("quantize", ...), bytes or steps done, and of all."""
PIECE_VALUES = 1 << 20
"""Values that one thread quantizes at a time."""
Importance = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class QuantizedTensor:
    """What became of a tensor: ``source_type`` and ``type`` are names of tensor types."""

    name: str
    shape: tuple[int, ...]
    source_type: str
    type: str
    size_bytes: int


@dataclass(frozen=True)
class Quantized:
    """What was written, or would be.

    Attributes:
        paths: the files.
        type: the mixture.
        size_bytes: of all files.
        source_bytes: of the model's files.
        parameters: how many values the tensors have.
        bits_per_weight: bits of data for each value.
        tensors: in the order of the file.
        seconds: it took; 0 if nothing was written.
    """

    paths: tuple[Path, ...]
    type: str
    size_bytes: int
    source_bytes: int
    parameters: int
    bits_per_weight: float
    tensors: tuple[QuantizedTensor, ...]
    seconds: float


def quantize(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: QuantizeSettings,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> Quantized:
    """Write a model with its weights quantized. Either the whole file appears, or none.

    Args:
        model: the GGUF file, or any part of a split one.
        output: the file to write, or a folder for it.
        settings: how to quantize.
        progress: told how far it is.
        dry_run: only tell what would be written.

    Raises:
        ModelNotFoundError: a file is not there.
        CorruptFileError: a file breaks the rules of its format, or a weight is no finite number.
        EdgeLLMError: weights are quantized already, the output exists, or cannot be written.
    """
    began = time.monotonic()
    with open_gguf(model) as file:
        guide = _guide(file, settings)
        plan = make_plan(file, Path(output), settings, guide.keys)
        if not dry_run:
            refuse_existing(plan.paths, settings.force)  # before the model is run over a text
            guide = guide.complete(file, settings, progress)
            plan = make_plan(file, Path(output), settings, guide.keys)
            _write(file, plan, guide, settings, progress)
        return _result(file, plan, settings, 0.0 if dry_run else time.monotonic() - began)


@dataclass(frozen=True)
class _Guide:
    """What errors are weighed or compensated by: nothing, an importance matrix, the statistics of a text.

    Attributes:
        keys: what the file will say of it.
        importance: of the columns of weights, as far as it is known.
        calibration: of GPTQ.
    """

    keys: Mapping[str, str | int]
    importance: Importance
    calibration: Calibration | None = None

    def complete(self, file: GGUFFile, settings: QuantizeSettings, progress: Progress | None) -> _Guide:
        """With what takes running the model; the keys stay as long as they are."""
        keys, importance, calibration = self.keys, self.importance, None
        if settings.importance is not None and not importance:
            made = collect(file.path, settings.importance, chunks=settings.chunks, progress=progress)
            keys, importance = _importance_keys(settings.importance, made), made.importance()
        if settings.gptq is not None:
            calibration = calibrate(file, settings.gptq, settings.chunks, progress)
            keys = {**keys, **_gptq_keys(settings.gptq)}
        return _Guide(keys, importance, calibration)


def _guide(file: GGUFFile, settings: QuantizeSettings) -> _Guide:
    """What is known without running the model; of a text, the keys have their lengths."""
    keys: Mapping[str, str | int] = {}
    importance: Importance = {}
    if settings.importance is not None:
        matrix = ImportanceMatrix({}, (settings.importance,), 0, 0)
        if is_matrix(settings.importance):
            matrix = read(settings.importance)
            importance = matrix.importance()
        keys = _importance_keys(settings.importance, matrix)
    if settings.gptq is not None:
        keys = {**keys, **_gptq_keys(settings.gptq)}
    return _Guide(keys, importance)


def _importance_keys(name: str, matrix: ImportanceMatrix) -> dict[str, str | int]:
    """What llama.cpp's quantizer writes of an importance matrix."""
    return {
        "quantize.imatrix.file": name,
        "quantize.imatrix.dataset": matrix.datasets[-1] if matrix.datasets else "",
        "quantize.imatrix.entries_count": len(matrix.entries),
        "quantize.imatrix.chunks_count": matrix.chunk_count,
    }


def _gptq_keys(name: str) -> dict[str, str | int]:
    return {"quantize.gptq.dataset": name}


def _result(file: GGUFFile, plan: Plan, settings: QuantizeSettings, seconds: float) -> Quantized:
    return Quantized(
        plan.paths,
        find_mixture(settings.type).name,
        plan.size_bytes,
        file.size_bytes,
        plan.parameters,
        plan.bits_per_weight,
        tuple(
            QuantizedTensor(
                tensor.source.name,
                tensor.source.shape,
                tensor.source.type.name,
                tensor.target.type.name,
                tensor.target.size_bytes,
            )
            for tensor in plan.tensors
        ),
        seconds,
    )


def _write(file: GGUFFile, plan: Plan, guide: _Guide, settings: QuantizeSettings, progress: Progress | None) -> None:
    if any(path.exists() and any(path.samefile(own) for own in file.paths) for path in plan.paths):
        raise EdgeLLMError("the output is the model itself", "choose another output")
    with published(plan.paths, plan.size_bytes, settings.force) as temporary:
        threads = settings.threads or len(available_cores())
        with _Stream(file, plan, guide, threads, progress) as stream:
            for shard, path in zip(plan.shards, temporary, strict=True):
                with path.open("xb") as out:
                    header = b"".join(shard.header())
                    out.write(header + bytes(shard.data_offset - len(header)))
                    for tensor in shard.tensors:
                        stream.write(tensor.name, out)
                        for piece in zeros(padded(tensor.size_bytes, shard.alignment) - tensor.size_bytes):
                            out.write(piece)
                    out.flush()
                    os.fsync(out.fileno())
        _check(plan, temporary[0])
        file.close()  # some systems replace no open file


def _check(plan: Plan, first: Path) -> None:
    """Open what was written, as loading it does, and compare it with what was planned.

    Raises:
        CorruptFileError: it is not what it should be.
    """
    with open_gguf(first) as made:
        if made.size_bytes != plan.size_bytes or any(
            (tensor.target.name, tensor.target.type, tensor.target.shape) != (own.name, own.type, own.shape)
            for tensor, own in zip(plan.tensors, made.tensors.values(), strict=True)
        ):
            raise CorruptFileError("what was written is not what was to be written", "check the disk")


@dataclass(frozen=True)
class _Piece:
    """Some rows of a tensor, with the importance of their columns if there is one."""

    tensor: PlannedTensor
    first: int
    end: int
    importance: Float32 | None


class _Stream:
    """Quantizes ahead of the writing, a few pieces at most; the tensors are written in the order of the plan."""

    def __init__(self, file: GGUFFile, plan: Plan, guide: _Guide, threads: int, progress: Progress | None) -> None:
        self._file = file
        self._progress = progress
        self._threads = threads
        self._total, self._written = sum(tensor.target.size_bytes for tensor in plan.tensors), 0
        by_part = sorted(plan.tensors, key=lambda tensor: tensor.source.part if len(plan.shards) > 1 else 0)
        self._pieces = {tensor.source.name: list(_pieces(tensor, guide.importance)) for tensor in by_part}
        self._work = iter([piece for pieces in self._pieces.values() for piece in pieces])
        self._compensations = _Compensations(guide.calibration)
        types = {
            (piece.tensor.target.type, piece.importance is not None or self._compensations.has(piece.tensor))
            for pieces in self._pieces.values()
            for piece in pieces
            if piece.tensor.changes
        }
        self._quantizer = RowQuantizer(types, progress)
        self._pool = ThreadPoolExecutor(threads, "edgellm-quantize")
        self._ahead: deque[Future[Bytes]] = deque()

    def write(self, name: str, out: IO[bytes]) -> None:
        """Write the bytes of a tensor."""
        for _ in self._pieces[name]:
            while len(self._ahead) < 2 * self._threads and (work := next(self._work, None)) is not None:
                self._ahead.append(self._pool.submit(self._made, work))
            data = self._ahead.popleft().result()
            out.write(data.data)
            self._written += data.nbytes
            if self._progress is not None:
                self._progress("quantize", self._written, self._total)
        self._file.release(name)

    def _made(self, piece: _Piece) -> Bytes:
        tensor = piece.tensor
        source, name = tensor.source.type, tensor.source.name
        raw = self._file.raw(name)[piece.first : piece.end]
        if not tensor.changes:
            return self._with_tail(raw, piece)
        if source.tail_bytes:  # of I2_S, whose rows do not tell the scale
            values = self._file.decode(name, slice(piece.first, piece.end))
            raw, source = values.view(np.uint8), TensorType.F32
        try:
            known = self._compensations.find(tensor)
            if known is None:
                return self._quantizer.quantize(raw, source, tensor.target.type, piece.importance)
            if piece.importance is not None:
                known = replace(known, importance=piece.importance)
            return quantize_rows(decode(raw, source), tensor.target.type, known, self._quantizer)
        except ValueRangeError as problem:
            raise EdgeLLMError(f"tensor {name} {problem.message}", problem.hint) from None

    def _with_tail(self, raw: Bytes, piece: _Piece) -> Bytes:
        """Rows as they are, the last ones with what stands behind them in I2_S."""
        source = piece.tensor.source
        if not source.type.tail_bytes or piece.end < source.rows:
            return raw
        tail = np.zeros(source.type.tail_bytes // 4, np.float32)
        tail[0] = self._file.scale(source.name)
        return np.concatenate([raw.reshape(-1), tail.view(np.uint8)])

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)


class _Compensations:
    """How errors are compensated, of the weights that are being quantized; what took time to find is kept a while."""

    def __init__(self, calibration: Calibration | None) -> None:
        self._calibration = calibration
        self._lock = threading.Lock()
        self._kept: dict[str, Compensation | None] = {}

    def has(self, tensor: PlannedTensor) -> bool:
        """Whether the errors of a weight are compensated, if its statistics allow it."""
        if self._calibration is None or not tensor.changes or tensor.target.type not in KINDS:
            return False
        return len(tensor.source.shape) == 2 and self._calibration.find(tensor.source.name) is not None

    def find(self, tensor: PlannedTensor) -> Compensation | None:
        if not self.has(tensor):
            return None
        assert self._calibration is not None
        name = self._calibration.inputs[tensor.source.name]
        with self._lock:
            if name not in self._kept:
                if len(self._kept) >= 3:
                    self._kept.pop(next(iter(self._kept)))
                self._kept[name] = compensation(self._calibration.hessians[name])
            return self._kept[name]


def _pieces(tensor: PlannedTensor, importance: Importance) -> Iterator[_Piece]:
    """The rows of a tensor, those of each matrix of a stack by themselves."""
    source = tensor.source
    weights = importance.get(source.name) if tensor.changes and tensor.target.type not in FLOAT_TYPES else None
    matrices = math.prod(source.shape[:-2]) if len(source.shape) > 2 else 1
    if weights is not None:
        weights = _fitting(weights, source, matrices)
    count = matrices if weights is not None else 1
    rows = source.rows // max(1, count)
    step = max(1, PIECE_VALUES // max(1, source.columns))
    for number in range(count):
        own = None if weights is None else weights[number]
        for first in range(0, rows, step):
            start = number * rows
            yield _Piece(tensor, start + first, start + min(rows, first + step), own)


def _fitting(weights: Float32, source: TensorInfo, matrices: int) -> Float32:
    """The importance of each column of each matrix, (matrices, columns); one of a single matrix serves all.

    Raises:
        EdgeLLMError: it is that of another model.
    """
    flat = weights.reshape(-1)
    if flat.size == source.columns:
        return np.broadcast_to(flat, (matrices, source.columns))
    if flat.size != matrices * source.columns:
        raise EdgeLLMError(
            f"the importance matrix has {flat.size} values for tensor {source.name}, "
            f"expected {matrices * source.columns}",
            "it was made for another model: make one of this model with 'edgellm imatrix'",
        )
    return flat.reshape(matrices, source.columns)
