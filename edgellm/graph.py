"""The graph of a model: the contract between the models that describe it and the executors that run it.

A model is a flat list of operations on named values. A value is a float32 matrix of (rows, width), one row per
token of the step; ``Value.width`` is known when the graph is built, the number of rows is not. Weights are named
as in the model file; a weight matrix has shape (output width, input width).

Executors may fuse, reorder, quantize and keep more digits as they like as long as the values named ``graph.logits``
come out right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NormKind = Literal["rms", "layer"]
ActivationKind = Literal["silu", "gelu_tanh", "gelu", "relu_squared", "sigmoid", "swiglu_clamped"]
ScoreKind = Literal["softmax", "sigmoid"]

SWIGLU_SLOPE = 1.702
SWIGLU_LIMIT = 7.0


@dataclass(frozen=True)
class Value:
    """A float32 matrix (rows, width) that one operation writes and others read."""

    name: str
    width: int


@dataclass(frozen=True)
class Embedding:
    """``out[row] = scale * weight[token[row]]``; with ``positions``, rows are looked up by position instead.

    With ``scales``, the name of a vector, column i is multiplied by its i-th value too.
    """

    out: Value
    weight: str
    scale: float = 1.0
    positions: bool = False
    scales: str | None = None


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
    """``out = x @ weight.T + bias``; weight (out.width, x.width).

    ``rows = (first, end)`` takes only those rows of weight and bias: one part of a matrix that holds several.
    """

    out: Value
    x: Value
    weight: str
    bias: str | None = None
    rows: tuple[int, int] | None = None


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
    Where ``v`` is None, each key's first ``value_dim`` numbers are its value too, and are stored once: the latent
    cache of DeepSeek-V2 (2024), whose one key-value head all query heads read.
    Without ``causal``, every row sees the keys of all rows of the step, whatever their positions.
    """

    out: Value
    q: Value
    k: Value
    v: Value | None
    layer: int
    heads: int
    kv_heads: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: str | None = None
    causal: bool = True


@dataclass(frozen=True)
class Activation:
    """``out = kind(gate) * up``, or ``kind(gate)`` where ``up`` is None.

    silu ``x sigmoid(x)``; gelu_tanh and gelu Hendrycks and Gimpel (2016), the first by tanh, the second exactly
    ``x Phi(x)``; relu_squared ``max(x, 0)^2`` (So et al. 2021); sigmoid ``1 / (1 + exp(-x))``, whose ``gate`` may
    have the width 1: one factor for a whole row of ``up``. swiglu_clamped, of gpt-oss (2025), is
    ``g sigmoid(SWIGLU_SLOPE g) (u + 1)`` of ``g = min(gate, SWIGLU_LIMIT)`` and of ``u = up`` cut off at both
    ``-SWIGLU_LIMIT`` and ``SWIGLU_LIMIT``.
    """

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
    """``out = x * factor``; of adapter number ``adapter`` also times the scale that the step gives it."""

    out: Value
    x: Value
    factor: float
    adapter: int | None = None


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


@dataclass(frozen=True)
class Route:
    """Choose ``chosen`` of the experts for each row by its router logits ``x`` (rows, experts) (Shazeer et al. 2017).

    ``scores`` are the softmax of the row or its sigmoids. Experts are ranked by ``scores + bias`` (the bias of
    DeepSeek-V3, 2024, evens out the load; without one, by the scores), the lower number first among equals. With
    ``groups > 1``, experts form that many groups of neighbours; a group counts as much as its ``best_of_group``
    highest ranks in sum, and only experts of the ``chosen_groups`` highest groups are ranked (DeepSeek-V2, 2024).
    The weights are the chosen experts' scores, without the bias; divided by their sum if ``normalize`` (after a
    softmax that is the softmax of the chosen alone), then multiplied by ``scale``.

    out (rows, 2 * chosen): the numbers of the chosen experts, highest rank first, as whole float32 numbers; then
    their weights in the same order.
    """

    out: Value
    x: Value
    chosen: int
    scores: ScoreKind
    normalize: bool
    scale: float = 1.0
    bias: str | None = None
    groups: int = 1
    chosen_groups: int = 1
    best_of_group: int = 1


@dataclass(frozen=True)
class StackedLinear:
    """Each of ``parts`` parts of a row multiplied by a matrix of its own, out of a stack of matrices.

    ``out_j = x_j @ weight[n_j].T + bias[n_j]`` with weight (matrices, width of out_j, width of x_j) and bias
    (matrices, width of out_j). out_j is the j-th of equal parts of ``out``; x_j the j-th of equal parts of ``x``, or
    all of ``x`` if ``shared``. n_j is the j-th number in ``route`` (the out of a Route), or j where ``route`` is None.
    Only matrices that are named are read.
    """

    out: Value
    x: Value
    weight: str
    parts: int
    shared: bool = False
    route: Value | None = None
    bias: str | None = None


@dataclass(frozen=True)
class WeightedSum:
    """``out = sum over j of weight_j * x_j``, with ``x`` in equal parts and the weights of ``route``, a Route's out."""

    out: Value
    x: Value
    route: Value


@dataclass(frozen=True)
class Slice:
    """Of each of ``heads`` equal parts of ``x``, the ``out.width // heads`` values from ``first`` on."""

    out: Value
    x: Value
    heads: int
    first: int


@dataclass(frozen=True)
class Join:
    """Each of ``heads`` equal parts of ``a`` followed by that part of ``b``, or by all of ``b`` if ``shared``."""

    out: Value
    a: Value
    b: Value
    heads: int
    shared: bool = False


@dataclass(frozen=True)
class RoundRows:
    """Each row rounded to whole steps of ``max(|x|, 1e-5) / 127``, halves to even: BitNet b1.58 (Ma et al. 2024).

    The model was trained so: the product after it is one of int8 codes with one scale per row.
    """

    out: Value
    x: Value


@dataclass(frozen=True)
class Input:
    """The rows that a step is given instead of tokens, such as the frames of a spectrogram."""

    out: Value


@dataclass(frozen=True)
class Unfold:
    """Each ``stride``-th row with its neighbours beside it: what a one-dimensional convolution multiplies.

    Row r of ``out`` is rows ``stride * r - size // 2`` to ``stride * r - size // 2 + size - 1`` of ``x``, one after the
    other; rows before the first and after the last are zero. There are ``rows // stride`` of them.
    """

    out: Value
    x: Value
    size: int
    stride: int


@dataclass(frozen=True)
class StoreSource:
    """Keep the keys and values of all rows for the decoder's layer ``layer``; ``out`` is ``k`` again."""

    out: Value
    k: Value
    v: Value
    layer: int


@dataclass(frozen=True)
class CrossAttention:
    """Attention of each row over all keys and values of its source, which an encoder has stored for ``layer``.

    q and out (heads * head_dim); ``out = softmax(scale * q k.T) v`` for each head (Vaswani et al. 2017).
    """

    out: Value
    q: Value
    layer: int
    heads: int
    scale: float


Operation = (
    Embedding
    | Norm
    | Linear
    | Rope
    | Attention
    | Activation
    | Add
    | Scale
    | SoftCap
    | SelectRows
    | Route
    | StackedLinear
    | WeightedSum
    | Slice
    | Join
    | RoundRows
    | Input
    | Unfold
    | StoreSource
    | CrossAttention
)


def inputs_of(operation: Operation) -> list[Value]:
    """The values that an operation reads, in the order of its fields."""
    return [field for name, field in vars(operation).items() if isinstance(field, Value) and name != "out"]


@dataclass(frozen=True)
class CacheLayer:
    """What one layer keeps per token: keys of ``kv_heads * key_dim`` and values of ``kv_heads * value_dim``.

    With ``values_in_keys`` there are no values: they are the first ``value_dim`` numbers of each head's key.
    """

    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None
    values_in_keys: bool = False

    @property
    def numbers(self) -> int:
        """How many numbers are kept per token."""
        return self.kv_heads * (self.key_dim if self.values_in_keys else self.key_dim + self.value_dim)


@dataclass(frozen=True)
class Graph:
    """A whole model. ``operations`` are in an order in which they can be run.

    ``source`` is what each layer keeps of what an encoder has read, of which there are ``source_length`` rows.
    """

    architecture: str
    operations: tuple[Operation, ...]
    cache: tuple[CacheLayer, ...]
    logits: Value
    context_length: int
    embedding_width: int
    source: tuple[CacheLayer, ...] = ()
    source_length: int = 0

    @property
    def vocabulary_size(self) -> int:
        """Number of logits per row."""
        return self.logits.width
