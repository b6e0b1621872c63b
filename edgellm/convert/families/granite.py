"""Granite 3: Llama with four multipliers."""

from __future__ import annotations

from edgellm.convert.builder import Builder
from edgellm.convert.common import (
    STANDARD_BLOCK,
    activation,
    blocks,
    embedding_and_head,
    llama3_bands,
    neighbours,
    standard_keys,
)
from edgellm.convert.families.llama import llama_keys
from edgellm.convert.registry import family

_MULTIPLIERS = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}


@family("GraniteForCausalLM")
def granite(model: Builder) -> None:
    """The multipliers keep the names that GGUF gave them; logits are divided by theirs."""
    standard_keys(model, "granite")
    llama_keys(model)
    activation(model, "silu")
    llama3_bands(model)
    model.pre_tokenizer_hint = "refact"
    for name, key in _MULTIPLIERS.items():
        if model.config.has(name):
            model.f32(key, model.config.real(name))
    embedding_and_head(model)
    blocks(model, STANDARD_BLOCK, neighbours(model))
