"""GPT-2."""

from __future__ import annotations

from edgellm.convert.builder import Builder
from edgellm.convert.common import activation
from edgellm.convert.registry import family
from edgellm.convert.tensors import transposed
from edgellm.errors import UnsupportedModelError

_BLOCK = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


@family("GPT2LMHeadModel")
def gpt2(model: Builder) -> None:
    """Learned positions. Its matrices are stored the other way round than everybody else's."""
    config = model.config
    model.architecture = "gpt2"
    activation(model, "gelu_new", "gelu_pytorch_tanh")
    if config.flag("scale_attn_by_inverse_layer_idx", False) or not config.flag("scale_attn_weights", True):
        raise UnsupportedModelError("gpt2 with another scaling of attention than 1/sqrt(head) cannot be written")
    model.u32("block_count", model.layers)
    model.u32("context_length", config.integer("n_ctx", "n_positions"))
    model.u32("embedding_length", model.width)
    model.u32("feed_forward_length", config.integer("n_inner", default=4 * model.width))
    model.u32("attention.head_count", model.heads)
    model.f32("attention.layer_norm_epsilon", config.real("layer_norm_epsilon", default=1e-5))
    model.rename(lambda name: name.removeprefix("transformer."))
    model.move("wte", "token_embd")
    model.move("wpe", "position_embd")
    model.move("ln_f", "output_norm")
    if config.flag("tie_word_embeddings", True):
        model.drop(r"lm_head\.weight")
    else:
        model.move("lm_head", "output")
    for layer in range(model.layers):
        for old, new in _BLOCK.items():
            for ending in ("weight", "bias"):
                tensor = model.take(f"h.{layer}.{old}.{ending}")
                is_matrix = ending == "weight" and not old.startswith("ln")
                model.put(f"blk.{layer}.{new}.{ending}", transposed(tensor) if is_matrix else tensor)
