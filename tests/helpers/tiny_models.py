"""Small random GGUF models of known architectures, complete with a tokenizer and a chat template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("h e", "l l", "ll o", "he llo", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "Ġ t", "Ġt he", "i n")

# Where the float16 scales lie in a block of those types that the gguf package decodes but cannot encode.
_SCALE_OFFSETS = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
    "IQ1_S": (0,),
}


@dataclass(frozen=True)
class TinyModel:
    """Shape of a small model; ``weight_types`` (ggml names) are dealt to the matrices in turn."""

    architecture: str = "llama"
    layers: int = 2
    width: int = 64
    feed_forward: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    context_length: int = 256
    weight_types: tuple[str, ...] = ("F32",)
    embedding_type: str = "F32"
    window: int | None = None
    tied: bool = True
    biases: bool = False
    extra_tokens: int = 0
    chat_template: str | None = CHAT_TEMPLATE
    seed: int = 0


def byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each of the 256 byte values."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    table = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]


def vocabulary(extra_tokens: int = 0) -> tuple[list[str], list[int]]:
    """Tokens and their types: specials, all bytes, the products of ``MERGES``, and unused ones to fill up."""
    merged = [merge.replace(" ", "") for merge in MERGES]
    unused = [f"<unused{n}>" for n in range(extra_tokens)]
    tokens = [*SPECIAL_TOKENS, *byte_characters(), *merged, *unused]
    ordinary = len(tokens) - len(SPECIAL_TOKENS) - len(unused)
    types = [gguf.TokenType.CONTROL] * len(SPECIAL_TOKENS) + [gguf.TokenType.NORMAL] * ordinary
    return tokens, [int(kind) for kind in types + [gguf.TokenType.UNUSED] * len(unused)]


def quantized(values: NDArray[np.float32], kind: str, generator: np.random.Generator) -> NDArray[np.generic]:
    """``values`` as that ggml type; random blocks of the same spread where the type cannot be encoded."""
    ggml_type = gguf.GGMLQuantizationType[kind]
    if kind == "F32":
        return values
    if kind not in _SCALE_OFFSETS:
        return gguf.quants.quantize(values, ggml_type)
    block_values, block_bytes = gguf.GGML_QUANT_SIZES[ggml_type]
    if values.shape[-1] % block_values:
        raise ValueError(f"{kind} needs rows of a multiple of {block_values} values, not {values.shape[-1]}")
    blocks = generator.integers(0, 256, (values.size // block_values, block_bytes), dtype=np.uint8)

    def set_scales(scale: float) -> None:
        for offset in _SCALE_OFFSETS[kind]:
            blocks[:, offset : offset + 2] = np.array([scale], np.float16).view(np.uint8)

    set_scales(1.0)
    set_scales(float(values.std() / gguf.quants.dequantize(blocks, ggml_type).std()))
    return blocks.reshape(*values.shape[:-1], -1)


def _tensor_shapes(model: TinyModel, tokens: int) -> dict[str, tuple[int, ...]]:
    """Names and NumPy shapes of all tensors, as llama.cpp names them."""
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (tokens, model.width),
        "output_norm.weight": (model.width,),
    }
    if not model.tied:
        shapes["output.weight"] = (tokens, model.width)
    for layer in range(model.layers):
        block: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (model.width,),
            "attn_q.weight": (queries, model.width),
            "attn_k.weight": (keys, model.width),
            "attn_v.weight": (keys, model.width),
            "attn_output.weight": (model.width, queries),
            "ffn_norm.weight": (model.width,),
            "ffn_gate.weight": (model.feed_forward, model.width),
            "ffn_up.weight": (model.feed_forward, model.width),
            "ffn_down.weight": (model.width, model.feed_forward),
        }
        if model.architecture == "gemma3":
            block |= {"attn_q_norm.weight": (model.head_dim,), "attn_k_norm.weight": (model.head_dim,)}
            block |= {"post_attention_norm.weight": (model.width,), "post_ffw_norm.weight": (model.width,)}
        if model.biases or model.architecture == "qwen2":
            block |= {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


def _add_tensors(writer: gguf.GGUFWriter, model: TinyModel, tokens: int) -> None:
    generator = np.random.default_rng(model.seed)
    matrices = 0
    for name, shape in _tensor_shapes(model, tokens).items():
        noise = generator.standard_normal(shape, dtype=np.float32)
        if name.endswith("norm.weight"):
            writer.add_tensor(name, 1 + 0.2 * noise)
        elif name.endswith(".bias"):
            writer.add_tensor(name, 0.2 * noise)
        else:
            embedding = name == "token_embd.weight"
            kind = model.embedding_type if embedding else model.weight_types[matrices % len(model.weight_types)]
            matrices += not embedding
            values = noise * np.float32(0.5 if embedding else 0.7 / shape[-1] ** 0.5)
            raw_type = None if kind == "F32" else gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, quantized(values, kind, generator), raw_dtype=raw_type)


def write_tiny_model(path: Path, model: TinyModel) -> None:
    """Write ``model`` with random weights drawn from its seed."""
    tokens, token_types = vocabulary(model.extra_tokens)
    writer = gguf.GGUFWriter(path, model.architecture)
    writer.add_name(f"Tiny {model.architecture}")
    writer.add_context_length(model.context_length)
    writer.add_embedding_length(model.width)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.feed_forward)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    if model.window is not None:
        writer.add_sliding_window(model.window)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(token_types)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    if model.chat_template is not None:
        writer.add_chat_template(model.chat_template)
    _add_tensors(writer, model, len(tokens))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
