"""Phi 3 to 4 (Abdin et al. 2024): a llama with fused matrices, a window in some sizes and LongRoPE in others."""

from __future__ import annotations

from edgellm.graph import Value
from edgellm.models.blocks import GraphBuilder
from edgellm.models.registry import architecture


@architecture("phi3")
def phi3(model: GraphBuilder) -> Value:
    """Pre-norm blocks; q, k and v are one matrix, gate and up another; Phi 4 mini turns a part of each head.

    LongRoPE (Ding et al. 2024) has two sets of frequencies, for contexts up to the original length and beyond it.
    Keys in the cache are turned by one of them, so the context that the model is loaded with decides which.
    """
    rope = model.rope_table(interleaved=False)
    window = model.window()
    x = model.embedding()
    for layer in range(model.layers):
        attended = model.self_attention(model.norm(x, f"blk.{layer}.attn_norm"), layer, rope, window=window)
        x = model.add(x, attended)
        x = model.add(x, model.feed_forward(model.norm(x, f"blk.{layer}.ffn_norm"), layer, "silu"))
    return model.logits(x)
