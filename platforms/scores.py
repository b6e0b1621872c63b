"""What an evaluation reads off rows of logits: how probable a given token is, which is the best, and how far two
models are apart. Rows of logits are long and many, so executors do this where the logits lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.records import SCORES
from edgellm.platforms.batch import Float32Array, Int32Array
from edgellm.platforms.cpu_parts import Int64Array, make_record

Float64Array = NDArray[np.float64]
KERNELS = ("scores.tokens", "scores.divergence")


@dataclass(frozen=True)
class RowScores:
    """Of rows of logits, each with a token of its own.

    Attributes:
        logprobs: (rows,), the natural logarithm of the token's probability; NaN where a logit is not a number.
        best: (rows,), the most probable token, the first of equals.
    """

    logprobs: Float64Array
    best: Int32Array


@dataclass(frozen=True)
class RowDivergence:
    """Rows of logits of a model and of the base it is compared with.

    Attributes:
        base: of the base.
        own: of the model.
        divergence: (rows,), sum over the vocabulary of p (log p - log q) for the base's p and the model's q (Kullback
            and Leibler 1951), in nats.
    """

    base: RowScores
    own: RowScores
    divergence: Float64Array


def score_rows(logits: Float32Array, targets: Int32Array) -> RowScores:
    """Scores in plain NumPy: the twin of the kernels."""
    logprobs = _log_softmax(logits)
    return RowScores(logprobs[np.arange(len(targets)), targets], logits.argmax(axis=1).astype(np.int32))


def compare_rows(logits: Float32Array, targets: Int32Array, base: Float32Array) -> RowDivergence:
    """The divergence in plain NumPy."""
    ours, theirs = _log_softmax(logits), _log_softmax(base)
    divergence = (np.exp(theirs) * (theirs - ours)).sum(axis=1)
    return RowDivergence(score_rows(base, targets), score_rows(logits, targets), divergence)


def _log_softmax(logits: Float32Array) -> Float64Array:
    wide = logits.astype(np.float64)
    shifted: Float64Array = wide - wide.max(axis=1, keepdims=True)
    logprobs: Float64Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logprobs


class CompiledScores:
    """Scores by the kernels, of at most ``rows`` rows at a time.

    Args:
        rows: most rows.
        addresses: of ``KERNELS``.
        run: runs a plan (see ``edgellm.kernels.team``) on all threads.
    """

    def __init__(self, rows: int, addresses: dict[str, int], run: Callable[[Int64Array], None]) -> None:
        self._addresses, self._run = addresses, run
        self._count = np.zeros(1, np.int64)
        self._targets = np.zeros(rows, np.int32)
        self._output = np.zeros((rows, 9), np.float32)

    def score(self, logits: Float32Array, targets: Int32Array) -> RowScores:
        """Of rows whose values lie side by side."""
        return _scores(self._call("scores.tokens", logits, targets, None))

    def compare(self, logits: Float32Array, targets: Int32Array, base: Float32Array) -> RowDivergence:
        """The same, with the base's logits for the same rows."""
        output = self._call("scores.divergence", logits, targets, base)
        # sum p (a - b) - log sum e^a + log sum e^b, of logits less their peaks; 0 where the rows are equal
        wide = output.astype(np.float64)
        divergence = wide[:, 8] / wide[:, 1] - (np.log(wide[:, 1]) - np.log(wide[:, 5]))
        return RowDivergence(_scores(output), _scores(output[:, 4:]), divergence)

    def _call(self, kernel: str, logits: Float32Array, targets: Int32Array, base: Float32Array | None) -> Float32Array:
        rows, width = logits.shape
        if base is not None and base.shape != logits.shape:
            raise ValueError(f"rows of shape {base.shape} cannot be compared with {logits.shape}")
        if any(array.strides[1] != 4 for array in (logits, base) if array is not None):
            raise ValueError("values of a row of logits do not lie side by side")
        if targets.shape != (rows,) or not 0 <= int(targets.min()) <= int(targets.max()) < width:
            raise ValueError(f"targets are not {rows} tokens of a vocabulary of {width}")
        self._count[0] = rows
        self._targets[:rows] = targets
        record = make_record(
            SCORES,
            rows=self._count.ctypes.data,
            width=width,
            logits=logits.ctypes.data,
            logits_stride=logits.strides[0],
            targets=self._targets.ctypes.data,
            output=self._output.ctypes.data,
            output_stride=self._output.strides[0],
            base=0 if base is None else base.ctypes.data,
            base_stride=0 if base is None else base.strides[0],
        )
        self._run(np.array([[self._addresses[kernel], record.ctypes.data, 0, 0]], np.int64))
        return self._output[:rows]


def _scores(output: Float32Array) -> RowScores:
    """From the four numbers that the kernels write for a row."""
    with np.errstate(all="ignore"):  # of a damaged model
        logprobs = output[:, 2].astype(np.float64) - output[:, 0] - np.log(output[:, 1].astype(np.float64))
    return RowScores(logprobs, output[:, 3:4].copy().view(np.int32)[:, 0])
