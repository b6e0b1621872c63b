"""Gemma 1, 2 and 3 (of these the text model). Norm weights are stored with their one added."""

from __future__ import annotations

import math

from edgellm.convert.builder import Builder, Key
from edgellm.convert.common import (
    ATTENTION,
    FOUR_NORMS,
    GATED_FEED_FORWARD,
    QUERY_KEY_NORMS,
    STANDARD_BLOCK,
    activation,
    blocks,
    standard_keys,
)
from edgellm.convert.registry import family
from edgellm.convert.tensors import LazyTensor, plus

PERIOD = 6
"""Of Gemma 3: every sixth layer sees everything, the others a window. Readers of its files know this number."""


_FALSE = Key(False, "bool")


def _one_added(tensor: LazyTensor) -> LazyTensor:
    return plus(tensor, 1.0)


def _gemma(model: Builder, architecture: str, names: dict[str, str]) -> None:
    standard_keys(model, architecture)
    activation(model, "gelu_pytorch_tanh", "gelu_tanh", "gelu")
    model.u32("attention.key_length", model.head_dim)
    model.u32("attention.value_length", model.head_dim)
    model.token_keys["tokenizer.ggml.add_space_prefix"] = _FALSE
    model.drop(r"lm_head\.weight")
    model.move("model.embed_tokens", "token_embd")
    model.move("model.norm", "output_norm", _one_added)
    changes = {new: _one_added for new in names.values() if new.endswith("norm")}
    blocks(model, names, changes)


def _attention_scale(model: Builder) -> None:
    """Queries are scaled by the head's width where the file says nothing else."""
    scale = model.config.real("query_pre_attn_scalar", default=float(model.head_dim))
    if scale != model.head_dim:
        model.f32("attention.scale", 1 / math.sqrt(scale))


@family("GemmaForCausalLM")
def gemma(model: Builder) -> None:
    """The first: two norms a block."""
    _gemma(model, "gemma", STANDARD_BLOCK)


@family("Gemma2ForCausalLM")
def gemma2(model: Builder) -> None:
    """Four norms a block, soft caps, and a window in every other layer."""
    _gemma(model, "gemma2", {**FOUR_NORMS, **ATTENTION, **GATED_FEED_FORWARD})
    config = model.config
    model.f32("attn_logit_softcapping", config.real("attn_logit_softcapping", default=50.0))
    model.f32("final_logit_softcapping", config.real("final_logit_softcapping", default=30.0))
    model.u32("attention.sliding_window", config.integer("sliding_window", default=4096))
    window_pattern(model, 2)
    _attention_scale(model)


@family("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")
def gemma3(model: Builder) -> None:
    """Norms of queries and keys; local layers with rotary frequencies of their own. Images are left out."""
    pictures = []

    def text_name(name: str) -> str | None:
        if name.startswith(("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_")):
            pictures.append(name)
            return None
        for prefix in ("language_model.model.", "model.language_model."):
            if name.startswith(prefix):
                return "model." + name.removeprefix(prefix)
        return name.removeprefix("language_model.")

    model.rename(text_name)
    if pictures:
        model.notices.append(f"the part that sees pictures ({len(pictures)} tensors) is left out")
    _fill_in_defaults(model)
    _gemma(model, "gemma3", {**FOUR_NORMS, **ATTENTION, **GATED_FEED_FORWARD, **QUERY_KEY_NORMS})
    config = model.config
    config.require("attn_logit_softcapping")
    if config.get("final_logit_softcapping"):
        model.f32("final_logit_softcapping", config.real("final_logit_softcapping"))
    model.f32("rope.freq_base", model.rope.real("rope_theta", default=1e6))
    local = config.part("rope_parameters").part("sliding_attention")
    if local.has("rope_theta") or config.has("rope_local_base_freq"):
        model.f32(
            "rope.freq_base_swa", local.real("rope_theta", default=config.real("rope_local_base_freq", default=1e4))
        )
    if config.get("sliding_window_pattern") != 1 and config.has("sliding_window"):
        model.u32("attention.sliding_window", config.integer("sliding_window"))
        window_pattern(model, PERIOD)
    _attention_scale(model)


def _fill_in_defaults(model: Builder) -> None:
    """The config of the larger models leaves out what is at its default."""
    defaults = {
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "vocab_size": 262208,
    }
    model.config = model.config.merged({name: value for name, value in defaults.items() if not model.config.has(name)})


def window_pattern(model: Builder, period: int) -> None:
    """Which layers see a window only, if it is not all but the last of each period, as readers suppose."""
    kinds = model.config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == model.layers:
        local = [kind == "sliding_attention" for kind in kinds]
        if local != [(layer + 1) % period != 0 for layer in range(model.layers)]:
            model.flags("attention.sliding_window_pattern", local)
