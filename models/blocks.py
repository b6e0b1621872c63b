"""The building blocks that most architectures share: attention, feed-forward, experts, rotary frequencies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import CorruptFileError, UnsupportedModelError
from edgellm.graph import ActivationKind, NormKind, ScoreKind, Value
from edgellm.models.builder import LONGEST_CONTEXT, OperationWriter
from edgellm.models.rope import RopeTable, longrope_magnitude, plain_rope, yarn_rope

FASTEST_FREQUENCY = 1e4  # radians per token; the methods give at most about 1
GATING: dict[int, tuple[ScoreKind, bool]] = {1: ("softmax", False), 2: ("sigmoid", False), 3: ("softmax", True)}
"""Scores and whether they are always normalized, by ``expert_gating_func``; 3 is the softmax of the chosen alone."""


class GraphBuilder(OperationWriter):
    """What an architecture is described on: the operations, and blocks of several that read the file's keys.

    Weights are named without their ending: ``"blk.0.attn_q"`` stands for ``blk.0.attn_q.weight`` and, where there
    is one, ``blk.0.attn_q.bias``. The attributes hold the hyper-parameters that nearly all architectures share.
    """

    # Attention

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

    def query_key_value(self, x: Value, layer: int, bias: bool | None = None) -> tuple[Value, Value, Value]:
        """The three projections, from matrices of their own or from one that holds all three."""
        block, kv_heads = f"blk.{layer}", self.kv_heads[layer]
        widths = (self.heads[layer] * self.key_dim, kv_heads * self.key_dim, kv_heads * self.value_dim)
        if self.has(f"{block}.attn_qkv.weight"):
            name, rows = f"{block}.attn_qkv", sum(widths)
            firsts = (0, widths[0], widths[0] + widths[1])
            q, k, v = (
                self.linear(x, name, width, bias, (first, rows)) for width, first in zip(widths, firsts, strict=True)
            )
        else:
            names = (f"{block}.attn_q", f"{block}.attn_k", f"{block}.attn_v")
            q, k, v = (self.linear(x, name, width, bias) for name, width in zip(names, widths, strict=True))
        return q, k, v

    def query_key_norm(self, x: Value, weight: str, heads: int) -> Value:
        """Norm of each head or, where the weight is as wide as that, of the whole row."""
        whole = self.shape(f"{weight}.weight") == (x.width,)
        return self.norm(x, weight, 1 if whole else heads)

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
        sinks: str | None = None,
    ) -> Value:
        """Grouped-query attention (Ainslie et al. 2023) from projection to projection; ``bias`` is that of q, k, v."""
        block, heads, kv_heads = f"blk.{layer}", self.heads[layer], self.kv_heads[layer]
        q, k, v = self.query_key_value(x, layer, bias)
        if query_key_norm:
            q = self.query_key_norm(q, f"{block}.attn_q_norm", heads)
            k = self.query_key_norm(k, f"{block}.attn_k_norm", kv_heads)
        if rope is not None:
            q, k = self.rope(q, heads, rope), self.rope(k, kv_heads, rope)
        seen = self.attention(q, k, v, layer, scale, window, softcap, sinks)
        return self.linear(seen, f"{block}.attn_output", self.width)

    # Feed-forward

    def feed_forward(self, x: Value, layer: int, kind: ActivationKind, gated: bool = True) -> Value:
        """``down(kind(gate(x)) * up(x))`` (Shazeer 2020), or ``down(kind(up(x)))`` if it is not ``gated``.

        Without a matrix of its own, the gate is the first half of up's rows.
        """
        block, width = f"blk.{layer}", self.parameters.per_layer("feed_forward_length", self.layers)[layer]
        if not gated:
            active = self.activation(kind, self.linear(x, f"{block}.ffn_up", width))
        elif not self.has(f"{block}.ffn_gate.weight") and self.shape(f"{block}.ffn_up.weight")[0] == 2 * width:
            gate = self.linear(x, f"{block}.ffn_up", width, part=(0, 2 * width))
            active = self.activation(kind, gate, self.linear(x, f"{block}.ffn_up", width, part=(width, 2 * width)))
        else:
            gate = self.linear(x, f"{block}.ffn_gate", width)
            active = self.activation(kind, gate, self.linear(x, f"{block}.ffn_up", width))
        return self.linear(active, f"{block}.ffn_down", self.width)

    def is_mixture(self, layer: int) -> bool:
        """Whether the layer's feed-forward is a mixture of experts."""
        return self.has(f"blk.{layer}.ffn_gate_inp.weight")

    def experts(self, x: Value, layer: int, kind: ActivationKind, normalize: bool = True) -> Value:
        """A mixture of experts: each row goes through the few that its router chooses, and their sum is weighted.

        ``normalize`` is whether weights add up to one where the file does not say. With groups of experts, a group
        counts as much as its best expert (DeepSeek-V2) or, with sigmoid scores, as its best two (DeepSeek-V3).
        """
        block, read = f"blk.{layer}", self.parameters
        if self.has(f"{block}.ffn_gate.0.weight"):
            raise UnsupportedModelError(
                "the file keeps each expert in tensors of its own, as was done until 2024", "convert the model again"
            )
        experts = read.integer("expert_count")
        if read.has("expert_feed_forward_length"):
            width = read.integer("expert_feed_forward_length")
        else:
            width = read.per_layer("feed_forward_length", self.layers)[layer]
        gating = read.integer("expert_gating_func", default=1, minimum=0) or 1
        if gating not in GATING:
            raise UnsupportedModelError(f"expert_gating_func {gating} is not known", f"known: {sorted(GATING)}")
        scores, always = GATING[gating]
        groups = read.integer("expert_group_count", default=1, minimum=0) or 1
        route = self.route(
            self.linear(x, f"{block}.ffn_gate_inp", experts),
            read.integer("expert_used_count"),
            scores,
            normalize=always or read.boolean("expert_weights_norm", default=normalize),
            scale=read.real("expert_weights_scale", default=0.0, maximum=1e6) or 1.0,
            bias=f"{block}.exp_probs_b.bias" if self.has(f"{block}.exp_probs_b.bias") else None,
            groups=groups,
            chosen_groups=(read.integer("expert_group_used_count", default=0, minimum=0) or 1) if groups > 1 else 1,
            best_of_group=2 if scores == "sigmoid" and groups > 1 else 1,
        )
        gate = self.stacked_linear(x, f"{block}.ffn_gate_exps", width, experts, route, shared=True)
        up = self.stacked_linear(x, f"{block}.ffn_up_exps", width, experts, route, shared=True)
        active = self.activation(kind, gate, up)
        return self.weighted_sum(
            self.stacked_linear(active, f"{block}.ffn_down_exps", self.width, experts, route), route
        )

    def shared_expert(self, x: Value, layer: int, kind: ActivationKind) -> Value:
        """The expert that every row goes through, weighted by a sigmoid gate where the file has one."""
        block = f"blk.{layer}"
        width = self.shape(f"{block}.ffn_up_shexp.weight")[0]
        gate = self.linear(x, f"{block}.ffn_gate_shexp", width)
        active = self.activation(kind, gate, self.linear(x, f"{block}.ffn_up_shexp", width))
        out = self.linear(active, f"{block}.ffn_down_shexp", self.width)
        if not self.has(f"{block}.ffn_gate_inp_shexp.weight"):
            return out
        return self.activation("sigmoid", self.linear(x, f"{block}.ffn_gate_inp_shexp", 1), out)

    # The head

    def logits(self, x: Value, kind: NormKind = "rms") -> Value:
        """Final norm and head over the rows asked for; without a head of its own the model uses its embedding."""
        x = self.norm(self.select_rows(x), "output_norm", kind=kind)
        head = "output" if self.has("output.weight") else "token_embd"
        logits = self.linear(x, head, self.vocabulary_size)
        cap = self.parameters.real("final_logit_softcapping", default=0.0)
        return self.softcap(logits, cap) if cap else logits

    # Rotary frequencies

    def rope_table(
        self,
        interleaved: bool,
        base_key: str = "rope.freq_base",
        default_base: float = 10000.0,
        scaled: bool = True,
        whole_pairs: bool = True,
    ) -> RopeTable:
        """Rotary frequencies from the file's keys and tensors, with its scaling unless ``scaled`` is false.

        Which values make a pair (``interleaved``) is a matter of the architecture: the file does not say. Whether
        YaRN's ramp begins and ends at ``whole_pairs`` it need not say either.
        """
        read = self.parameters
        dimensions = read.integer("rope.dimension_count", default=self.key_dim, minimum=2, maximum=self.key_dim)
        if dimensions % 2:
            raise CorruptFileError(f"{self.architecture}.rope.dimension_count is {dimensions}, expected an even number")
        base = read.real(base_key, default=default_base, minimum=1.001)
        table = plain_rope(dimensions, base, interleaved)
        if scaled:
            table = self._scaled_rope(table, base, whole_pairs)
        if max(table.frequencies) > FASTEST_FREQUENCY:
            raise CorruptFileError("the file's rotary scaling is out of range", "fetch or convert the model again")
        return table

    def _scaled_rope(self, table: RopeTable, base: float, whole_pairs: bool) -> RopeTable:
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
            table = self._yarn_rope(table, base, factor, original, whole_pairs)
        elif kind != "none":
            raise UnsupportedModelError(
                f"rope scaling {kind[:40]!r} is not known", "known: linear, yarn, longrope, none"
            )
        return table.with_magnitude(read.real("rope.scaling.attn_factor", default=1.0, minimum=1e-3, maximum=1e3))

    def _yarn_rope(self, table: RopeTable, base: float, factor: float, original: int, whole_pairs: bool) -> RopeTable:
        read = self.parameters
        table = yarn_rope(
            table,
            base,
            factor,
            original,
            beta_fast=read.real("rope.scaling.yarn_beta_fast", default=32.0, minimum=1e-3),
            beta_slow=read.real("rope.scaling.yarn_beta_slow", default=1.0, minimum=1e-3),
            extrapolation=read.real("rope.scaling.yarn_ext_factor", default=1.0, maximum=1.0),
            truncate=read.boolean("rope.scaling.yarn_truncate", default=whole_pairs),
        )
        return table.with_magnitude(read.real("rope.scaling.yarn_attn_factor", default=1.0, minimum=1e-3, maximum=1e3))

    def _divisors(self, name: str, count: int) -> NDArray[np.float32]:
        divisors = self.numbers(name, count)
        if (divisors <= 0).any():
            raise CorruptFileError(f"tensor {name} must be positive throughout: frequencies are divided by it")
        return divisors
