"""SmolLM3 (Bakouch et al. 2025): a llama that turns nothing in every fourth layer."""

from __future__ import annotations

from edgellm.graph import Value
from edgellm.models.blocks import GraphBuilder
from edgellm.models.registry import architecture

LAYERS_PER_UNTURNED = 4
"""No key of the file says so."""


@architecture("smollm3")
def smollm3(model: GraphBuilder) -> Value:
    """Pre-norm blocks of grouped-query attention and SwiGLU; NoPE (Yang et al. 2025) in each fourth layer."""
    rope = model.rope_table(interleaved=True)
    x = model.embedding()
    for layer in range(model.layers):
        turned = rope if (layer + 1) % LAYERS_PER_UNTURNED else None
        x = model.add(x, model.self_attention(model.norm(x, f"blk.{layer}.attn_norm"), layer, turned))
        x = model.add(x, model.feed_forward(model.norm(x, f"blk.{layer}.ffn_norm"), layer, "silu"))
    return model.logits(x)
