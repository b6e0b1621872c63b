"""DeepSeek V2 and V3 and what shares their shape (Kimi K2): latent attention and mixtures of experts."""

from __future__ import annotations

import re

from edgellm.convert.builder import Builder
from edgellm.convert.common import (
    GATED_FEED_FORWARD,
    TWO_NORMS,
    activation,
    block,
    embedding_and_head,
    expert_keys,
    experts,
    standard_keys,
)
from edgellm.convert.registry import family
from edgellm.convert.tensors import each, reshaped
from edgellm.errors import CorruptFileError, UnsupportedModelError

SOFTMAX, SIGMOID = 1, 2
"""How the router's numbers become weights: ``expert_gating_func``."""
_LATENT = {
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.o_proj": "attn_output",
}
_QUERIES = {"self_attn.q_proj": "attn_q"}
_LATENT_QUERIES = {
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
}
_EXPERTS = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}
_PATTERN = "model.layers.{layer}.mlp.experts.{expert}.{name}.weight"


@family("DeepseekV2ForCausalLM")
def deepseek_v2(model: Builder) -> None:
    """The router's weights are a softmax."""
    _deepseek(model, SOFTMAX)


@family("DeepseekV3ForCausalLM")
def deepseek_v3(model: Builder) -> None:
    """The router's weights are sigmoids, with a bias for the choice alone. The layers that guess ahead are left out."""
    model.config.require("rope_interleave", True)
    _deepseek(model, SIGMOID)


def _deepseek(model: Builder, gating: int) -> None:
    standard_keys(model, "deepseek2")
    activation(model, "silu")
    model.config.require("moe_layer_freq", 1)
    if model.config.flag("attention_bias", False):
        raise UnsupportedModelError("deepseek2 with attention_bias cannot be written to a GGUF file")
    _attention_keys(model)
    dense = _mixture_keys(model, gating)
    ahead = list(range(model.layers, model.layers + 8))
    dropped = model.drop("model\\.layers\\.(" + "|".join(map(re.escape, map(str, ahead))) + ")\\..*")
    if dropped:
        model.notices.append(f"the layers that guess ahead ({dropped} tensors) are left out")
    embedding_and_head(model)
    queries = _LATENT_QUERIES if model.config.has("q_lora_rank") else _QUERIES
    for layer in range(model.layers):
        block(model, layer, {**TWO_NORMS, **queries, **_LATENT})
        _keys_and_values(model, layer)
        if layer < dense:
            block(model, layer, GATED_FEED_FORWARD)
        else:
            _mixture(model, layer)


def _attention_keys(model: Builder) -> None:
    """Attention as one head of keys and values, the latent ones, and the widths of the real heads beside it."""
    config = model.config
    rank, rotated = config.integer("kv_lora_rank"), config.integer("qk_rope_head_dim")
    model.u32("vocab_size", config.integer("vocab_size"))
    model.u32("attention.head_count_kv", 1)
    model.f32("attention.layer_norm_rms_epsilon", config.real("rms_norm_eps", default=1e-6))
    if config.has("q_lora_rank"):
        model.u32("attention.q_lora_rank", config.integer("q_lora_rank"))
    model.u32("attention.kv_lora_rank", rank)
    model.u32("attention.key_length", rank + rotated)
    model.u32("attention.value_length", rank)
    model.u32("attention.key_length_mla", config.integer("qk_nope_head_dim") + rotated)
    model.u32("attention.value_length_mla", config.integer("v_head_dim"))
    model.u32("rope.dimension_count", rotated)
    if model.rope.has("mscale_all_dim"):
        # Readers of these files take a tenth of the number, for the sake of the first files.
        model.f32("rope.scaling.yarn_log_multiplier", 0.1 * model.rope.real("mscale_all_dim"))


def _mixture_keys(model: Builder, gating: int) -> int:
    """What the router does; returns how many layers at the beginning have no experts."""
    config = model.config
    count = config.integer("n_routed_experts", default=0, minimum=0, maximum=4096)
    dense = config.integer("first_k_dense_replace", default=0 if count else model.layers, minimum=0)
    model.u32("leading_dense_block_count", dense)
    model.u32("expert_shared_count", config.integer("n_shared_experts", default=0, minimum=0))
    width = config.integer("moe_intermediate_size", "intermediate_size")
    if not count:
        model.u32("expert_feed_forward_length", width)
        return model.layers
    expert_keys(model, count, config.integer("num_experts_per_tok"), width)
    model.f32("expert_weights_scale", config.real("routed_scaling_factor", default=1.0))
    if config.flag("norm_topk_prob", False):
        model.flag("expert_weights_norm", True)
    named = config.get("scoring_func")
    config.require("scoring_func", "softmax", "sigmoid")
    model.u32("expert_gating_func", gating if named is None else SIGMOID if named == "sigmoid" else SOFTMAX)
    if config.get("topk_method") != "greedy" and config.has("n_group"):
        model.u32("expert_group_count", config.integer("n_group"))
        model.u32("expert_group_used_count", config.integer("topk_group"))
    return dense


def _keys_and_values(model: Builder, layer: int) -> None:
    """The matrix that makes keys and values of the latent ones is taken apart by heads; that of the keys is turned,
    since it is applied to the queries.
    """
    config = model.config
    plain, value = config.integer("qk_nope_head_dim"), config.integer("v_head_dim")
    both = reshaped(model.take(f"model.layers.{layer}.self_attn.kv_b_proj.weight"), model.heads)
    _, head, rank = both.shape if len(both.shape) == 3 else (0, 0, 0)
    if head != plain + value:
        raise CorruptFileError(f"kv_b_proj has {head} rows a head, expected {plain} + {value}")
    keys = each(both, lambda values: values[:, :plain].swapaxes(1, 2), (rank, plain))
    model.put(f"blk.{layer}.attn_k_b.weight", keys)
    model.put(f"blk.{layer}.attn_v_b.weight", each(both, lambda values: values[:, plain:], (value, rank)))


def _mixture(model: Builder, layer: int) -> None:
    old, new = f"model.layers.{layer}.mlp", f"blk.{layer}"
    model.move(f"{old}.gate", f"{new}.ffn_gate_inp")
    if model.has(f"{old}.gate.e_score_correction_bias"):
        model.put(f"{new}.exp_probs_b.bias", model.take(f"{old}.gate.e_score_correction_bias"))
    experts(model, layer, model.config.integer("n_routed_experts"), _PATTERN, _EXPERTS)
    if model.config.integer("n_shared_experts", default=0, minimum=0):
        for name in ("gate", "up", "down"):
            model.move(f"{old}.shared_experts.{name}_proj", f"{new}.ffn_{name}_shexp")
