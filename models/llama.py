"""Llama (Touvron et al. 2023) and what shares its shape: Llama 1 to 3.3, Mistral, Mixtral, SmolLM2, TinyLlama."""

from __future__ import annotations

from edgellm.graph import Value
from edgellm.models.blocks import GraphBuilder
from edgellm.models.registry import architecture


@architecture("llama")
def llama(model: GraphBuilder) -> Value:
    """Pre-norm blocks of grouped-query attention and SwiGLU or, in Mixtral, experts; biases where the file has them.

    Converters reorder the rows of q and k so that rotated pairs are neighbours, and store Llama 3's frequency
    bands as ``rope_freqs.weight``. Mistral's first version sees a window of the context only.
    """
    rope = model.rope_table(interleaved=True)
    window = model.window()
    x = model.embedding()
    for layer in range(model.layers):
        attended = model.self_attention(model.norm(x, f"blk.{layer}.attn_norm"), layer, rope, window=window)
        x = model.add(x, attended)
        feed = model.experts if model.is_mixture(layer) else model.feed_forward
        x = model.add(x, feed(model.norm(x, f"blk.{layer}.ffn_norm"), layer, "silu"))
    return model.logits(x)
