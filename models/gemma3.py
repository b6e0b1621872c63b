"""Gemma 3 (Gemma team 2025), the text model: norms on both sides, local and global layers, GeGLU."""

from __future__ import annotations

from edgellm.graph import Value
from edgellm.models.blocks import GraphBuilder
from edgellm.models.registry import architecture

LAYERS_OF_27B = 62
"""The one size whose queries are scaled by width / heads instead of by head; its files say so nowhere else."""


@architecture("gemma3")
def gemma3(model: GraphBuilder) -> Value:
    """Blocks with four norms; five local layers to each global one, each kind with rotary frequencies of its own.

    Norm weights are stored with their one added. Only the global frequencies are scaled for long contexts.
    """
    window = model.window()
    is_local = model.local_layers(period=6) if window else (False,) * model.layers
    global_rope = model.rope_table(interleaved=False, default_base=1e6)
    local_rope = model.rope_table(interleaved=False, base_key="rope.freq_base_swa", default_base=1e4, scaled=False)
    scale = (model.width / model.heads[0]) ** -0.5 if model.layers == LAYERS_OF_27B else model.key_dim**-0.5
    scale = model.parameters.real("attention.scale", default=scale, minimum=1e-6)

    x = model.embedding(scale=model.width**0.5)
    for layer, local in enumerate(is_local):
        attended = model.self_attention(
            model.norm(x, f"blk.{layer}.attn_norm"),
            layer,
            local_rope if local else global_rope,
            query_key_norm=True,
            scale=scale,
            window=window if local else None,
        )
        x = model.add(x, model.norm(attended, f"blk.{layer}.post_attention_norm"))
        fed = model.feed_forward(model.norm(x, f"blk.{layer}.ffn_norm"), layer, "gelu_tanh")
        x = model.add(x, model.norm(fed, f"blk.{layer}.post_ffw_norm"))
    return model.logits(x)
