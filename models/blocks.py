"""The building blocks of architectures: a builder that writes operations down, and the blocks most models share."""

from __future__ import annotations

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
    Linear,
    Norm,
    NormKind,
    Operation,
    Rope,
    Scale,
    SelectRows,
    SoftCap,
    Value,
)
from edgellm.models.parameters import Parameters
from edgellm.models.rope import RopeTable, longrope_magnitude, plain_rope, yarn_rope

if TYPE_CHECKING:
    from edgellm.gguf import GGUFFile

MOST_LAYERS = 1024
LONGEST_CONTEXT = 2**31 - 1  # positions are int32
FASTEST_FREQUENCY = 1e4  # radians per token; the methods give at most about 1

_IGNORED_TENSORS = re.compile(
    r"rope_freqs\.weight|rope_factors_(long|short)\.weight|blk\.\d+\.attn_rot_embd(\.weight)?"
)
"""Tables of rotary frequencies: an architecture that needs them asks for them."""


class GraphBuilder:
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
        self.epsilon = read.real("attention.layer_norm_rms_epsilon", default=1e-5, maximum=0.1)
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

    def tensor(self, name: str, *shape: int) -> str:
        """The full name ``name`` again, after checking that the file has it in this shape."""
        info = self._file.tensors.get(name)
        if info is None:
            raise CorruptFileError(f"tensor {name} is missing", "fetch or convert the model again")
        if info.shape != shape:
            raise CorruptFileError(f"tensor {name} has shape {info.shape}, {self.architecture} expects {shape}")
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
        self._operations.append(
            Embedding(out, self.tensor(f"{weight}.weight", self.vocabulary_size, self.width), scale)
        )
        return out

    def norm(self, x: Value, weight: str, heads: int = 1, kind: NormKind = "rms") -> Value:
        """Normalize rows, or each of ``heads`` parts of a row by itself."""
        part = x.width // heads
        out = self._value(weight, x.width)
        bias = self.tensor(f"{weight}.bias", part) if kind == "layer" and self.has(f"{weight}.bias") else None
        name = self.tensor(f"{weight}.weight", part)
        self._operations.append(Norm(out, x, name, self.epsilon, kind, bias, heads))
        return out

    def linear(self, x: Value, weight: str, width: int, bias: bool | None = None) -> Value:
        """Multiply by a weight of (width, x.width); ``bias=None`` adds the file's bias if it has one."""
        out = self._value(weight, width)
        name = self.tensor(f"{weight}.weight", width, x.width)
        with_bias = self.has(f"{weight}.bias") if bias is None else bias
        bias_name = self.tensor(f"{weight}.bias", width) if with_bias else None
        self._operations.append(Linear(out, x, name, bias_name))
        return out

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

    def activation(self, kind: ActivationKind, gate: Value, up: Value | None = None) -> Value:
        """``kind(gate) * up``."""
        out = self._value(f"{gate.name}.{kind}", gate.width)
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

    # Blocks that most architectures share

    def window(self) -> int | None:
        """The file's sliding window in tokens; None where it has none."""
        return (
            self.parameters.integer("attention.sliding_window", default=0, minimum=0, maximum=LONGEST_CONTEXT) or None
        )

    def local_layers(self, period: int) -> tuple[bool, ...]:
        """Which layers see the window only: the file's pattern, else all but the last of each ``period``."""
        key = "attention.sliding_window_pattern"
        pattern = self.parameters.flags(key, self.layers)
        if pattern is not None:
            return pattern
        period = self.parameters.integer(key, default=period)
        return tuple((layer + 1) % period != 0 for layer in range(self.layers))

    def rope_table(
        self,
        interleaved: bool,
        base_key: str = "rope.freq_base",
        default_base: float = 10000.0,
        scaled: bool = True,
    ) -> RopeTable:
        """Rotary frequencies from the file's keys and tensors, with its scaling unless ``scaled`` is false.

        Which values make a pair (``interleaved``) is a matter of the architecture: the file does not say.
        """
        read = self.parameters
        dimensions = read.integer("rope.dimension_count", default=self.key_dim, minimum=2, maximum=self.key_dim)
        if dimensions % 2:
            raise CorruptFileError(f"{self.architecture}.rope.dimension_count is {dimensions}, expected an even number")
        base = read.real(base_key, default=default_base, minimum=1.001)
        table = plain_rope(dimensions, base, interleaved)
        if scaled:
            table = self._scaled_rope(table, base)
        if max(table.frequencies) > FASTEST_FREQUENCY:
            raise CorruptFileError("the file's rotary scaling is out of range", "fetch or convert the model again")
        return table

    def _scaled_rope(self, table: RopeTable, base: float) -> RopeTable:
        read = self.parameters
        kind = read.text("rope.scaling.type", default="linear")
        old_key = read.real("rope.scale_linear", default=0.0, maximum=1e6)
        factor = read.real("rope.scaling.factor", default=old_key, maximum=1e6) or 1.0
        original = read.integer(
            "rope.scaling.original_context_length", default=self.model_context_length, maximum=LONGEST_CONTEXT
        )
        half = len(table.frequencies)
        if self.has("rope_freqs.weight"):
            table = table.divided_by(self._divisors("rope_freqs.weight", half))
        if kind == "longrope" or self.has("rope_factors_long.weight"):  # some converters write no type
            length = "long" if self.context_length > original else "short"
            table = table.divided_by(self._divisors(f"rope_factors_{length}.weight", half))
            if not read.has("rope.scaling.attn_factor"):
                table = table.with_magnitude(longrope_magnitude(self.model_context_length, original))
        elif kind == "linear":
            table = table.scaled_linearly(factor)
        elif kind == "yarn":
            table = yarn_rope(
                table,
                base,
                factor,
                original,
                beta_fast=read.real("rope.scaling.yarn_beta_fast", default=32.0, minimum=1e-3),
                beta_slow=read.real("rope.scaling.yarn_beta_slow", default=1.0, minimum=1e-3),
                extrapolation=read.real("rope.scaling.yarn_ext_factor", default=1.0, maximum=1.0),
            )
        elif kind != "none":
            raise UnsupportedModelError(
                f"rope scaling {kind[:40]!r} is not known", "known: linear, yarn, longrope, none"
            )
        return table.with_magnitude(read.real("rope.scaling.attn_factor", default=1.0, minimum=1e-3, maximum=1e3))

    def _divisors(self, name: str, count: int) -> NDArray[np.float32]:
        divisors = self.numbers(name, count)
        if (divisors <= 0).any():
            raise CorruptFileError(f"tensor {name} must be positive throughout: frequencies are divided by it")
        return divisors

    def self_attention(
        self,
        x: Value,
        layer: int,
        rope: RopeTable | None,
        bias: bool | None = None,
        query_key_norm: bool = False,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Value:
        """Grouped-query attention (Ainslie et al. 2023) from projection to projection; ``bias`` is that of q, k, v."""
        block, heads, kv_heads = f"blk.{layer}", self.heads[layer], self.kv_heads[layer]
        q = self.linear(x, f"{block}.attn_q", heads * self.key_dim, bias)
        k = self.linear(x, f"{block}.attn_k", kv_heads * self.key_dim, bias)
        v = self.linear(x, f"{block}.attn_v", kv_heads * self.value_dim, bias)
        if query_key_norm:
            q = self.norm(q, f"{block}.attn_q_norm", heads)
            k = self.norm(k, f"{block}.attn_k_norm", kv_heads)
        if rope is not None:
            q, k = self.rope(q, heads, rope), self.rope(k, kv_heads, rope)
        seen = self.attention(q, k, v, layer, scale, window, softcap)
        return self.linear(seen, f"{block}.attn_output", self.width)

    def feed_forward(self, x: Value, layer: int, kind: ActivationKind) -> Value:
        """Gated feed-forward (Shazeer 2020): ``down(kind(gate(x)) * up(x))``."""
        if self.parameters.integer("expert_count", default=0, minimum=0):
            raise UnsupportedModelError(
                f"this {self.architecture} model is a mixture of experts, which edgellm cannot run yet",
                "use a dense model of the family",
            )
        block, width = f"blk.{layer}", self.parameters.per_layer("feed_forward_length", self.layers)[layer]
        gate = self.linear(x, f"{block}.ffn_gate", width)
        up = self.linear(x, f"{block}.ffn_up", width)
        return self.linear(self.activation(kind, gate, up), f"{block}.ffn_down", self.width)

    def logits(self, x: Value, kind: NormKind = "rms") -> Value:
        """Final norm and head over the rows asked for; without a head of its own the model uses its embedding."""
        x = self.norm(self.select_rows(x), "output_norm", kind=kind)
        head = "output" if self.has("output.weight") else "token_embd"
        return self.linear(x, head, self.vocabulary_size)

    def finish(self, logits: Value) -> Graph:
        """The graph; UnsupportedModelError if the file has tensors that the architecture did not use."""
        tensors = self._file.tensors
        unused = [name for name in tensors if name not in self._used_tensors and not _IGNORED_TENSORS.fullmatch(name)]
        if unused:
            listed = ", ".join(name[:60] for name in unused[:3]) + (" …" if len(unused) > 3 else "")
            raise UnsupportedModelError(
                f"the file has {len(unused)} tensors that edgellm's {self.architecture} does not use: {listed}",
                "it is a variant that would run wrongly",
            )
        cache = tuple(self._cache[layer] for layer in range(self.layers))
        return Graph(self.architecture, tuple(self._operations), cache, logits, self.context_length, self.width)
