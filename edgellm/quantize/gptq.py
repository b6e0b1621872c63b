"""GPTQ: each column's rounding error is made up for by the columns that are still to be rounded.

What a matrix W does to its inputs X, not W itself, is to stay the same: with H = X^T X, the sum of e H e^T over the
errors e of the rows is made small. Columns are rounded one after the other, and each error is spread over the later
ones as the inverse of H says. Source: Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate post-training
quantization for generative pre-trained transformers", 2023 (algorithm 1, with the scales of a block found when its
first column is reached).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import EdgeLLMError, OutOfMemoryError
from edgellm.gguf import GGUFFile, TensorType
from edgellm.memory import available_bytes, format_bytes
from edgellm.quantize.activations import chunks_of, read_text, watch
from edgellm.quantize.codes import KINDS, levels, put_codes, scales_and_minima
from edgellm.quantize.rows import Bytes, RowQuantizer

Float32 = NDArray[np.float32]
Progress = Callable[[str, int, int], None]
CONTEXT = 512
DAMPING = 0.01
"""Of the mean diagonal of H, added to it, as in the paper."""
_STEP = 32
"""Columns whose errors are first spread among themselves."""


@dataclass(frozen=True)
class Calibration:
    """What weights are multiplied by: H = X^T X for each input.

    Attributes:
        inputs: name of a weight to the name of its input; weights that share an input share its H.
        hessians: name of an input to H, float32 (columns, columns).
        chunks: how many chunks of text were read.
    """

    inputs: Mapping[str, str]
    hessians: Mapping[str, Float32]
    chunks: int

    def find(self, weight: str) -> Float32 | None:
        """H of a weight; None where the text does not tell."""
        return self.hessians.get(self.inputs.get(weight, ""))


def calibrate(
    file: GGUFFile, text: str | os.PathLike[str], chunks: int, progress: Progress | None = None
) -> Calibration:
    """Run a model over a text and sum up X^T X of what its matrices are multiplied by.

    Stacks of matrices (experts) and the output matrix are left out.

    Raises:
        OutOfMemoryError: the sums do not fit the memory that is free.
        EdgeLLMError: the text cannot be read or is too short.
    """
    inputs: dict[str, str] = {}
    sums: dict[str, Float32] = {}
    first: dict[str, str] = {}  # input: the weight that counts it
    cut = chunks_of(file, read_text(text), CONTEXT, chunks)

    def observe(weight: str, value: str, matrix: int | None, rows: Float32) -> None:
        if matrix is not None or not weight.startswith("blk."):
            return
        inputs[weight] = value
        if first.setdefault(value, weight) != weight:
            return
        if value not in sums:
            sums[value] = _zeros(rows.shape[1])
        sums[value] += rows.T @ rows

    watch(file, cut, observe, progress)
    if any(not np.isfinite(total).all() for total in sums.values()):
        raise EdgeLLMError("the model's inner values are not finite numbers", "the model is damaged")
    return Calibration(inputs, sums, len(cut))


def _zeros(columns: int) -> Float32:
    size, free = 4 * columns * columns, available_bytes()
    if free is not None and size > free // 2:
        raise OutOfMemoryError(
            f"the statistics of another {columns} columns take {format_bytes(size)}, {format_bytes(free)} are free",
            "quantize without --gptq, or with --imatrix instead",
        )
    return np.zeros((columns, columns), np.float32)


@dataclass(frozen=True)
class Compensation:
    """What is needed to round the rows of a weight.

    Attributes:
        spread: upper triangular (columns, columns): the Cholesky factor of the inverse of H.
        importance: (columns,): the diagonal of H, by which scales are searched.
    """

    spread: Float32
    importance: Float32


def compensation(hessian: Float32) -> Compensation | None:
    """The factor that says how errors are spread; None where it cannot be had, since H is all zero or unusable."""
    matrix = hessian.astype(np.float64)
    diagonal = np.diagonal(matrix).copy()
    mean = diagonal.mean()
    if not mean > 0:
        return None
    matrix[np.diag_indices_from(matrix)] = np.maximum(diagonal, 1e-4 * mean) + DAMPING * mean
    try:
        inverse = np.linalg.inv(matrix)
        spread = np.linalg.cholesky((inverse + inverse.T) / 2).T
    except np.linalg.LinAlgError:
        return None
    if not np.isfinite(spread).all():
        return None
    return Compensation(spread.astype(np.float32), np.maximum(diagonal, 1e-4 * mean).astype(np.float32))


def quantize_rows(weights: Float32, kind: TensorType, known: Compensation, quantizer: RowQuantizer) -> Bytes:
    """Rows (rows, columns) in a type of ``codes.KINDS``, with errors compensated: uint8 (rows, bytes of a row)."""
    assert kind in KINDS
    work = weights.astype(np.float32, copy=True)
    rows, columns = work.shape
    size = kind.block_size
    out = np.empty((rows, columns // size, kind.block_bytes), np.uint8)
    table = levels(kind)
    middles = (table[1:] + table[:-1]) * np.float32(0.5)
    for block in range(columns // size):
        begin, end = block * size, (block + 1) * size
        part = np.ascontiguousarray(work[:, begin:end])
        blocks = quantizer.quantize(part.view(np.uint8), TensorType.F32, kind, known.importance[begin:end])
        # Transposed: what is done to a column is then done to numbers that lie side by side.
        scale, minimum = (np.ascontiguousarray(array.T) for array in scales_and_minima(blocks, kind))
        part = np.ascontiguousarray(part.T)
        codes = np.empty((size, rows), np.uint8)
        for start in range(0, size, _STEP):
            now, place = slice(start, start + _STEP), slice(begin + start, begin + start + _STEP)
            spread = known.spread[place, begin + start :]
            errors = _round(part[now], codes[now], scale[now], minimum[now], spread, (table, middles))
            part[start + _STEP :] -= spread[:, _STEP : size - start].T @ errors
            work[:, end:] -= errors.T @ spread[:, size - start :]
        put_codes(blocks, kind, np.ascontiguousarray(codes.T))
        out[:, block] = blocks
    return out.reshape(rows, -1)


def _round(
    part: Float32,
    codes: Bytes,
    scale: Float32,
    minimum: Float32,
    spread: Float32,
    table_and_middles: tuple[Float32, Float32],
) -> Float32:
    """Round some columns one after the other, each error spread over the later ones.

    Args:
        part: (columns, rows), the weights, transposed; changed.
        codes: (columns, rows), get the codes.
        scale, minimum: (columns, rows), what codes stand for.
        spread: (columns, columns and more), how errors are spread.
        table_and_middles: of all codes what they stand for, and the middles between.

    Returns:
        (columns, rows): the errors, divided by the diagonal of ``spread``.
    """
    table, middles = table_and_middles
    errors = np.empty_like(part)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(scale != 0, 1 / scale, 0)
    for column in range(len(part)):
        value = part[column]
        chosen = np.searchsorted(middles, (value - minimum[column]) * inverse[column])
        codes[column] = chosen
        rounded = scale[column] * table[chosen] + minimum[column]
        errors[column] = (value - rounded) / spread[column, column]
        part[column + 1 :] -= spread[column, column + 1 : len(part), None] * errors[column]
    return errors
