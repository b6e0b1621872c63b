"""DeepSeek V2 and V3 (DeepSeek-AI 2024), R1 and Kimi K2: latent attention, and experts beside a shared one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from edgellm.errors import CorruptFileError
from edgellm.graph import Value
from edgellm.models.blocks import GraphBuilder
from edgellm.models.registry import architecture
from edgellm.models.rope import RopeTable


@dataclass(frozen=True)
class Latent:
    """Sizes of multi-head latent attention: of a head's unturned and turned part, its value, and what is cached."""

    plain: int
    turned: int
    value: int
    rank: int
    rope: RopeTable
    scale: float


@architecture("deepseek2")
def deepseek2(model: GraphBuilder) -> Value:
    """Pre-norm blocks; the first have a plain feed-forward, the others experts."""
    sizes = read_sizes(model)
    x = model.embedding()
    for layer in range(model.layers):
        x = model.add(x, latent_attention(model, model.norm(x, f"blk.{layer}.attn_norm"), layer, sizes))
        normed = model.norm(x, f"blk.{layer}.ffn_norm")
        if model.is_mixture(layer):
            x = model.add(x, model.experts(normed, layer, "silu", normalize=False))
            if model.has(f"blk.{layer}.ffn_up_shexp.weight"):
                x = model.add(x, model.shared_expert(normed, layer, "silu"))
        else:
            x = model.add(x, model.feed_forward(normed, layer, "silu"))
    return model.logits(x)


def read_sizes(model: GraphBuilder) -> Latent:
    """YaRN multiplies the scores, instead of queries and keys, by the square of its magnitude where the file says."""
    read = model.parameters
    head = read.integer("attention.key_length_mla", default=model.key_dim)
    value = read.integer("attention.value_length_mla", default=model.value_dim)
    rope = model.rope_table(interleaved=True)
    turned = 2 * len(rope.frequencies)
    if turned >= head:
        raise CorruptFileError(f"{turned} turned values do not fit a head of {head}")
    scale = head**-0.5
    per_log = read.real("rope.scaling.yarn_log_multiplier", default=0.0, maximum=10.0)
    if per_log and read.text("rope.scaling.type", default="none") == "yarn":
        factor = read.real("rope.scaling.factor", default=1.0, minimum=1e-3, maximum=1e6)
        scale *= (1 + per_log * math.log(max(1.0, factor))) ** 2
        rope = replace(rope, magnitude=1.0)
    return Latent(head - turned, turned, value, read.integer("attention.kv_lora_rank"), rope, scale)


def queries(model: GraphBuilder, x: Value, layer: int, head: int) -> Value:
    """The queries, by way of a narrow matrix where the model has one."""
    block, width = f"blk.{layer}", model.heads[layer] * head
    if not model.has(f"{block}.attn_q_a.weight"):
        return model.linear(x, f"{block}.attn_q", width)
    narrow = model.linear(x, f"{block}.attn_q_a", model.shape(f"{block}.attn_q_a.weight")[0])
    return model.linear(model.norm(narrow, f"{block}.attn_q_a_norm"), f"{block}.attn_q_b", width)


def latent_attention(model: GraphBuilder, x: Value, layer: int, sizes: Latent) -> Value:
    """Multi-head latent attention (DeepSeek-V2, 2024, section 2.1).

    The cache holds one latent and one turned key for all heads. What expands latents to keys is absorbed into the
    queries, what expands them to values comes after attention. Older files have both as one matrix, which cannot be
    absorbed: with them, the cache holds the keys and values of all heads.
    """
    block, heads, rank = f"blk.{layer}", model.heads[layer], sizes.rank
    q = queries(model, x, layer, sizes.plain + sizes.turned)
    plain = model.slice(q, heads, 0, sizes.plain)
    turned = model.rope(model.slice(q, heads, sizes.plain, sizes.turned), heads, sizes.rope)
    rows = rank + sizes.turned
    latent = model.linear(x, f"{block}.attn_kv_a_mqa", rank, part=(0, rows))
    latent = model.norm(latent, f"{block}.attn_kv_a_norm")
    turned_key = model.linear(x, f"{block}.attn_kv_a_mqa", sizes.turned, part=(rank, rows))
    turned_key = model.rope(turned_key, 1, sizes.rope)
    if model.has(f"{block}.attn_kv_b.weight"):
        if model.kv_heads[layer] != heads:
            raise CorruptFileError(f"{block} has keys of {model.kv_heads[layer]} heads, expected {heads}")
        both = model.linear(latent, f"{block}.attn_kv_b", heads * (sizes.plain + sizes.value))
        key = model.join(model.slice(both, heads, 0, sizes.plain), turned_key, heads, shared=True)
        value = model.slice(both, heads, sizes.plain, sizes.value)
        seen = model.attention(model.join(plain, turned, heads), key, value, layer, sizes.scale)
    else:
        absorbed = model.stacked_linear(plain, f"{block}.attn_k_b", rank, heads)
        query, key = model.join(absorbed, turned, heads), model.join(latent, turned_key, 1)
        seen = model.latent_attention(query, key, rank, layer, sizes.scale)
        seen = model.stacked_linear(seen, f"{block}.attn_v_b", sizes.value, heads)
    return model.linear(seen, f"{block}.attn_output", model.width)
