"""Gemma (Gemma team 2024) and Gemma 2 (2024): scaled embedding, GeGLU; the second with norms on both sides.

Norm weights are stored with their one added.
"""

from __future__ import annotations

from edgellm.graph import Value
from edgellm.models.blocks import GraphBuilder
from edgellm.models.registry import architecture

LAYERS_OF_27B = 46
"""The one size whose queries are scaled by width / heads instead of by head; its files say so nowhere else."""


@architecture("gemma")
def gemma(model: GraphBuilder) -> Value:
    """A llama with GeGLU, heads of a size of their own and rotated pairs that lie apart."""
    rope = model.rope_table(interleaved=False)
    x = model.embedding(scale=model.width**0.5)
    for layer in range(model.layers):
        x = model.add(x, model.self_attention(model.norm(x, f"blk.{layer}.attn_norm"), layer, rope))
        x = model.add(x, model.feed_forward(model.norm(x, f"blk.{layer}.ffn_norm"), layer, "gelu_tanh"))
    return model.logits(x)


@architecture("gemma2")
def gemma2(model: GraphBuilder) -> Value:
    """Blocks with four norms; local and global layers in turn; scores and logits are capped."""
    read = model.parameters
    window = model.window()
    is_local = model.local_layers(period=2) if window else (False,) * model.layers
    rope = model.rope_table(interleaved=False)
    head = model.width / model.heads[0] if model.layers == LAYERS_OF_27B else model.key_dim
    scale = read.real("attention.scale", default=head**-0.5, minimum=1e-6)
    cap = read.real("attn_logit_softcapping", default=50.0) or None

    x = model.embedding(scale=model.width**0.5)
    for layer, local in enumerate(is_local):
        attended = model.self_attention(
            model.norm(x, f"blk.{layer}.attn_norm"),
            layer,
            rope,
            scale=scale,
            window=window if local else None,
            softcap=cap,
        )
        x = model.add(x, model.norm(attended, f"blk.{layer}.post_attention_norm"))
        fed = model.feed_forward(model.norm(x, f"blk.{layer}.ffn_norm"), layer, "gelu_tanh")
        x = model.add(x, model.norm(fed, f"blk.{layer}.post_ffw_norm"))
    return model.logits(x)
