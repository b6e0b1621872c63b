"""The graph of a model: the contract between the models that describe it and the executors that run it.

A model is a flat list of operations on named values. A value is a float32 matrix of (rows, width), one row per
token of the step; ``Value.width`` is known when the graph is built, the number of rows is not. Weights are named
as in the model file; a weight matrix has shape (output width, input width).

Executors may fuse, reorder and quantize as they like as long as the values named ``graph.logits`` come out right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NormKind = Literal["rms", "layer"]
ActivationKind = Literal["silu", "gelu_tanh", "gelu", "relu_squared"]


@dataclass(frozen=True)
class Value:
    """A float32 matrix (rows, width) that one operation writes and others read."""

    name: str
    width: int


@dataclass(frozen=True)
class Embedding:
    """``out[row] = scale * weight[token[row]]``; with ``positions``, rows are looked up by position instead."""

    out: Value
    weight: str
    scale: float = 1.0
    positions: bool = False


@dataclass(frozen=True)
class Norm:
    """Normalize each of ``heads`` equal parts of a row by itself (``heads=1``: the whole row).

    rms:   ``x / sqrt(mean(x^2) + epsilon) * weight``  (Zhang and Sennrich 2019)
    layer: ``(x - mean) / sqrt(var + epsilon) * weight + bias``  (Ba et al. 2016)
    The weight has the width of one part and is shared by all parts; None means all ones.
    """

    out: Value
    x: Value
    weight: str | None
    epsilon: float
    kind: NormKind = "rms"
    bias: str | None = None
    heads: int = 1


@dataclass(frozen=True)
class Linear:
    """``out = x @ weight.T + bias``; weight (out.width, x.width)."""

    out: Value
    x: Value
    weight: str
    bias: str | None = None


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al. 2021) of each head's first ``2 * len(frequencies)`` values.

    Pair i of a head turns by ``position * frequencies[i]`` and is multiplied by ``magnitude``. Pairs are
    (2i, 2i+1) if ``interleaved``, else (i, i + len(frequencies)). All scaling methods are in ``frequencies``.
    """

    out: Value
    x: Value
    heads: int
    frequencies: tuple[float, ...]
    interleaved: bool
    magnitude: float = 1.0


@dataclass(frozen=True)
class Attention:
    """Causal attention over the cache of layer ``layer``, to which this step's keys and values are added first.

    q (heads * head_dim), k (kv_heads * head_dim), v (kv_heads * value_dim), out (heads * value_dim). Query head h
    reads key head ``h // (heads // kv_heads)``. A key at position p is seen from position t if
    ``t - window < p <= t`` (``window=None``: all). ``softcap``: ``softcap * tanh(score / softcap)`` before the softmax.
    ``sinks`` names a weight (heads,) of logits that take part in the softmax denominator only.
    """

    out: Value
    q: Value
    k: Value
    v: Value
    layer: int
    heads: int
    kv_heads: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: str | None = None


@dataclass(frozen=True)
class Activation:
    """``out = kind(gate) * up``, or ``kind(gate)`` where ``up`` is None."""

    out: Value
    gate: Value
    up: Value | None
    kind: ActivationKind


@dataclass(frozen=True)
class Add:
    """``out = a + b``."""

    out: Value
    a: Value
    b: Value


@dataclass(frozen=True)
class Scale:
    """``out = x * factor``."""

    out: Value
    x: Value
    factor: float


@dataclass(frozen=True)
class SoftCap:
    """``out = cap * tanh(x / cap)``."""

    out: Value
    x: Value
    cap: float


@dataclass(frozen=True)
class SelectRows:
    """Keep only the rows whose logits were asked for: everything after works on those alone."""

    out: Value
    x: Value


Operation = Embedding | Norm | Linear | Rope | Attention | Activation | Add | Scale | SoftCap | SelectRows


@dataclass(frozen=True)
class CacheLayer:
    """What one layer keeps per token: keys of ``kv_heads * key_dim`` and values of ``kv_heads * value_dim``."""

    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None


@dataclass(frozen=True)
class Graph:
    """A whole model. ``operations`` are in an order in which they can be run."""

    architecture: str
    operations: tuple[Operation, ...]
    cache: tuple[CacheLayer, ...]
    logits: Value
    context_length: int
    embedding_width: int

    @property
    def vocabulary_size(self) -> int:
        """Number of logits per row."""
        return self.logits.width
