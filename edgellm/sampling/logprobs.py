"""Log-probabilities of the model's own distribution, before any sampler."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgellm.errors import EdgeLLMError
from edgellm.sampling.candidates import from_logits, largest


def log_softmax(logits: ArrayLike) -> NDArray[np.float32]:
    """Natural logarithms of the softmax over the last axis.

    NaN counts as -inf; where a logit is +inf, such tokens share the probability equally.

    Args:
        logits: shape (..., vocabulary).

    Returns:
        float32, same shape.

    Raises:
        EdgeLLMError: a row has no logit above -inf.
    """
    values = np.asarray(logits, np.float32)
    top = values.max(axis=-1, keepdims=True) if values.size else values
    if not np.isfinite(top).all():
        values, top = _without_odd_values(values)
    shifted = values - top
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    logprobs: NDArray[np.float32] = shifted - np.log(total).astype(np.float32)
    return logprobs


def _without_odd_values(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    values = np.where(np.isnan(values), np.float32(-np.inf), values)
    infinite = np.isposinf(values)
    has_infinite = infinite.any(axis=-1, keepdims=True)
    values = np.where(has_infinite, np.where(infinite, np.float32(0), np.float32(-np.inf)), values)
    top = values.max(axis=-1, keepdims=True)
    if not np.isfinite(top).all():
        raise EdgeLLMError("no probabilities: every logit is -inf or NaN", "the model file may be damaged")
    return values, top


def top_logprobs(logits: ArrayLike, k: int) -> list[tuple[int, float]]:
    """The ``k`` most likely tokens as (id, log-probability), most likely first, equal ones by rising id.

    Args:
        logits: shape (vocabulary,).
    """
    values = np.asarray(logits, np.float32)
    if k <= 0:
        return []
    best = largest(from_logits(values), k).ids
    return list(zip(best.tolist(), log_softmax(values)[best].tolist(), strict=True))


def logprob_of(logits: ArrayLike, id: int) -> float:
    """The log-probability of one token; -inf if it cannot occur.

    Args:
        logits: shape (vocabulary,).
    """
    return float(log_softmax(logits)[id])
