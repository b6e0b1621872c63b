"""Which type each tensor of a model gets: the mixtures that llama.cpp's users know, with its rules.

A mixture has a base type; tensors that suffer most from rounding get more bits. Which, and in which layers, are the
choices of llama.cpp's ``llama-quant.cpp``, so that a name means the same sizes and types here and there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgellm.errors import InvalidSettingError
from edgellm.gguf import GGUFFile, TensorInfo, TensorType

T = TensorType


@dataclass(frozen=True)
class Mixture:
    """A way to quantize a model: its name, llama.cpp's number of it, and the type of most tensors."""

    name: str
    file_type: int
    base: TensorType


MIXTURES: Mapping[str, Mixture] = {
    name: Mixture(name, number, base)
    for name, number, base in (
        ("F32", 0, T.F32), ("F16", 1, T.F16), ("BF16", 32, T.BF16),
        ("Q8_0", 7, T.Q8_0), ("Q6_K", 18, T.Q6_K), ("Q5_K_M", 17, T.Q5_K), ("Q5_K_S", 16, T.Q5_K),
        ("Q5_1", 9, T.Q5_1), ("Q5_0", 8, T.Q5_0), ("Q4_K_M", 15, T.Q4_K), ("Q4_K_S", 14, T.Q4_K),
        ("Q4_1", 3, T.Q4_1), ("Q4_0", 2, T.Q4_0), ("IQ4_NL", 25, T.IQ4_NL), ("IQ4_XS", 30, T.IQ4_XS),
        ("Q3_K_L", 13, T.Q3_K), ("Q3_K_M", 12, T.Q3_K), ("Q3_K_S", 11, T.Q3_K), ("Q2_K", 10, T.Q2_K),
        ("TQ2_0", 37, T.TQ2_0), ("TQ1_0", 36, T.TQ1_0),
    )
}  # fmt: skip
SHORT_NAMES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
WEIGHT_TYPES = (
    T.F32, T.F16, T.BF16, T.Q8_0, T.Q6_K, T.Q5_K, T.Q5_1, T.Q5_0, T.Q4_K, T.Q4_1, T.Q4_0, T.IQ4_NL, T.IQ4_XS,
    T.Q3_K, T.Q2_K, T.TQ2_0, T.TQ1_0,
)  # fmt: skip
"""Types that tensors can be given."""
FLOAT_TYPES = (T.F32, T.F16, T.BF16)

_FALL_BACKS = {
    T.IQ4_XS: T.IQ4_NL,
    T.Q2_K: T.Q4_0,
    T.Q3_K: T.Q4_0,
    T.TQ1_0: T.Q4_0,
    T.TQ2_0: T.Q4_0,
    T.Q4_K: T.Q5_0,
    T.Q5_K: T.Q5_1,
    T.Q6_K: T.Q8_0,
}
"""For rows that are not whole blocks of 256."""

_KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel|per_layer_model_proj|ssm_conv1d"
    r"|shortconv\.conv\.weight|indexer\.[kq]_proj\.weight|time_mix_(first|[wa][012]|v[012]|g[12]|decay_w[12]|lerp_fused)"
    r"\.weight|attn_rel_b\.weight|\.position_embd|sam\.(pos_embd|neck\.|net_)|\.rel_pos|\.patch_(embd|merger)"
    r"|a\.rvq\.codebook|mm\.a\.code_embd"
)
"""Tensors that are small, or that steer others: they stay as they are."""
_KEPT_NAMES = ("position_embd.weight", "token_types.weight")
_LAYER = re.compile(r"blk\.(\d{1,6})\.")


def find_mixture(name: str) -> Mixture:
    """The mixture of that name, in any case.

    Raises:
        InvalidSettingError: there is none.
    """
    upper = name.upper()
    mixture = MIXTURES.get(SHORT_NAMES.get(upper, upper))
    if mixture is None:
        raise InvalidSettingError(f"{name!r} is no type to quantize to", f"known: {', '.join(MIXTURES)}")
    return mixture


def find_type(name: str) -> TensorType:
    """The tensor type of that name, in any case.

    Raises:
        InvalidSettingError: tensors cannot be given it.
    """
    for kind in WEIGHT_TYPES:
        if kind.name == name.upper():
            return kind
    raise InvalidSettingError(
        f"{name!r} is no type that tensors can be given", f"known: {', '.join(kind.name for kind in WEIGHT_TYPES)}"
    )


@dataclass(frozen=True)
class Overrides:
    """What the user wants otherwise than the mixture has it.

    Attributes:
        output: type of the output matrix.
        embedding: type of the token embedding.
        patterns: regular expressions searched for in tensors' names, with the types of those that match; the first
            that matches counts.
        pure: all tensors get the base type.
    """

    output: TensorType | None = None
    embedding: TensorType | None = None
    patterns: Sequence[tuple[re.Pattern[str], TensorType]] = ()
    pure: bool = False


@dataclass(frozen=True)
class Model:
    """What the rules need to know of a model."""

    architecture: str
    layers: int
    heads_per_group: int
    """Query heads for each key/value head."""
    experts: int
    attention_values: int
    """Tensors that count as attention values."""
    has_output: bool
    has_importance: bool

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp takes it for Llama's 70B."""
        return self.architecture == "llama" and self.layers == 80 and self.heads_per_group > 1


def describe(file: GGUFFile, has_importance: bool) -> Model:
    """What the rules need to know of the model in a file."""
    architecture = file.metadata.get("general.architecture")
    architecture = architecture if isinstance(architecture, str) else ""
    heads = _count(file, f"{architecture}.attention.head_count")
    groups = _count(file, f"{architecture}.attention.head_count_kv") or heads
    return Model(
        architecture,
        _count(file, f"{architecture}.block_count"),
        heads // groups if groups else 0,
        _count(file, f"{architecture}.expert_count"),
        sum(_category(name) in _VALUES for name in file.tensors),
        "output.weight" in file.tensors,
        has_importance,
    )


def _count(file: GGUFFile, key: str) -> int:
    """A count, or that of the first layer where each has its own; 0 where there is none."""
    value: object = file.metadata.get(key, 0)
    if isinstance(value, np.ndarray):
        numbers: list[object] = value.tolist()
        value = numbers[0] if numbers else 0
    return value if isinstance(value, int) and value > 0 else 0


_CATEGORIES = (
    ("attn_qkv.weight", "qkv"),
    ("attn_kv_b.weight", "kv_b"),
    ("attn_v.weight", "value"),
    ("attn_k.weight", "key"),
    ("attn_q.weight", "query"),
    ("attn_output.weight", "attention_output"),
    ("ffn_up", "up"),
    ("ffn_gate", "gate"),
    ("ffn_down", "down"),
)
_VALUES = ("value", "qkv", "kv_b")


def _category(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "embedding"
    return next((category for part, category in _CATEGORIES if part in name), "other")


def is_quantized(tensor: TensorInfo) -> bool:
    """Whether a tensor is one of those that a mixture gives a type: a matrix of weights, or a stack of them."""
    name, shape = tensor.name, tensor.shape
    while len(shape) > 1 and shape[0] == 1:  # trailing dimensions of one in ggml's order do not count
        shape = shape[1:]
    if len(shape) < 2 or not name.endswith("weight") or name in _KEPT_NAMES or _KEPT.search(name):
        return False
    return tensor.type not in (T.I8, T.I16, T.I32, T.I64)


@dataclass
class _Rules:
    """Goes through the tensors layer by layer, counting those of each kind."""

    mixture: Mixture
    model: Model
    overrides: Overrides
    counts: dict[str, int] = field(default_factory=lambda: {"value": 0, "down": 0})

    def choose(self, tensor: TensorInfo) -> TensorType:
        category, overrides = _category(tensor.name), self.overrides
        if overrides.embedding is not None and category == "embedding":
            return overrides.embedding
        if overrides.output is not None and category == "output":
            return overrides.output
        if self.mixture.base in FLOAT_TYPES:
            return self.mixture.base
        for pattern, kind in overrides.patterns:
            if pattern.search(tensor.name):
                return kind
        return self.mixture.base if overrides.pure else self._by_category(tensor, category)

    def _by_category(self, tensor: TensorInfo, category: str) -> TensorType:
        if category == "output" or (category == "embedding" and not self.model.has_output):
            return self._output(tensor)
        if category == "embedding":
            return T.Q4_K if self.mixture.name in ("TQ1_0", "TQ2_0") else self.mixture.base
        chosen = None
        if category in _VALUES:
            chosen = self._value()
        elif category == "key" and self.model.experts == 8:
            chosen = T.Q8_0
        elif category == "down":
            chosen = self._down(tensor.name)
        elif category == "attention_output":
            chosen = self._attention_output()
        return chosen or self.mixture.base

    def _output(self, tensor: TensorInfo) -> TensorType:
        base = self.mixture.base
        if self.overrides.output is not None:
            return self.overrides.output
        if self.model.architecture == "falcon" or tensor.columns % base.block_size:
            return T.Q8_0
        return base if base == T.Q8_0 else T.Q6_K

    def _value(self) -> TensorType | None:
        number, model = self._next("value"), self.model
        chosen: TensorType | None = None
        match self.mixture.name:
            case "Q2_K":
                chosen = T.Q4_K if model.heads_per_group >= 4 else T.Q3_K
            case "Q3_K_M":
                chosen = T.Q5_K if number < 2 else T.Q4_K
            case "Q3_K_L":
                chosen = T.Q5_K
            case "IQ4_NL" | "IQ4_XS" if model.heads_per_group >= 4:
                chosen = T.Q5_K
            case "Q4_K_M" | "Q5_K_M" if _more_bits(number, model.attention_values):
                chosen = T.Q6_K
            case "Q4_K_S" if number < 4:
                chosen = T.Q5_K
        if model.is_70b and (chosen or self.mixture.base) in (T.Q3_K, T.Q4_K):
            chosen = T.Q5_K
        return T.Q8_0 if model.experts == 8 else chosen

    def _down(self, name: str) -> TensorType | None:
        number, layers, falcon = self._next("down"), self.model.layers, self.model.architecture == "falcon"
        match = _LAYER.match(name)
        if self.model.experts > 1 and match:
            number = int(match[1])
        early = number < layers // 8
        match self.mixture.name:
            case "Q2_K":
                return T.Q3_K
            case "Q3_K_M":
                more = not falcon or _more_bits(number, layers)
                return T.Q5_K if number < layers // 16 else T.Q4_K if more else T.Q3_K
            case "Q3_K_L":
                return T.Q4_K if falcon else T.Q5_K
            case "Q4_K_M" if falcon and number < layers // 16:
                return T.Q6_K
            case "Q4_K_M" if _more_bits(number, layers):
                return T.Q5_K if falcon else T.Q6_K
            case "IQ4_NL" | "IQ4_XS" if early and not self.model.has_importance:
                return T.Q5_K
            case "Q5_K_M" if _more_bits(number, layers):
                return T.Q6_K
            case "Q4_K_S" if early and not falcon:
                return T.Q5_K
            case "Q4_0" | "Q5_0" if early and self.model.has_importance:
                return T.Q4_1 if self.mixture.base == T.Q4_0 else T.Q5_1
        return None

    def _attention_output(self) -> TensorType | None:
        name = self.mixture.name
        if self.model.architecture == "falcon":
            return T.Q4_K if name == "Q3_K_L" else None
        if self.model.experts == 8:
            raised = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ4_XS")
            return T.Q5_K if name in raised else None
        return {"Q2_K": T.Q3_K, "Q3_K_M": T.Q4_K, "Q3_K_L": T.Q5_K}.get(name)

    def _next(self, kind: str) -> int:
        number = self.counts[kind]
        self.counts[kind] += 1
        return number


def _more_bits(number: int, count: int) -> bool:
    """The first and last eighth of the layers, and every third between."""
    return number < count // 8 or number >= 7 * count // 8 or (number - count // 8) % 3 == 2


def _layer_order(name: str) -> tuple[int, str]:
    match = _LAYER.match(name)
    return (int(match[1]) if match else -1, name)


def fitting_type(tensor: TensorInfo, wanted: TensorType) -> TensorType:
    """The wanted type, or the one that takes its place where a row is not a whole number of its blocks."""
    if tensor.columns % wanted.block_size == 0:
        return wanted
    instead = _FALL_BACKS.get(wanted, T.F16)
    return instead if tensor.columns % instead.block_size == 0 else T.F16


def choose_types(
    tensors: Sequence[TensorInfo], mixture: Mixture, model: Model, overrides: Overrides
) -> dict[str, TensorType]:
    """The type that each tensor gets, by name; those that stay as they are have their own."""
    rules = _Rules(mixture, model, overrides)
    chosen: dict[str, TensorType] = {}

    for tensor in sorted(tensors, key=lambda tensor: _layer_order(tensor.name)):
        chosen[tensor.name] = fitting_type(tensor, rules.choose(tensor)) if is_quantized(tensor) else tensor.type
    return chosen
