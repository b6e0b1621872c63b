"""Checkpoints in Hugging Face's format written out as GGUF, for the few architectures that the tests here compare."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from edgellm.models.rope import llama3_divisors, plain_rope

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "gemma3_text": "gemma3", "phi3": "split-phi3"}

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GEMMA_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def read_safetensors(path: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Names and values: eight bytes of header length, a JSON header, then the data (float32 only)."""
    data = path.read_bytes()
    header_end = 8 + int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8:header_end]).items():
        if name != "__metadata__":
            assert entry["dtype"] == "F32"
            begin, end = entry["data_offsets"]
            yield name, np.frombuffer(data[header_end + begin : header_end + end], "<f4").reshape(entry["shape"])


def neighbouring_pairs(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder the rows of q or k so that values that rotate together, half a head apart, become neighbours."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def gguf_name(name: str, architecture: str) -> str:
    """``model.layers.0.self_attn.q_proj.weight`` becomes ``blk.0.attn_q.weight``."""
    stem, ending = name.rsplit(".", 1)
    names = NAMES | (GEMMA_NAMES if architecture == "gemma3" else {})
    if stem.startswith("model.layers."):
        layer, part = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{names[part]}.{ending}"
    return f"{names[stem]}.{ending}"


def _add_rope(writer: gguf.GGUFWriter, config: dict[str, Any], head_dim: int) -> None:
    rope = config["rope_parameters"]
    if "full_attention" in rope:
        writer.add_key_value(
            "gemma3.rope.freq_base_swa", rope["sliding_attention"]["rope_theta"], gguf.GGUFValueType.FLOAT32
        )
        rope = rope["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    elif rope["rope_type"] == "llama3":
        bands = [rope[key] for key in ("factor", "low_freq_factor", "high_freq_factor")]
        plain = plain_rope(head_dim, rope["rope_theta"], True)
        divisors = llama3_divisors(plain, *bands, rope["original_max_position_embeddings"])
        writer.add_tensor("rope_freqs.weight", divisors)
    elif rope["rope_type"] == "longrope":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for length in ("short", "long"):
            factors = np.array(rope[f"{length}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{length}.weight", factors)
    else:
        assert rope["rope_type"] == "default"


def _split(name: str, values: NDArray[np.float32], query_rows: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Phi-3's fused q, k, v and gate, up as tensors of their own; all others as they are."""
    if "qkv_proj" in name:
        key_rows = (len(values) - query_rows) // 2
        parts = np.split(values, [query_rows, query_rows + key_rows])
        yield from ((name.replace("qkv", letter), part) for letter, part in zip("qkv", parts, strict=True))
    elif "gate_up_proj" in name:
        yield from zip(
            (name.replace("gate_up", "gate"), name.replace("gate_up", "up")), np.split(values, 2), strict=True
        )
    else:
        yield name, values


def convert(folder: Path, path: Path) -> None:
    """Write the checkpoint in ``folder`` to ``path`` as F32, without a tokenizer."""
    config = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES[config["model_type"]]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    _add_rope(writer, config, head_dim)
    checkpoint = read_safetensors(folder / "model.safetensors")
    for name, values in (split for pair in checkpoint for split in _split(*pair, heads * head_dim)):
        if architecture == "llama" and "q_proj" in name:
            values = neighbouring_pairs(values, heads)
        elif architecture == "llama" and "k_proj" in name:
            values = neighbouring_pairs(values, kv_heads)
        elif architecture == "gemma3" and name.endswith("norm.weight"):
            values = values + 1
        writer.add_tensor(gguf_name(name, architecture), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
