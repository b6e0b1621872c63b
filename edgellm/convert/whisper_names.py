"""The names of Whisper's tensors: OpenAI's, which all formats are brought to first, Hugging Face's, and ours."""

from __future__ import annotations

import re

from edgellm.convert.safetensors import shown
from edgellm.errors import UnsupportedModelError

_BLOCK = re.compile(r"(encoder|decoder)\.blocks\.(\d{1,4})\.(.+)\.(weight|bias)")
_PARTS = {
    "attn_ln": "attn_norm",
    "attn.query": "attn_q",
    "attn.key": "attn_k",
    "attn.value": "attn_v",
    "attn.out": "attn_output",
    "cross_attn_ln": "cross_attn_norm",
    "cross_attn.query": "cross_attn_q",
    "cross_attn.key": "cross_attn_k",
    "cross_attn.value": "cross_attn_v",
    "cross_attn.out": "cross_attn_output",
    "mlp_ln": "ffn_norm",
    "mlp.0": "ffn_up",
    "mlp.2": "ffn_down",
}
_OUTER = {
    "encoder.conv1": "enc.conv1",
    "encoder.conv2": "enc.conv2",
    "encoder.ln_post": "enc.output_norm",
    "decoder.token_embedding": "token_embd",
    "decoder.ln": "output_norm",
}
_POSITIONS = {
    "encoder.positional_embedding": "enc.position_embd.weight",
    "decoder.positional_embedding": "position_embd.weight",
}
IGNORED = frozenset({"proj_out.weight", "mask", "decoder.mask"})
"""The head, which is the embedding, and what is computed anyway."""

_HUGGING_FACE_BLOCK = re.compile(r"(encoder|decoder)\.layers\.(\d{1,4})\.(.+)\.(weight|bias)")
_HUGGING_FACE_PARTS = {
    "self_attn_layer_norm": "attn_ln",
    "self_attn.q_proj": "attn.query",
    "self_attn.k_proj": "attn.key",
    "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "encoder_attn.q_proj": "cross_attn.query",
    "encoder_attn.k_proj": "cross_attn.key",
    "encoder_attn.v_proj": "cross_attn.value",
    "encoder_attn.out_proj": "cross_attn.out",
    "final_layer_norm": "mlp_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
}
_HUGGING_FACE_OUTER = {
    "encoder.layer_norm": "encoder.ln_post",
    "encoder.embed_positions.weight": "encoder.positional_embedding",
    "decoder.layer_norm": "decoder.ln",
    "decoder.embed_positions.weight": "decoder.positional_embedding",
    "decoder.embed_tokens": "decoder.token_embedding",
}


def our_name(name: str) -> str:
    """The name in a GGUF file of a tensor that OpenAI calls ``name``.

    Raises:
        UnsupportedModelError: no Whisper model has such a tensor.
    """
    if name in _POSITIONS:
        return _POSITIONS[name]
    match = _BLOCK.fullmatch(name)
    if match and match[3] in _PARTS:
        prefix = "enc.blk" if match[1] == "encoder" else "blk"
        return f"{prefix}.{match[2]}.{_PARTS[match[3]]}.{match[4]}"
    stem, _, ending = name.rpartition(".")
    if stem in _OUTER and ending in ("weight", "bias"):
        return f"{_OUTER[stem]}.{ending}"
    raise UnsupportedModelError(f"Whisper models have no tensor {shown(name)} that is known")


def from_hugging_face(name: str) -> str:
    """OpenAI's name of a tensor of a checkpoint of Hugging Face's; what is not known stays as it is."""
    name = name.removeprefix("model.")
    if name in _HUGGING_FACE_OUTER:
        return _HUGGING_FACE_OUTER[name]
    match = _HUGGING_FACE_BLOCK.fullmatch(name)
    if match and match[3] in _HUGGING_FACE_PARTS:
        return f"{match[1]}.blocks.{match[2]}.{_HUGGING_FACE_PARTS[match[3]]}.{match[4]}"
    stem, _, ending = name.rpartition(".")
    return f"{_HUGGING_FACE_OUTER[stem]}.{ending}" if stem in _HUGGING_FACE_OUTER else name
