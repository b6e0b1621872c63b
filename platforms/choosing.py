"""Choosing the likeliest tokens that the rules of timestamps allow: the rules, and NumPy's way of applying them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm.platforms.batch import Float32Array, Int32Array

RULES = 8
"""Numbers in a row's rules."""
BIAS, FIRST_TEXT, FIRST_TIMESTAMP, END, DECIDE = range(5)
"""What they are: the row of the bias; the first text token allowed; the first timestamp allowed and the one after the
last; and whether text is ruled out where all allowed timestamps together are likelier than each text token."""
MOST_CANDIDATES = 16


def allowed_log_probabilities(
    logits: Float32Array, bias: Float32Array, rules: Int32Array, timestamps: int
) -> NDArray[np.float64]:
    """Log-probabilities (rows, vocabulary) among the tokens that the rules allow; minus infinity for all others.

    Args:
        logits: (rows, vocabulary).
        bias: (kinds, vocabulary), added to the logits.
        rules: (rows, RULES).
        timestamps: number of the first timestamp.
    """
    values = logits.astype(np.float64) + bias[rules[:, BIAS], : logits.shape[1]]
    values[np.isnan(values)] = -np.inf
    numbers = np.arange(logits.shape[1])
    text = numbers < timestamps
    ruled_out = text & (numbers < rules[:, FIRST_TEXT, None])
    ruled_out |= ~text & ((numbers < rules[:, FIRST_TIMESTAMP, None]) | (numbers >= rules[:, END, None]))
    values[ruled_out] = -np.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        peak = values.max(axis=1, keepdims=True)
        weights = np.exp(values - np.where(np.isfinite(peak), peak, 0))
        stamped = weights[:, timestamps:].sum(axis=1) > weights[:, :timestamps].max(axis=1)
        stamped &= rules[:, DECIDE] != 0
        values[np.ix_(stamped, text)] = -np.inf
        weights[np.ix_(stamped, text)] = 0
        found: NDArray[np.float64] = values - np.where(np.isfinite(peak), peak, 0)
        totals: NDArray[np.float64] = np.log(weights.sum(axis=1, keepdims=True))
        return found - totals


def best(log_probabilities: NDArray[np.float64], count: int) -> tuple[Int32Array, Float32Array]:
    """The ``count`` likeliest tokens of each row, the best first, and their log-probabilities."""
    order = np.argsort(-log_probabilities, axis=1, kind="stable")[:, :count]
    scores = np.take_along_axis(log_probabilities, order, axis=1).astype(np.float32)
    return order.astype(np.int32), scores
