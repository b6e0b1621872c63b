"""Phi 2 (Javaheripi et al. 2023): attention and feed-forward side by side."""

from __future__ import annotations

from edgellm.graph import Value
from edgellm.models.blocks import GraphBuilder
from edgellm.models.registry import architecture


@architecture("phi2")
def phi2(model: GraphBuilder) -> Value:
    """One layer norm feeds both halves of a block; a part of each head is turned; biases everywhere."""
    rope = model.rope_table(interleaved=False)
    x = model.embedding()
    for layer in range(model.layers):
        normed = model.norm(x, f"blk.{layer}.attn_norm", kind="layer")
        x = model.add(x, model.self_attention(normed, layer, rope))
        x = model.add(x, model.feed_forward(normed, layer, "gelu_tanh", gated=False))
    return model.logits(x, kind="layer")
