"""What most families share: the standard keys, the standard names of tensors, experts merged into one tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from edgellm.convert.builder import Builder, Transform
from edgellm.convert.tensors import constant, permuted_heads, stacked
from edgellm.errors import CorruptFileError, UnsupportedModelError
from edgellm.gguf import TensorType

ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
GATED_FEED_FORWARD = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
TWO_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
FOUR_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
QUERY_KEY_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
STANDARD_BLOCK = {**TWO_NORMS, **ATTENTION, **GATED_FEED_FORWARD}


def standard_keys(model: Builder, architecture: str) -> None:
    """Sizes, norms and rotary positions, as all families but the oldest write them."""
    model.architecture = architecture
    config = model.config
    model.u32("block_count", model.layers)
    model.u32("context_length", config.integer("max_position_embeddings", "n_positions", "n_ctx"))
    model.u32("embedding_length", model.width)
    model.u32("feed_forward_length", config.integer("intermediate_size", "n_inner"))
    model.u32("attention.head_count", model.heads)
    model.u32("attention.head_count_kv", model.kv_heads)
    if config.has("rms_norm_eps"):
        model.f32("attention.layer_norm_rms_epsilon", config.real("rms_norm_eps"))
    if config.has("layer_norm_eps", "layer_norm_epsilon"):
        model.f32("attention.layer_norm_epsilon", config.real("layer_norm_eps", "layer_norm_epsilon"))
    if config.has("head_dim"):
        model.u32("attention.key_length", model.head_dim)
        model.u32("attention.value_length", model.head_dim)
    if model.rope.has("rope_theta"):
        model.f32("rope.freq_base", model.rope.real("rope_theta"))
    rope_scaling_keys(model)


def rope_scaling_keys(model: Builder) -> None:
    """How rotary positions are scaled, for the methods that keys describe; Llama 3's bands are a tensor."""
    rope, kind = model.rope, model.rope.text("rope_type")
    if kind in ("default", "llama3"):
        return
    if kind == "linear":
        model.string("rope.scaling.type", "linear")
        model.f32("rope.scaling.factor", rope.real("factor"))
    elif kind == "yarn":
        _yarn_keys(model)
    elif kind in ("longrope", "su"):
        model.string("rope.scaling.type", "longrope")
    else:
        raise UnsupportedModelError(
            f"{rope.name}: rope_type {kind!r} cannot be written to a GGUF file",
            "known: default, linear, yarn, llama3, longrope",
        )


def _yarn_keys(model: Builder) -> None:
    rope = model.rope
    model.string("rope.scaling.type", "yarn")
    model.f32("rope.scaling.factor", rope.real("factor"))
    original = rope.integer("original_max_position_embeddings", default=model.config.integer("max_position_embeddings"))
    model.u32("rope.scaling.original_context_length", original)
    for name, key in (
        ("extrapolation_factor", "rope.scaling.yarn_ext_factor"),
        ("beta_fast", "rope.scaling.yarn_beta_fast"),
        ("beta_slow", "rope.scaling.yarn_beta_slow"),
    ):
        if rope.has(name):
            model.f32(key, rope.real(name))
    if rope.has("attention_factor", "attn_factor"):
        model.f32("rope.scaling.yarn_attn_factor", rope.real("attention_factor", "attn_factor"))
    # llama.cpp knows no such key and always truncates; published files of gpt-oss lack it and mean False
    model.flag("rope.scaling.yarn_truncate", rope.flag("truncate", True))


def expert_keys(model: Builder, count: int, used: int, width: int | None = None) -> None:
    """How many experts there are, how many work on a token, and their width."""
    if used > count:
        raise CorruptFileError(f"config.json: {used} of {count} experts cannot be chosen")
    model.u32("expert_count", count)
    model.u32("expert_used_count", used)
    if width is not None:
        model.u32("expert_feed_forward_length", width)


def embedding_and_head(
    model: Builder,
    norm: str = "model.norm",
    embedding: str = "model.embed_tokens",
    norm_change: Transform | None = None,
) -> None:
    """The tensors outside the blocks. Where embedding and head are tied, only the embedding is written."""
    model.move(embedding, "token_embd")
    model.move(norm, "output_norm", norm_change)
    if model.config.flag("tie_word_embeddings", model.has("lm_head.weight") is False):
        model.drop(r"lm_head\.weight")
    else:
        model.move("lm_head", "output")


def blocks(
    model: Builder,
    names: Mapping[str, str],
    changes: Mapping[str, Transform] | None = None,
    optional: frozenset[str] = frozenset(),
) -> None:
    """The same tensors of each block under their new names, changed on the way where ``changes`` has their new name."""
    for layer in range(model.layers):
        block(model, layer, names, changes, optional)


def block(
    model: Builder,
    layer: int,
    names: Mapping[str, str],
    changes: Mapping[str, Transform] | None = None,
    optional: frozenset[str] = frozenset(),
) -> None:
    """The tensors of one block; see ``blocks``."""
    for old, new in names.items():
        change = (changes or {}).get(new)
        model.move(f"model.layers.{layer}.{old}", f"blk.{layer}.{new}", change, new in optional)


def neighbours(model: Builder) -> dict[str, Transform]:
    """The change for architectures whose files rotate neighbours: the rows of q and k reordered in each head."""
    heads, kv_heads = model.heads, model.kv_heads
    return {
        "attn_q": lambda tensor: permuted_heads(tensor, heads),
        "attn_k": lambda tensor: permuted_heads(tensor, kv_heads),
    }


def experts(model: Builder, layer: int, count: int, pattern: str, names: Mapping[str, str]) -> None:
    """The experts' matrices, each kind stacked into one tensor: (experts, rows, columns).

    ``pattern`` has ``{layer}``, ``{expert}`` and ``{name}``.
    """
    for old, new in names.items():
        parts = [model.take(pattern.format(layer=layer, expert=expert, name=old)) for expert in range(count)]
        model.put(f"blk.{layer}.{new}.weight", stacked(parts))


def llama3_bands(model: Builder) -> None:
    """Llama 3's scaling of frequencies, written as one divisor for each pair of a head.

    Wavelengths below ``original / high`` stay, those above ``original / low`` are divided by ``factor``, with a
    smooth passage between.
    """
    rope = model.rope
    if rope.text("rope_type") != "llama3":
        return
    factor, low, high = rope.real("factor", default=8.0), rope.real("low_freq_factor", default=1.0), 0.0
    high = rope.real("high_freq_factor", default=4.0)
    original = rope.integer("original_max_position_embeddings", default=8192)
    dimensions = model.head_dim
    frequencies = rope.real("rope_theta", default=10000.0) ** -(np.arange(0, dimensions, 2) / dimensions)
    turns = original * frequencies / (2 * math.pi)
    if factor <= 0 or high <= low:
        raise CorruptFileError(f"{rope.name}: factor {factor}, low {low} and high {high} do not go together")
    kept = np.clip((turns - low) / (high - low), 0, 1)
    model.put("rope_freqs.weight", constant(1 / (kept + (1 - kept) / factor)), TensorType.F32)


def activation(model: Builder, *known: str) -> None:
    """Raise UnsupportedModelError if the feed-forward part has another activation than these."""
    for name in ("hidden_act", "hidden_activation", "activation_function"):
        model.config.require(name, *known)


def refuse_window(model: Builder) -> None:
    """Raise UnsupportedModelError for sliding windows where the architecture has none."""
    if model.config.flag("use_sliding_window", False) and model.config.has("sliding_window"):
        raise UnsupportedModelError(
            f"{model.architecture} with use_sliding_window = true cannot be written to a GGUF file",
            "set it to false in config.json to convert the model without its window",
        )
