"""Qwen 2 and 3, dense and mixtures of experts."""

from __future__ import annotations

from edgellm.convert.builder import Builder
from edgellm.convert.common import (
    ATTENTION,
    QUERY_KEY_NORMS,
    STANDARD_BLOCK,
    TWO_NORMS,
    activation,
    block,
    blocks,
    embedding_and_head,
    expert_keys,
    experts,
    refuse_window,
    standard_keys,
)
from edgellm.convert.registry import family
from edgellm.errors import UnsupportedModelError

_EXPERTS = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}
_PATTERN = "model.layers.{layer}.mlp.experts.{expert}.{name}.weight"


@family("Qwen2ForCausalLM")
def qwen2(model: Builder) -> None:
    """Biases on q, k and v; tied embeddings in the small ones."""
    _dense(model, "qwen2", STANDARD_BLOCK)


@family("Qwen3ForCausalLM")
def qwen3(model: Builder) -> None:
    """Norms of each head's queries and keys instead of the biases."""
    _dense(model, "qwen3", {**STANDARD_BLOCK, **QUERY_KEY_NORMS})


def _dense(model: Builder, architecture: str, names: dict[str, str]) -> None:
    standard_keys(model, architecture)
    activation(model, "silu")
    refuse_window(model)
    embedding_and_head(model)
    blocks(model, names)


@family("Qwen2MoeForCausalLM")
def qwen2_moe(model: Builder) -> None:
    """All experts' weights are taken as the router gives them; one shared expert with a gate of its own."""
    _sparse(model, "qwen2moe", {**TWO_NORMS, **ATTENTION})
    model.config.require("norm_topk_prob", False)
    model.u32("expert_shared_feed_forward_length", model.config.integer("shared_expert_intermediate_size"))
    for layer in range(model.layers):
        for name in ("gate", "up", "down"):
            old = f"model.layers.{layer}.mlp.shared_expert.{name}_proj"
            model.move(old, f"blk.{layer}.ffn_{name}_shexp")
        model.move(f"model.layers.{layer}.mlp.shared_expert_gate", f"blk.{layer}.ffn_gate_inp_shexp")


@family("Qwen3MoeForCausalLM")
def qwen3_moe(model: Builder) -> None:
    """The chosen experts' weights are made to sum to one; no shared expert."""
    model.config.require("norm_topk_prob", True)
    _sparse(model, "qwen3moe", {**TWO_NORMS, **ATTENTION, **QUERY_KEY_NORMS})


def _sparse(model: Builder, architecture: str, names: dict[str, str]) -> None:
    config = model.config
    standard_keys(model, architecture)
    activation(model, "silu")
    refuse_window(model)
    if config.integer("decoder_sparse_step", default=1) != 1 or config.get("mlp_only_layers"):
        raise UnsupportedModelError(
            f"{architecture} with dense layers among the sparse ones cannot be written to a GGUF file"
        )
    count = config.integer("num_experts", "num_local_experts", maximum=1024)
    expert_keys(model, count, config.integer("num_experts_per_tok"), config.integer("moe_intermediate_size"))
    embedding_and_head(model)
    for layer in range(model.layers):
        block(model, layer, names)
        model.move(f"model.layers.{layer}.mlp.gate", f"blk.{layer}.ffn_gate_inp")
        experts(model, layer, count, _PATTERN, _EXPERTS)
