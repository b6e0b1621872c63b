"""Command R and R7B: attention and feed-forward side by side behind one layer norm."""

from __future__ import annotations

from edgellm.convert.builder import Builder
from edgellm.convert.common import (
    ATTENTION,
    GATED_FEED_FORWARD,
    QUERY_KEY_NORMS,
    activation,
    blocks,
    embedding_and_head,
    standard_keys,
)
from edgellm.convert.families.gemma import window_pattern
from edgellm.convert.registry import family
from edgellm.errors import UnsupportedModelError

PERIOD = 4
"""Of the second version: every fourth layer sees everything and has no positions. Readers know the number."""


def _cohere(model: Builder, architecture: str, names: dict[str, str]) -> None:
    standard_keys(model, architecture)
    activation(model, "silu")
    model.pre_tokenizer_hint = "command-r"
    model.f32("logit_scale", model.config.real("logit_scale"))
    model.string("rope.scaling.type", "none")
    embedding_and_head(model)
    blocks(model, {"input_layernorm": "attn_norm", **ATTENTION, **GATED_FEED_FORWARD, **names})


@family("CohereForCausalLM")
def command_r(model: Builder) -> None:
    """The larger ones also norm each head's queries and keys, with weights for every head."""
    norms = QUERY_KEY_NORMS if model.config.flag("use_qk_norm", False) else {}
    _cohere(model, "command-r", norms)
    # The first version was trained on longer texts than max_position_embeddings says.
    context = model.config.integer("model_max_length", "max_position_embeddings")
    model.u32("context_length", context)


@family("Cohere2ForCausalLM")
def cohere2(model: Builder) -> None:
    """Three layers with a window to each one that sees everything."""
    _cohere(model, "cohere2", {})
    config = model.config
    model.u32("vocab_size", config.integer("vocab_size"))
    model.u32("attention.sliding_window", config.integer("sliding_window"))
    if config.integer("sliding_window_pattern", default=PERIOD) != PERIOD:
        raise UnsupportedModelError(f"cohere2 with another period of windows than {PERIOD} cannot be written")
    window_pattern(model, PERIOD)
    share = config.real("rotary_pct", default=1.0)
    model.u32("rope.dimension_count", int(share * (model.width // model.heads)))
