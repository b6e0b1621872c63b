"""Checkpoints in Hugging Face's format, written without any of its libraries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

KINDS = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "F8_E4M3": 1, "F64": 8, "I64": 8}


def safetensors_bytes(tensors: Mapping[str, tuple[str, NDArray[Any]]]) -> bytes:
    """A file with these tensors: name to kind and array, whose NumPy type has the width of the kind."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (kind, values) in tensors.items():
        assert values.itemsize == KINDS[kind]
        place = [offset, offset + values.nbytes]
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": place}
        offset += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return (
        len(text).to_bytes(8, "little")
        + text
        + b"".join(np.ascontiguousarray(v).tobytes() for _, v in tensors.values())
    )


def read_safetensors(path: Path) -> dict[str, tuple[str, NDArray[Any]]]:
    """The same back: kind and values; bfloat16 as uint16."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    types = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "F8_E4M3": "u1"}
    found = {}
    for name, entry in json.loads(content[8 : 8 + length]).items():
        if name != "__metadata__":
            begin, end = (8 + length + place for place in entry["data_offsets"])
            found[name] = (
                entry["dtype"],
                np.frombuffer(content[begin:end], types[entry["dtype"]]).reshape(entry["shape"]),
            )
    return found


def byte_level_tokenizer(size: int, special: Sequence[str] = ("<s>", "</s>"), **pre_tokenizer: Any) -> dict[str, Any]:
    """A tokenizer.json with all bytes, two merges, and added tokens up to a size."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    letters = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    tokens = [*special, *letters, "he", "Ġt"]
    added = [
        {"id": number, "content": text, "special": True, "normalized": False} for number, text in enumerate(special)
    ]
    for number in range(len(tokens), size):
        added.append({"id": number, "content": f"<extra_{number}>", "special": False, "normalized": True})
    pre = pre_tokenizer or {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    return {
        "added_tokens": added,
        "pre_tokenizer": pre,
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "vocab": {text: number for number, text in enumerate(tokens)},
            "merges": [["h", "e"], ["Ġ", "t"]],
        },
    }


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), "utf-8")


def write_large_checkpoint(
    folder: Path, layers: int = 16, width: int = 2048, feed_forward: int = 8192, vocabulary: int = 128256
) -> int:
    """A random Llama of the shape of Llama 3.2 1B, F16, in two shards with their index; returns bytes of weights.

    The values repeat, so that making them takes no longer than writing them.
    """
    kv = width // 4
    folder.mkdir(parents=True, exist_ok=True)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, width),
        "model.norm.weight": (width,),
    }
    for layer in range(layers):
        block = f"model.layers.{layer}"
        for name, shape in (
            ("input_layernorm", (width,)),
            ("self_attn.q_proj", (width, width)),
            ("self_attn.k_proj", (kv, width)),
            ("self_attn.v_proj", (kv, width)),
            ("self_attn.o_proj", (width, width)),
            ("post_attention_layernorm", (width,)),
            ("mlp.gate_proj", (feed_forward, width)),
            ("mlp.up_proj", (feed_forward, width)),
            ("mlp.down_proj", (width, feed_forward)),
        ):
            shapes[f"{block}.{name}.weight"] = shape
    names = list(shapes)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    index: dict[str, str] = {}
    noise = (np.random.default_rng(0).standard_normal(1 << 20) * 0.02).astype("<f2").tobytes()
    total = 0
    for number, half in enumerate(halves, 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        header, offset = {}, 0
        for name in half:
            size = 2 * int(np.prod(shapes[name]))
            header[name] = {"dtype": "F16", "shape": list(shapes[name]), "data_offsets": [offset, offset + size]}
            offset += size
            index[name] = file
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for _ in range(offset // len(noise)):
                out.write(noise)
            out.write(noise[: offset % len(noise)])
        total += offset
    write_json(folder / "model.safetensors.index.json", {"weight_map": index})
    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": width, "num_hidden_layers": layers,
        "intermediate_size": feed_forward, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": vocabulary,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": True,
        "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    write_json(folder / "config.json", config)
    write_json(folder / "tokenizer.json", byte_level_tokenizer(vocabulary))
    return total
