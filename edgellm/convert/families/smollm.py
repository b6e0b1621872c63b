"""SmolLM 3 (SmolLM 1 and 2 are of the family of Llama)."""

from __future__ import annotations

from edgellm.convert.builder import Builder
from edgellm.convert.common import (
    STANDARD_BLOCK,
    activation,
    blocks,
    embedding_and_head,
    neighbours,
    refuse_window,
    standard_keys,
)
from edgellm.convert.families.llama import llama_keys
from edgellm.convert.registry import family
from edgellm.errors import UnsupportedModelError

PERIOD = 4
"""Every fourth layer has no rotary positions. Readers of these files know the number: no key says it."""


@family("SmolLM3ForCausalLM")
def smollm3(model: Builder) -> None:
    """Llama with layers that have no positions."""
    standard_keys(model, "smollm3")
    llama_keys(model)
    activation(model, "silu")
    refuse_window(model)
    rotated = model.config.get("no_rope_layers")
    if rotated is not None and rotated != [int((layer + 1) % PERIOD != 0) for layer in range(model.layers)]:
        raise UnsupportedModelError(
            f"smollm3 with no_rope_layers = {str(rotated)[:60]} cannot be written to a GGUF file",
            f"only the pattern that leaves out every {PERIOD}th layer can",
        )
    embedding_and_head(model)
    blocks(model, STANDARD_BLOCK, neighbours(model))
