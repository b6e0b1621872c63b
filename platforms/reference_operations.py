"""What each operation of a graph computes, in plain NumPy: the formulas of ``edgellm.graph``, on arrays.

Rows come first in all arrays; the type of the numbers (float32 or float64) is that of the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.graph import SWIGLU_LIMIT, SWIGLU_SLOPE, ActivationKind, Attention, Norm, Rope, Route

Array = NDArray[np.floating[Any]]


def norm(x: Array, weight: Array | None, bias: Array | None, operation: Norm) -> Array:
    """Root-mean-square or layer norm of each of ``operation.heads`` parts of each row."""
    parts: Array = x.reshape(len(x), operation.heads, x.shape[1] // operation.heads)
    if operation.kind == "layer":
        parts = parts - parts.mean(axis=-1, keepdims=True)
    mean_square = np.square(parts).mean(axis=-1, keepdims=True)
    parts = parts * (1 / np.sqrt(mean_square + x.dtype.type(operation.epsilon)))
    if weight is not None:
        parts = parts * weight
    if bias is not None:
        parts = parts + bias
    return parts.reshape(x.shape)


def rotate(x: Array, positions: NDArray[np.int32], operation: Rope) -> Array:
    """Turn the pairs of each head by their angles, which are computed in float64."""
    angles = positions[:, None].astype(np.float64) * np.array(operation.frequencies)
    cosine = (operation.magnitude * np.cos(angles)).astype(x.dtype)[:, None, :]  # (rows, 1, pairs)
    sine = (operation.magnitude * np.sin(angles)).astype(x.dtype)[:, None, :]
    pairs = len(operation.frequencies)
    heads = x.reshape(len(x), operation.heads, x.shape[1] // operation.heads)
    if operation.interleaved:
        first, second = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    else:
        first, second = slice(0, pairs), slice(pairs, 2 * pairs)
    out = heads.copy()
    out[..., first] = heads[..., first] * cosine - heads[..., second] * sine
    out[..., second] = heads[..., second] * cosine + heads[..., first] * sine
    return out.reshape(x.shape)


def attend(
    q: Array,
    k: Array,
    v: Array,
    positions: NDArray[np.int32],
    key_positions: NDArray[np.integer[Any]],
    operation: Attention,
    sinks: Array | None,
) -> Array:
    """Attention of one sequence.

    Args:
        q: (rows, kv_heads, group, key_dim).
        k: (keys, kv_heads, key_dim).
        v: (keys, kv_heads, value_dim).
        positions: (rows,) of the queries.
        key_positions: (keys,) of the keys.
        operation: scale, window and softcap.
        sinks: (kv_heads, group, 1, 1) or None.

    Returns:
        (rows, kv_heads, group, value_dim).
    """
    scores: Array = q.transpose(1, 2, 0, 3) @ k.transpose(1, 2, 0)[:, None]  # (kv_heads, group, rows, keys)
    scores *= scores.dtype.type(operation.scale)
    if operation.softcap is not None:
        scores = soft_cap(scores, operation.softcap)
    seen = key_positions <= positions[:, None]
    if operation.window is not None:
        seen &= key_positions > positions[:, None] - operation.window
    if operation.causal:
        np.copyto(scores, -np.inf, where=~seen)
    largest = scores.max(axis=-1, keepdims=True)
    if sinks is not None:
        largest = np.maximum(largest, sinks)
    scores -= largest
    weights = np.exp(scores, out=scores)
    # Subnormal weights change no sum that holds a 1, and make products tens of times slower.
    weights *= weights > 1e6 * np.finfo(weights.dtype).tiny
    total = weights.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks - largest)
    weights /= total
    mixed: Array = weights @ v.transpose(1, 0, 2)[:, None]  # (kv_heads, group, rows, value_dim)
    return mixed.transpose(2, 0, 1, 3)


def soft_cap(x: Array, cap: float) -> Array:
    """``cap * tanh(x / cap)``."""
    limit = x.dtype.type(cap)
    return limit * np.tanh(x / limit)


def _silu(x: Array) -> Array:
    active: Array = x / (1 + np.exp(-x))
    return active


def _gelu_tanh(x: Array) -> Array:
    """Hendrycks and Gimpel 2016, by the tanh."""
    inner = np.sqrt(2 / np.pi).astype(x.dtype) * (x + x.dtype.type(0.044715) * x * x * x)
    active: Array = x / 2 * (1 + np.tanh(inner))
    return active


def _gelu(x: Array) -> Array:
    """Hendrycks and Gimpel 2016, exactly: ``x * Phi(x)``. NumPy has no error function of its own."""
    erf = np.array([math.erf(value) for value in (x.ravel() / math.sqrt(2)).tolist()], x.dtype)
    return x / 2 * (1 + erf.reshape(x.shape))


def _relu_squared(x: Array) -> Array:
    """So et al. 2021."""
    return np.square(np.maximum(x, 0))


def _sigmoid(x: Array) -> Array:
    active: Array = 1 / (1 + np.exp(-x))
    return active


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": _silu,
    "gelu_tanh": _gelu_tanh,
    "gelu": _gelu,
    "relu_squared": _relu_squared,
    "sigmoid": _sigmoid,
}
"""Those that act on the gate alone."""


def activate(kind: ActivationKind, gate: Array, up: Array | None) -> Array:
    """``kind(gate) * up``, or what the kind makes of both."""
    if kind == "swiglu_clamped":
        if up is None:
            raise ValueError("swiglu_clamped needs two inputs")
        low = np.minimum(gate, gate.dtype.type(SWIGLU_LIMIT))
        clipped = np.clip(up, up.dtype.type(-SWIGLU_LIMIT), up.dtype.type(SWIGLU_LIMIT))
        return low * _sigmoid(low * low.dtype.type(SWIGLU_SLOPE)) * (clipped + 1)
    active = ACTIVATIONS[kind](gate)
    return active if up is None else active * up


def route(x: Array, bias: Array | None, operation: Route) -> Array:
    """Numbers and weights of the chosen experts, (rows, 2 * chosen), from router logits (rows, experts)."""
    rows, experts = x.shape
    if operation.scores == "softmax":
        scores = np.exp(x - x.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
    else:
        scores = _sigmoid(x)
    ranks = scores if bias is None else scores + bias
    if operation.groups > 1:
        grouped = ranks.reshape(rows, operation.groups, experts // operation.groups)
        best = np.sort(grouped, axis=2)[:, :, -operation.best_of_group :].sum(axis=2)
        kept = np.argsort(-best, axis=1, kind="stable")[:, : operation.chosen_groups]
        allowed = np.zeros((rows, operation.groups, 1), bool)
        np.put_along_axis(allowed, kept[:, :, None], True, axis=1)
        ranks = np.where(allowed, grouped, -np.inf).reshape(rows, experts)
    chosen = np.argsort(-ranks, axis=1, kind="stable")[:, : operation.chosen]
    weights = np.take_along_axis(scores, chosen, axis=1)
    if operation.normalize:
        weights = weights / weights.sum(axis=1, keepdims=True)
    weights = weights * x.dtype.type(operation.scale)
    return np.concatenate([chosen.astype(x.dtype), weights], axis=1)


def weighted_sum(x: Array, routes: Array) -> Array:
    """Sum of the parts of each row, each times the weight of its route (rows, 2 * parts)."""
    parts = routes.shape[1] // 2
    mixed: Array = (x.reshape(len(x), parts, -1) * routes[:, parts:, None]).sum(axis=1)
    return mixed


def slice_parts(x: Array, heads: int, first: int, width: int) -> Array:
    """``width`` values of each of ``heads`` parts, from ``first`` on."""
    return x.reshape(len(x), heads, -1)[:, :, first : first + width].reshape(len(x), heads * width)


def join(a: Array, b: Array, heads: int, shared: bool) -> Array:
    """The parts of ``a``, each followed by its part of ``b``, or by all of ``b`` if that is one part for all."""
    rows = len(a)
    second = b.reshape(rows, 1 if shared else heads, -1)
    second = np.broadcast_to(second, (rows, heads, second.shape[2]))
    return np.concatenate([a.reshape(rows, heads, -1), second], axis=2).reshape(rows, -1)


def round_rows(x: Array) -> NDArray[np.float64]:
    """Each row in whole steps of its largest number / 127, in float64: a product with them is exact to the step.

    The steps are in the precision of ``x`` and computed as the originals do it, 127 times a reciprocal: where weights
    have 8 significant bits, as in BF16, ties between two steps are common, and the last bit decides them.
    """
    peaks = np.maximum(np.abs(x).max(axis=1, keepdims=True), x.dtype.type(1e-5))
    steps = 127 * (1 / peaks)
    rounded: NDArray[np.float64] = np.rint(x * steps).astype(np.float64) / steps
    return rounded
