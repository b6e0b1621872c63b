"""Command R (Cohere 2024) and Command R7B (2024): attention and feed-forward side by side, logits scaled."""

from __future__ import annotations

from edgellm.graph import Value
from edgellm.models.blocks import GraphBuilder
from edgellm.models.registry import architecture


@architecture("command-r")
def command_r(model: GraphBuilder) -> Value:
    """One layer norm without bias feeds both halves of a block."""
    rope = model.rope_table(interleaved=True)
    x = model.embedding()
    for layer in range(model.layers):
        normed = model.norm(x, f"blk.{layer}.attn_norm", kind="layer")
        x = model.add(x, model.self_attention(normed, layer, rope))
        x = model.add(x, model.feed_forward(normed, layer, "silu"))
    return scaled_logits(model, x)


@architecture("cohere2")
def cohere2(model: GraphBuilder) -> Value:
    """The same block; three local layers to each global one, which turns nothing."""
    rope = model.rope_table(interleaved=True)
    window = model.window()
    x = model.embedding()
    for layer, local in enumerate(model.local_layers(period=4)):
        normed = model.norm(x, f"blk.{layer}.attn_norm", kind="layer")
        here = (rope, window) if local else (None, None)
        x = model.add(x, model.self_attention(normed, layer, here[0], window=here[1]))
        x = model.add(x, model.feed_forward(normed, layer, "silu"))
    return scaled_logits(model, x)


def scaled_logits(model: GraphBuilder, x: Value) -> Value:
    """The logits, times the file's factor."""
    return model.scale(model.logits(x, kind="layer"), model.parameters.real("logit_scale", default=1.0, minimum=1e-6))
