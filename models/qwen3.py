"""Qwen 3 (Yang et al. 2025): each head's query and key is normalized before it is turned."""

from __future__ import annotations

from edgellm.graph import Value
from edgellm.models.blocks import GraphBuilder
from edgellm.models.registry import architecture


@architecture("qwen3", "qwen3moe")
def qwen3(model: GraphBuilder) -> Value:
    """Pre-norm blocks of grouped-query attention with norms of q and k, and SwiGLU or experts."""
    rope = model.rope_table(interleaved=False)
    x = model.embedding()
    for layer in range(model.layers):
        attended = model.self_attention(model.norm(x, f"blk.{layer}.attn_norm"), layer, rope, query_key_norm=True)
        x = model.add(x, attended)
        feed = model.experts if model.is_mixture(layer) else model.feed_forward
        x = model.add(x, feed(model.norm(x, f"blk.{layer}.ffn_norm"), layer, "silu"))
    return model.logits(x)
