"""GPT-2 (Radford et al. 2019): learned positions, layer norms, biases everywhere."""

from __future__ import annotations

from edgellm.graph import Value
from edgellm.models.blocks import GraphBuilder
from edgellm.models.registry import architecture


@architecture("gpt2")
def gpt2(model: GraphBuilder) -> Value:
    """Pre-norm blocks of attention with one matrix for q, k and v, and a feed-forward without gate."""
    x = model.add(model.embedding(), model.position_embedding())
    for layer in range(model.layers):
        attended = model.self_attention(model.norm(x, f"blk.{layer}.attn_norm", kind="layer"), layer, rope=None)
        x = model.add(x, attended)
        normed = model.norm(x, f"blk.{layer}.ffn_norm", kind="layer")
        x = model.add(x, model.feed_forward(normed, layer, "gelu_tanh", gated=False))
    return model.logits(x, kind="layer")
