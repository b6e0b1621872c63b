"""BitNet b1.58: ternary weights, and norms within attention and feed-forward."""

from __future__ import annotations

from edgellm.convert.builder import Builder
from edgellm.convert.common import STANDARD_BLOCK, activation, blocks, embedding_and_head, standard_keys
from edgellm.convert.quantized import rounded_to_ternary
from edgellm.convert.registry import family
from edgellm.convert.tensors import LazyTensor

_OLD_NORMS = {"self_attn.inner_attn_ln": "attn_sub_norm", "mlp.ffn_layernorm": "ffn_sub_norm"}
_NORMS = {"self_attn.attn_sub_norm": "attn_sub_norm", "mlp.ffn_sub_norm": "ffn_sub_norm"}


@family("BitNetForCausalLM", "BitnetForCausalLM")
def bitnet(model: Builder) -> None:
    """Two architectures that differ in the activation: ``bitnet`` has SiLU, ``bitnet-b1.58`` the squared ReLU."""
    squared = model.config.get("hidden_act") == "relu2"
    standard_keys(model, "bitnet-b1.58" if squared else "bitnet")
    activation(model, "relu2" if squared else "silu")
    model.u32("vocab_size", model.config.integer("vocab_size"))
    model.u32("rope.dimension_count", model.head_dim)
    if f"{model.architecture}.rope.scaling.type" not in model.keys:
        model.string("rope.scaling.type", "linear")
        model.f32("rope.scaling.factor", 1.0)
    embedding_and_head(model)
    norms = _OLD_NORMS if model.has("model.layers.0.mlp.ffn_layernorm.weight") else _NORMS
    matrices = [new for old, new in STANDARD_BLOCK.items() if old.endswith("_proj")]
    blocks(model, {**STANDARD_BLOCK, **norms}, dict.fromkeys(matrices, _ternary))


def _ternary(tensor: LazyTensor) -> LazyTensor:
    """Weights that are stored as real numbers are rounded as the model's layers round them."""
    return tensor if tensor.is_ternary or len(tensor.shape) < 2 else rounded_to_ternary(tensor)
