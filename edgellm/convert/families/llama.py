"""Llama, Mistral, Mixtral and what shares their shape: files of the architecture ``llama``."""

from __future__ import annotations

from edgellm.convert.builder import Builder, Key
from edgellm.convert.common import (
    ATTENTION,
    GATED_FEED_FORWARD,
    TWO_NORMS,
    activation,
    block,
    embedding_and_head,
    expert_keys,
    experts,
    llama3_bands,
    neighbours,
    standard_keys,
)
from edgellm.convert.registry import family

WITHOUT_BOS = 49152
"""Size of the vocabulary that SmolLM and the small Granite models share: no BOS before a text."""


@family("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM", "MixtralForCausalLM")
def llama(model: Builder) -> None:
    """Pairs that rotate together become neighbours; Llama 3's frequency bands become a tensor."""
    standard_keys(model, "llama")
    llama_keys(model)
    activation(model, "silu", "swish")
    llama3_bands(model)
    config = model.config
    count = config.integer("num_local_experts", default=0, minimum=0, maximum=1024)
    if count:
        expert_keys(model, count, config.integer("num_experts_per_tok"))
    if config.has("sliding_window"):
        model.u32("attention.sliding_window", config.integer("sliding_window"))
    embedding_and_head(model)
    for layer in range(model.layers):
        block(model, layer, {**TWO_NORMS, **ATTENTION}, neighbours(model))
        if count:
            mixture(model, layer, count)
        else:
            block(model, layer, GATED_FEED_FORWARD)


def llama_keys(model: Builder) -> None:
    """What ``llama`` and its relatives write besides the standard keys."""
    model.u32("vocab_size", model.config.integer("vocab_size"))
    model.u32("rope.dimension_count", model.head_dim)
    if model.config.integer("vocab_size") == WITHOUT_BOS:
        model.token_keys["tokenizer.ggml.add_bos_token"] = Key(False, "bool")


def mixture(model: Builder, layer: int, count: int) -> None:
    """The router and the experts of a Mixtral block."""
    prefix = f"model.layers.{layer}.block_sparse_moe"
    model.move(f"{prefix}.gate", f"blk.{layer}.ffn_gate_inp")
    pattern = "model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}.weight"
    experts(model, layer, count, pattern, {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"})
