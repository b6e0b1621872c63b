"""OLMo 2."""

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
from edgellm.convert.registry import family


@family("Olmo2ForCausalLM")
def olmo2(model: Builder) -> None:
    """Norms after attention and feed-forward only, and of all queries and all keys together."""
    standard_keys(model, "olmo2")
    activation(model, "silu")
    embedding_and_head(model)
    names = {
        **ATTENTION,
        **QUERY_KEY_NORMS,
        **GATED_FEED_FORWARD,
        "post_attention_layernorm": "post_attention_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }
    blocks(model, names)
