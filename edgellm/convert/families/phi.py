"""Phi 2, and Phi 3, 3.5 and 4."""

from __future__ import annotations

import math

import numpy as np

from edgellm.convert.builder import Builder, Key
from edgellm.convert.common import TWO_NORMS, activation, blocks, embedding_and_head, standard_keys
from edgellm.convert.registry import family
from edgellm.convert.tensors import constant
from edgellm.errors import CorruptFileError
from edgellm.gguf import TensorType


def _rotated(model: Builder) -> int:
    """Values of a head that are rotated."""
    share = model.rope.real("partial_rotary_factor", default=1.0)
    if not 0 < share <= 1:
        raise CorruptFileError(f"{model.rope.name}: partial_rotary_factor is {share}, expected more than 0 up to 1")
    return int(share * model.width) // model.heads


@family("PhiForCausalLM")
def phi2(model: Builder) -> None:
    """One layer norm for attention and feed-forward side by side; biases everywhere."""
    standard_keys(model, "phi2")
    activation(model, "gelu_new", "gelu_pytorch_tanh")
    model.config.require("qk_layernorm", False)
    model.u32("rope.dimension_count", _rotated(model))
    model.token_keys["tokenizer.ggml.add_bos_token"] = Key(False, "bool")
    embedding_and_head(model, norm="model.final_layernorm")
    names = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.dense": "attn_output",
        "mlp.fc1": "ffn_up",
        "mlp.fc2": "ffn_down",
    }
    blocks(model, names)


@family("Phi3ForCausalLM")
def phi3(model: Builder) -> None:
    """Queries, keys and values in one matrix, gate and up in another; LongRoPE's factors are tensors."""
    standard_keys(model, "phi3")
    activation(model, "silu")
    config, rope = model.config, model.rope
    original = rope.integer("original_max_position_embeddings", default=config.integer("max_position_embeddings"))
    model.u32("rope.scaling.original_context_length", original)
    model.u32("rope.dimension_count", _rotated(model))
    model.u32("attention.sliding_window", config.integer("sliding_window", default=0, minimum=0))
    _longrope_factors(model, original)
    embedding_and_head(model)
    names = {
        **TWO_NORMS,
        "self_attn.qkv_proj": "attn_qkv",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    blocks(model, names)


def _longrope_factors(model: Builder, original: int) -> None:
    """The two lists of divisors, and the magnitude that goes with the stretched context (Ding et al. 2024)."""
    rope = model.rope
    if rope.text("rope_type") not in ("longrope", "su"):
        return
    scale = model.config.integer("max_position_embeddings") / original
    magnitude = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 and original > 1 else 1.0
    model.f32("rope.scaling.attn_factor", rope.real("attention_factor", default=magnitude))
    for length in ("long", "short"):
        factors = rope.numbers(f"{length}_factor")
        if len(factors) != _rotated(model) // 2 or min(factors) <= 0:
            raise CorruptFileError(
                f"{rope.name}: {length}_factor has {len(factors)} numbers, expected {_rotated(model) // 2} above 0"
            )
        model.put(f"rope_factors_{length}.weight", constant(np.array(factors)), TensorType.F32)
