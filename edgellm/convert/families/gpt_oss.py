"""gpt-oss: sinks, biases everywhere, and experts in blocks of 4-bit numbers (MXFP4)."""

from __future__ import annotations

import numpy as np

from edgellm.convert.builder import Builder
from edgellm.convert.common import ATTENTION, activation, block, embedding_and_head, expert_keys, standard_keys
from edgellm.convert.registry import family
from edgellm.convert.tensors import Array, LazyTensor, each, transposed
from edgellm.errors import CorruptFileError
from edgellm.gguf import TensorType

_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm"}


@family("GptOssForCausalLM")
def gpt_oss(model: Builder) -> None:
    """Rows of gate and up alternate in the checkpoint and are taken apart; MXFP4 stays what it is."""
    config = model.config
    standard_keys(model, "gpt-oss")
    activation(model, "silu")
    model.pre_tokenizer_hint = "gpt-4o"
    width = config.integer("intermediate_size")
    count = config.integer("num_local_experts", "num_experts", maximum=1024)
    expert_keys(model, count, config.integer("num_experts_per_tok", "experts_per_token"), width)
    model.u32("attention.sliding_window", config.integer("sliding_window"))
    embedding_and_head(model)
    for layer in range(model.layers):
        old, new = f"model.layers.{layer}", f"blk.{layer}"
        block(model, layer, {**_NORMS, **ATTENTION})
        model.put(f"{new}.attn_sinks.weight", model.take(f"{old}.self_attn.sinks"))
        model.move(f"{old}.mlp.router", f"{new}.ffn_gate_inp")
        _experts(model, f"{old}.mlp.experts", new)


def _experts(model: Builder, old: str, new: str) -> None:
    bias = model.take(f"{old}.gate_up_proj_bias")
    model.put(f"{new}.ffn_down_exps.bias", model.take(f"{old}.down_proj_bias"))
    for name, first in (("gate", 0), ("up", 1)):
        model.put(f"{new}.ffn_{name}_exps.bias", _alternate(bias, first))
    if model.has(f"{old}.down_proj_blocks"):
        model.put(f"{new}.ffn_down_exps.weight", _mxfp4(model, f"{old}.down_proj"), TensorType.MXFP4)
        both = _mxfp4(model, f"{old}.gate_up_proj")
        for name, first in (("gate", 0), ("up", 1)):
            model.put(f"{new}.ffn_{name}_exps.weight", _alternate(both, first), TensorType.MXFP4)
    else:
        model.put(f"{new}.ffn_down_exps.weight", transposed(model.take(f"{old}.down_proj")))
        both = transposed(model.take(f"{old}.gate_up_proj"))
        for name, first in (("gate", 0), ("up", 1)):
            model.put(f"{new}.ffn_{name}_exps.weight", _alternate(both, first))


def _alternate(tensor: LazyTensor, first: int) -> LazyTensor:
    """Every second element of the second dimension."""
    if len(tensor.shape) < 2 or tensor.shape[1] % 2:
        raise CorruptFileError(f"gate and up cannot be taken apart in a tensor of shape {tensor.shape}")
    return each(tensor, lambda values: values[:, first::2], (tensor.shape[1] // 2, *tensor.shape[2:]))


def _mxfp4(model: Builder, name: str) -> LazyTensor:
    """Blocks of ggml from those of the checkpoint: (experts, rows, bytes).

    The checkpoint has 32 values in 16 bytes, neighbours in one byte, the first in its low half; ggml has values i and
    i + 16 in byte i, after the block's exponent.
    """
    blocks, scales = model.take(f"{name}_blocks"), model.take(f"{name}_scales")
    if len(blocks.shape) != 4 or blocks.shape[3] != 16 or scales.shape != blocks.shape[:3]:
        raise CorruptFileError(f"tensor {name}_blocks has shape {blocks.shape} and its scales {scales.shape}")
    if (blocks.kind, scales.kind) != ("U8", "U8"):
        raise CorruptFileError(f"tensor {name}_blocks is stored as {blocks.kind} and {scales.kind}, expected U8")
    experts, rows, groups, _ = blocks.shape

    def load(start: int, stop: int) -> Array:
        pairs = blocks.load(start, stop)
        values = np.stack([pairs & np.uint8(15), pairs >> np.uint8(4)], axis=-1).reshape(*pairs.shape[:3], 32)
        out = np.empty((*pairs.shape[:3], 17), np.uint8)
        out[..., 0] = scales.load(start, stop)
        out[..., 1:] = values[..., :16] | values[..., 16:] << np.uint8(4)
        return out.reshape(stop - start, rows, groups * 17)

    return LazyTensor((experts, rows, groups * 17), "U8", load)
