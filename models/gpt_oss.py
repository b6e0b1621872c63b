"""gpt-oss (OpenAI 2025): experts throughout, biases everywhere, and a sink for attention that finds nothing."""

from __future__ import annotations

from edgellm.graph import Value
from edgellm.models.blocks import GraphBuilder
from edgellm.models.registry import architecture


@architecture("gpt-oss")
def gpt_oss(model: GraphBuilder) -> Value:
    """Local and global layers in turn, with a sink logit for each head; experts with a clamped SwiGLU.

    YaRN's ramp ends between pairs, unlike that of other models; a file that has it otherwise says so.
    """
    rope = model.rope_table(interleaved=False, whole_pairs=False)
    window = model.window()
    x = model.embedding()
    for layer, local in enumerate(model.local_layers(period=2)):
        attended = model.self_attention(
            model.norm(x, f"blk.{layer}.attn_norm"),
            layer,
            rope,
            window=window if local else None,
            sinks=f"blk.{layer}.attn_sinks.weight",
        )
        x = model.add(x, attended)
        x = model.add(x, model.experts(model.norm(x, f"blk.{layer}.post_attention_norm"), layer, "swiglu_clamped"))
    return model.logits(x)
