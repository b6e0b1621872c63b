"""Qwen 2 and 2.5 (Yang et al. 2024): a llama whose q, k and v have biases and whose rotated pairs lie apart."""

from __future__ import annotations

from edgellm.graph import Value
from edgellm.models.blocks import GraphBuilder
from edgellm.models.registry import architecture


@architecture("qwen2")
def qwen2(model: GraphBuilder) -> Value:
    """Pre-norm blocks of grouped-query attention with biases, and SwiGLU."""
    rope = model.rope_table(interleaved=False)
    x = model.embedding()
    for layer in range(model.layers):
        x = model.add(x, model.self_attention(model.norm(x, f"blk.{layer}.attn_norm"), layer, rope, bias=True))
        x = model.add(x, model.feed_forward(model.norm(x, f"blk.{layer}.ffn_norm"), layer, "silu"))
    return model.logits(x)


@architecture("qwen2moe")
def qwen2moe(model: GraphBuilder) -> Value:
    """The same attention, and experts beside one that all rows share, behind a gate; weights are not normalized."""
    rope = model.rope_table(interleaved=False)
    x = model.embedding()
    for layer in range(model.layers):
        x = model.add(x, model.self_attention(model.norm(x, f"blk.{layer}.attn_norm"), layer, rope, bias=True))
        normed = model.norm(x, f"blk.{layer}.ffn_norm")
        if model.is_mixture(layer):
            x = model.add(x, model.experts(normed, layer, "silu", normalize=False))
            x = model.add(x, model.shared_expert(normed, layer, "silu"))
        else:
            x = model.add(x, model.feed_forward(normed, layer, "silu"))
    return model.logits(x)
