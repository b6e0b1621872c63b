"""BitNet b1.58 (Ma et al. 2024, 2025): ternary weights, and activations of 8 bits before each product with them."""

from __future__ import annotations

from edgellm.errors import UnsupportedModelError
from edgellm.graph import ActivationKind, Value
from edgellm.models.blocks import GraphBuilder
from edgellm.models.registry import architecture

ACTIVATIONS: dict[str, ActivationKind] = {"silu": "silu", "relu2": "relu_squared", "relu_sqr": "relu_squared"}


@architecture("bitnet", "bitnet-b1.58")
def bitnet(model: GraphBuilder) -> Value:
    """Pre-norm blocks with a second norm before the last product of either half.

    The first models had SwiGLU, as ``bitnet`` has unless the file says otherwise; BitNet b1.58 2B4T squares a ReLU.
    """
    default = "silu" if model.architecture == "bitnet" else "relu2"
    name = model.parameters.text("hidden_activation", default=default)
    if name not in ACTIVATIONS:
        raise UnsupportedModelError(f"activation {name[:40]!r} is not known", f"known: {', '.join(ACTIVATIONS)}")
    rope = model.rope_table(interleaved=False)
    x = model.embedding()
    for layer in range(model.layers):
        block, heads, kv_heads = f"blk.{layer}", model.heads[layer], model.kv_heads[layer]
        q, k, v = model.query_key_value(rounded_norm(model, x, f"{block}.attn_norm"), layer)
        seen = model.attention(model.rope(q, heads, rope), model.rope(k, kv_heads, rope), v, layer)
        seen = rounded_norm(model, seen, f"{block}.attn_sub_norm")
        x = model.add(x, model.linear(seen, f"{block}.attn_output", model.width))
        normed = rounded_norm(model, x, f"{block}.ffn_norm")
        width = model.parameters.per_layer("feed_forward_length", model.layers)[layer]
        gate = model.linear(normed, f"{block}.ffn_gate", width)
        active = model.activation(ACTIVATIONS[name], gate, model.linear(normed, f"{block}.ffn_up", width))
        active = rounded_norm(model, active, f"{block}.ffn_sub_norm")
        x = model.add(x, model.linear(active, f"{block}.ffn_down", model.width))
    return model.logits(x)


def rounded_norm(model: GraphBuilder, x: Value, weight: str) -> Value:
    """What a product with ternary weights reads."""
    return model.round_rows(model.norm(x, weight))
