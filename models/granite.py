"""Granite 3 (Granite team 2024): a llama with a multiplier wherever one can stand."""

from __future__ import annotations

from edgellm.graph import Value
from edgellm.models.blocks import GraphBuilder
from edgellm.models.registry import architecture


@architecture("granite")
def granite(model: GraphBuilder) -> Value:
    """Embedding, residuals and scores are multiplied by numbers of the file, the logits divided by one."""
    read = model.parameters
    rope = model.rope_table(interleaved=True)
    scale = read.real("attention.scale", default=0.0) or None
    residual = read.real("residual_scale", default=1.0, minimum=1e-6)
    divisor = read.real("logit_scale", default=1.0, minimum=1e-6)
    x = model.embedding(scale=read.real("embedding_scale", default=1.0, minimum=1e-6))
    for layer in range(model.layers):
        attended = model.self_attention(model.norm(x, f"blk.{layer}.attn_norm"), layer, rope, scale=scale)
        x = model.add(x, model.scale(attended, residual))
        fed = model.feed_forward(model.norm(x, f"blk.{layer}.ffn_norm"), layer, "silu")
        x = model.add(x, model.scale(fed, residual))
    return model.scale(model.logits(x), 1 / divisor)
