"""OLMo 2 (OLMo team 2024): norms after the halves of a block, none before."""

from __future__ import annotations

from edgellm.graph import Value
from edgellm.models.blocks import GraphBuilder
from edgellm.models.registry import architecture


@architecture("olmo2")
def olmo2(model: GraphBuilder) -> Value:
    """Attention with norms over whole rows of q and k, and SwiGLU, each normalized before it is added."""
    rope = model.rope_table(interleaved=False)
    x = model.embedding()
    for layer in range(model.layers):
        attended = model.self_attention(x, layer, rope, query_key_norm=True)
        x = model.add(x, model.norm(attended, f"blk.{layer}.post_attention_norm"))
        x = model.add(x, model.norm(model.feed_forward(x, layer, "silu"), f"blk.{layer}.post_ffw_norm"))
    return model.logits(x)
