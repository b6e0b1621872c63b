"""Writes a model down: every operation, with the check that the weights it names exist and have the right shape."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import CorruptFileError, InvalidSettingError, UnsupportedModelError
from edgellm.graph import (
    Activation,
    ActivationKind,
    Add,
    Attention,
    CacheLayer,
    Embedding,
    Graph,
    Join,
    Linear,
    Norm,
    NormKind,
    Operation,
    Rope,
    RoundRows,
    Route,
    Scale,
    ScoreKind,
    SelectRows,
    Slice,
    SoftCap,
    StackedLinear,
    Value,
    WeightedSum,
)
from edgellm.models.parameters import Parameters
from edgellm.models.rope import RopeTable

if TYPE_CHECKING:
    from edgellm.gguf import GGUFFile

MOST_LAYERS = 1024
LONGEST_CONTEXT = 2**31 - 1  # positions are int32

_IGNORED_TENSORS = re.compile(
    r"rope_freqs\.weight|rope_factors_(long|short)\.weight|blk\.\d+\.attn_rot_embd(\.weight)?"
)
"""Tables of rotary frequencies: an architecture that needs them asks for them."""


class OperationWriter:
    """Writes a model down operation by operation, checking that every weight exists and has the shape its use implies.

    Weights are named without their ending: ``"blk.0.attn_q"`` stands for ``blk.0.attn_q.weight`` and, where there
    is one, ``blk.0.attn_q.bias``. The attributes hold the hyper-parameters that nearly all architectures share.
    """

    def __init__(self, file: GGUFFile, architecture: str, context_length: int | None = None) -> None:
        self._file = file
        self._operations: list[Operation] = []
        self._cache: dict[int, CacheLayer] = {}
        self._names: set[str] = set()
        self._used_tensors: set[str] = set()
        self.architecture = architecture
        self.parameters = Parameters(file.metadata, architecture)
        self._read_shape(context_length)

    def _read_shape(self, context_length: int | None) -> None:
        read = self.parameters
        self.layers = read.integer("block_count", maximum=MOST_LAYERS)
        self.width = read.integer("embedding_length")
        self.vocabulary_size = self._embedding_rows("token_embd")
        self.heads = read.per_layer("attention.head_count", self.layers)
        self.kv_heads = read.per_layer("attention.head_count_kv", self.layers, default=self.heads)
        for heads, kv_heads in zip(self.heads, self.kv_heads, strict=True):
            if heads % kv_heads:
                raise CorruptFileError(f"{heads} attention heads cannot be shared out to {kv_heads} key-value heads")
        self.key_dim = read.integer("attention.key_length", default=self._head_dim())
        self.value_dim = read.integer("attention.value_length", default=self._head_dim())
        plain = read.real("attention.layer_norm_epsilon", default=1e-5, maximum=0.1)
        self.epsilon = read.real("attention.layer_norm_rms_epsilon", default=plain, maximum=0.1)
        own = read.integer("context_length", maximum=LONGEST_CONTEXT)
        if context_length is not None and not 1 <= context_length <= own:
            raise InvalidSettingError(
                f"a context of {context_length} tokens was asked for, this model's holds {own}", f"choose 1 to {own}"
            )
        self.model_context_length = own
        self.context_length = own if context_length is None else context_length

    def _head_dim(self) -> int:
        heads = self.heads[0]
        if self.width % heads and not self.parameters.has("attention.key_length"):
            raise CorruptFileError(f"an embedding of {self.width} cannot be shared out to {heads} attention heads")
        return self.width // heads

    def _embedding_rows(self, name: str) -> int:
        info = self._file.tensors.get(f"{name}.weight")
        if info is None:
            raise CorruptFileError(f"tensor {name}.weight is missing", "fetch or convert the model again")
        if len(info.shape) != 2 or info.shape[0] < 1:
            raise CorruptFileError(f"tensor {name}.weight has shape {info.shape}, expected (vocabulary, {self.width})")
        return info.shape[0]

    # Weights

    def has(self, tensor: str) -> bool:
        """Whether the file has a tensor of this full name."""
        return tensor in self._file.tensors

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Rows first; CorruptFileError if the file has no tensor of this full name."""
        info = self._file.tensors.get(tensor)
        if info is None:
            raise CorruptFileError(f"tensor {tensor} is missing", "fetch or convert the model again")
        return info.shape

    def tensor(self, name: str, *shape: int) -> str:
        """The full name ``name`` again, after checking that the file has it in this shape."""
        found = self.shape(name)
        if found != shape and (1, *found) != shape:  # a matrix of one row may be stored as a vector
            raise CorruptFileError(f"tensor {name} has shape {found}, {self.architecture} expects {shape}")
        self._used_tensors.add(name)
        return name

    def numbers(self, name: str, *shape: int) -> NDArray[np.float32]:
        """The values of a small tensor that the graph itself depends on, all of them finite."""
        values = self._file.decode(self.tensor(name, *shape))
        if not np.isfinite(values).all():
            raise CorruptFileError(f"tensor {name} has values that are not finite")
        return values

    def _value(self, name: str, width: int) -> Value:
        unique, count = name, 1
        while unique in self._names:
            count += 1
            unique = f"{name}#{count}"
        self._names.add(unique)
        return Value(unique, width)

    # Operations: each writes one down and returns its result

    def embedding(self, weight: str = "token_embd", scale: float = 1.0) -> Value:
        """Look the tokens up: (rows, width)."""
        out = self._value(weight, self.width)
        name = self.tensor(f"{weight}.weight", self.vocabulary_size, self.width)
        self._operations.append(Embedding(out, name, scale))
        return out

    def position_embedding(self, weight: str = "position_embd") -> Value:
        """Look the positions up, of which there is one row each: (rows, width)."""
        out = self._value(weight, self.width)
        name = self.tensor(f"{weight}.weight", self.model_context_length, self.width)
        self._operations.append(Embedding(out, name, positions=True))
        return out

    def norm(self, x: Value, weight: str, heads: int = 1, kind: NormKind = "rms") -> Value:
        """Normalize rows, or each of ``heads`` parts of a row by itself."""
        part = x.width // heads
        out = self._value(weight, x.width)
        bias = self.tensor(f"{weight}.bias", part) if kind == "layer" and self.has(f"{weight}.bias") else None
        name = self.tensor(f"{weight}.weight", part)
        self._operations.append(Norm(out, x, name, self.epsilon, kind, bias, heads))
        return out

    def linear(
        self, x: Value, weight: str, width: int, bias: bool | None = None, part: tuple[int, int] | None = None
    ) -> Value:
        """Multiply by a weight of (width, x.width); ``bias=None`` adds the file's bias if it has one.

        ``part = (first, rows)``: only ``width`` rows from ``first`` on, of a weight of (rows, x.width). Where the
        file has a scale for the whole weight (``{weight}.scale``), the product is multiplied by it.
        """
        out = self._value(weight, width)
        rows = width if part is None else part[1]
        name = self.tensor(f"{weight}.weight", rows, x.width)
        with_bias = self.has(f"{weight}.bias") if bias is None else bias
        bias_name = self.tensor(f"{weight}.bias", rows) if with_bias else None
        chosen = None if part is None else (part[0], part[0] + width)
        self._operations.append(Linear(out, x, name, bias_name, chosen))
        if not self.has(f"{weight}.scale"):
            return out
        if bias_name is not None:
            raise UnsupportedModelError(f"{weight} has a scale and a bias, which edgellm cannot run yet")
        return self.scale(out, float(self.numbers(f"{weight}.scale", 1)[0]))

    def rope(self, x: Value, heads: int, table: RopeTable) -> Value:
        """Turn each head by its position."""
        out = self._value(f"{x.name}.rope", x.width)
        self._operations.append(Rope(out, x, heads, table.frequencies, table.interleaved, table.magnitude))
        return out

    def attention(
        self,
        q: Value,
        k: Value,
        v: Value,
        layer: int,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        sinks: str | None = None,
    ) -> Value:
        """Causal attention with the layer's cache; ``scale`` defaults to ``key_dim ** -0.5``."""
        heads, kv_heads = self.heads[layer], self.kv_heads[layer]
        key_dim, value_dim = k.width // kv_heads, v.width // kv_heads
        if window is not None and window >= self.context_length:
            window = None  # never reached
        out = self._value(f"blk.{layer}.attention", heads * value_dim)
        factor = key_dim**-0.5 if scale is None else scale
        sink_tensor = None if sinks is None else self.tensor(sinks, heads)
        self._cache[layer] = CacheLayer(kv_heads, key_dim, value_dim, window)
        self._operations.append(Attention(out, q, k, v, layer, heads, kv_heads, factor, window, softcap, sink_tensor))
        return out

    def latent_attention(self, q: Value, k: Value, value_dim: int, layer: int, scale: float) -> Value:
        """All heads read one key of ``k.width``, whose first ``value_dim`` numbers are its value."""
        heads = self.heads[layer]
        out = self._value(f"blk.{layer}.attention", heads * value_dim)
        self._cache[layer] = CacheLayer(1, k.width, value_dim, values_in_keys=True)
        self._operations.append(Attention(out, q, k, None, layer, heads, 1, scale))
        return out

    def route(
        self,
        x: Value,
        chosen: int,
        scores: ScoreKind,
        normalize: bool,
        scale: float = 1.0,
        bias: str | None = None,
        groups: int = 1,
        chosen_groups: int = 1,
        best_of_group: int = 1,
    ) -> Value:
        """Choose ``chosen`` experts for each row by its router logits; ``bias`` is a tensor's full name."""
        size = x.width // groups
        fits = x.width % groups == 0 and chosen_groups <= groups and best_of_group <= size
        if not fits or chosen > (chosen_groups * size if groups > 1 else x.width):
            raise CorruptFileError(
                f"{chosen} of {x.width} experts cannot be chosen from {chosen_groups} of {groups} groups"
            )
        out = self._value(f"{x.name}.route", 2 * chosen)
        bias_name = None if bias is None else self.tensor(bias, x.width)
        self._operations.append(
            Route(out, x, chosen, scores, normalize, scale, bias_name, groups, chosen_groups, best_of_group)
        )
        return out

    def stacked_linear(
        self, x: Value, weight: str, width: int, matrices: int, route: Value | None = None, shared: bool = False
    ) -> Value:
        """Multiply each part of ``x`` by a matrix of its own, of (width of a part of out, width of a part of x).

        There is a part for each expert of ``route`` or, without one, for each of the ``matrices``; ``shared``: all
        parts read the whole of ``x``. Biases are added where the file has some.
        """
        parts = matrices if route is None else route.width // 2
        out = self._value(weight, parts * width)
        name = self.tensor(f"{weight}.weight", matrices, width, x.width if shared else x.width // parts)
        bias = self.tensor(f"{weight}.bias", matrices, width) if self.has(f"{weight}.bias") else None
        self._operations.append(StackedLinear(out, x, name, parts, shared, route, bias))
        return out

    def weighted_sum(self, x: Value, route: Value) -> Value:
        """Sum of the parts of ``x``, each times its weight of the route."""
        out = self._value(f"{x.name}.mixed", x.width // (route.width // 2))
        self._operations.append(WeightedSum(out, x, route))
        return out

    def slice(self, x: Value, heads: int, first: int, width: int) -> Value:
        """``width`` values of each of ``heads`` parts, from ``first`` on."""
        out = self._value(f"{x.name}.part", heads * width)
        self._operations.append(Slice(out, x, heads, first))
        return out

    def join(self, a: Value, b: Value, heads: int, shared: bool = False) -> Value:
        """Each of ``heads`` parts of ``a`` followed by that of ``b``, or by all of ``b`` if ``shared``."""
        out = self._value(f"{a.name}.joined", a.width + (heads * b.width if shared else b.width))
        self._operations.append(Join(out, a, b, heads, shared))
        return out

    def round_rows(self, x: Value) -> Value:
        """Round each row to what int8 with one scale can hold."""
        out = self._value(f"{x.name}.rounded", x.width)
        self._operations.append(RoundRows(out, x))
        return out

    def activation(self, kind: ActivationKind, gate: Value, up: Value | None = None) -> Value:
        """``kind(gate) * up``."""
        out = self._value(f"{gate.name}.{kind}", gate.width if up is None else up.width)
        self._operations.append(Activation(out, gate, up, kind))
        return out

    def add(self, a: Value, b: Value) -> Value:
        """``a + b``."""
        out = self._value(f"{b.name}.sum", a.width)
        self._operations.append(Add(out, a, b))
        return out

    def scale(self, x: Value, factor: float) -> Value:
        """``x * factor``."""
        out = self._value(f"{x.name}.scaled", x.width)
        self._operations.append(Scale(out, x, factor))
        return out

    def softcap(self, x: Value, cap: float) -> Value:
        """``cap * tanh(x / cap)``."""
        out = self._value(f"{x.name}.capped", x.width)
        self._operations.append(SoftCap(out, x, cap))
        return out

    def select_rows(self, x: Value) -> Value:
        """Keep the rows whose logits are wanted."""
        out = self._value(f"{x.name}.selected", x.width)
        self._operations.append(SelectRows(out, x))
        return out

    def finish(self, logits: Value) -> Graph:
        """The graph; UnsupportedModelError if the file has tensors that the architecture did not use."""
        tensors = self._file.tensors
        unused = [name for name in tensors if name not in self._used_tensors and not _IGNORED_TENSORS.fullmatch(name)]
        if unused:
            listed = ", ".join(name[:60] for name in unused[:3]) + (" …" if len(unused) > 3 else "")
            nearest = difflib.get_close_matches(unused[0][:60], sorted(self._used_tensors), n=1, cutoff=0.0)
            raise UnsupportedModelError(
                f"the file has {len(unused)} tensors that edgellm's {self.architecture} does not use: {listed}",
                f"it is a variant that would run wrongly; the nearest that is used: {', '.join(nearest)}",
            )
        cache = tuple(self._cache[layer] for layer in range(self.layers))
        return Graph(self.architecture, tuple(self._operations), cache, logits, self.context_length, self.width)
