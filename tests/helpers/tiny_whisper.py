"""A small random Whisper model, written in each of the four formats that checkpoints come in."""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import safetensors_bytes
from numpy.typing import NDArray

ROWS, WIDTH, HEADS, LAYERS, BINS, SOURCE, CONTEXT = 51864, 64, 2, 2, 80, 40, 64
TEXTS = 50256
ALIGNMENT = [[0, 1], [1, 0]]
Tensors = dict[str, NDArray[np.float32]]


def tensors(seed: int = 0) -> Tensors:
    """Under OpenAI's names; all values are float16's, so that every format holds them exactly."""
    random = np.random.default_rng(seed)

    def matrix(*shape: int, scale: float = 1.0) -> NDArray[np.float32]:
        spread = scale / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1
        return (random.standard_normal(shape) * spread).astype(np.float16).astype(np.float32)

    def norm(name: str) -> Tensors:
        weight = (1 + matrix(WIDTH)).astype(np.float16).astype(np.float32)
        return {f"{name}.weight": weight, f"{name}.bias": matrix(WIDTH)}

    def attention(name: str) -> Tensors:
        found = norm(f"{name}_ln")
        for part in ("query", "key", "value", "out"):
            found[f"{name}.{part}.weight"] = matrix(WIDTH, WIDTH, scale=1.5)
            if part != "key":
                found[f"{name}.{part}.bias"] = matrix(WIDTH)
        return found

    found: Tensors = {
        "encoder.conv1.weight": matrix(WIDTH, BINS, 3),
        "encoder.conv1.bias": matrix(WIDTH),
        "encoder.conv2.weight": matrix(WIDTH, WIDTH, 3),
        "encoder.conv2.bias": matrix(WIDTH),
        "encoder.positional_embedding": matrix(SOURCE, WIDTH, scale=4),
        "decoder.positional_embedding": matrix(CONTEXT, WIDTH),
        "decoder.token_embedding.weight": matrix(ROWS, WIDTH, scale=3),
        **norm("encoder.ln_post"),
        **norm("decoder.ln"),
    }
    for side in ("encoder", "decoder"):
        for layer in range(LAYERS):
            block = f"{side}.blocks.{layer}"
            found |= attention(f"{block}.attn")
            if side == "decoder":
                found |= attention(f"{block}.cross_attn")
            found |= norm(f"{block}.mlp_ln")
            for name, shape in (("mlp.0", (4 * WIDTH, WIDTH)), ("mlp.2", (WIDTH, 4 * WIDTH))):
                found[f"{block}.{name}.weight"], found[f"{block}.{name}.bias"] = matrix(*shape), matrix(shape[0])
    return found


def letters() -> list[str]:
    """GPT-2's printable stand-in for each byte."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def text_tokens() -> list[bytes]:
    """All bytes, and as many pairs of them as a vocabulary needs."""
    return [*(bytes([a]) for a in range(256)), *(bytes([a, b]) for a in range(256) for b in range(256))][:TEXTS]


def write_tokenizer(folder: Path) -> None:
    table = letters()
    tokens = ["".join(table[byte] for byte in token) for token in text_tokens()]
    model = {
        "type": "BPE",
        "vocab": {token: number for number, token in enumerate(tokens)},
        "merges": [f"{token[0]} {token[1]}" for token in tokens if len(token) == 2],
    }
    pre = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    content = {"model": model, "pre_tokenizer": pre, "decoder": {"type": "ByteLevel"}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")


def write_hugging_face(folder: Path, weights: Tensors) -> None:
    parts = {
        "attn_ln": "self_attn_layer_norm", "attn.query": "self_attn.q_proj", "attn.key": "self_attn.k_proj",
        "attn.value": "self_attn.v_proj", "attn.out": "self_attn.out_proj", "mlp_ln": "final_layer_norm",
        "cross_attn_ln": "encoder_attn_layer_norm", "cross_attn.query": "encoder_attn.q_proj",
        "cross_attn.key": "encoder_attn.k_proj", "cross_attn.value": "encoder_attn.v_proj",
        "cross_attn.out": "encoder_attn.out_proj", "mlp.0": "fc1", "mlp.2": "fc2",
    }  # fmt: skip
    outer = {
        "encoder.ln_post": "encoder.layer_norm", "decoder.ln": "decoder.layer_norm",
        "encoder.positional_embedding": "encoder.embed_positions.weight",
        "decoder.positional_embedding": "decoder.embed_positions.weight",
        "decoder.token_embedding": "decoder.embed_tokens",
    }  # fmt: skip
    renamed = {}
    for name, values in weights.items():
        stem, _, ending = name.rpartition(".")
        if ".blocks." in name:
            side, _, layer, rest = stem.split(".", 3)
            new = f"{side}.layers.{layer}.{parts[rest]}.{ending}"
        else:
            new = outer.get(name) or (f"{outer[stem]}.{ending}" if stem in outer else name)
        renamed[f"model.{new}"] = ("F16", values.astype(np.float16))
    renamed["proj_out.weight"] = ("F16", weights["decoder.token_embedding.weight"].astype(np.float16))
    (folder / "model.safetensors").write_bytes(safetensors_bytes(renamed))
    config = {
        "architectures": ["WhisperForConditionalGeneration"],
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"alignment_heads": ALIGNMENT}))
    write_tokenizer(folder)


def write_ctranslate2(folder: Path, weights: Tensors, int8: bool = False) -> None:
    """``int8`` stores the decoder's feed-forward as int8 with a scale for each row."""
    variables: dict[str, NDArray[Any]] = {}
    for side, norm in (("encoder", "ln_post"), ("decoder", "ln")):
        variables[f"{side}/layer_norm/gamma"] = weights[f"{side}.{norm}.weight"]
        variables[f"{side}/layer_norm/beta"] = weights[f"{side}.{norm}.bias"]
        variables[f"{side}/position_encodings/encodings"] = weights[f"{side}.positional_embedding"]
        variables[f"{side}/num_heads"] = np.array(HEADS, np.int16)
        for layer in range(LAYERS):
            old, new = f"{side}.blocks.{layer}", f"{side}/layer_{layer}"
            pairs = [("attn", "self_attention", (("query", "key", "value"), ("out",)))]
            if side == "decoder":
                pairs.append(("cross_attn", "attention", (("query",), ("key", "value"), ("out",))))
            for own, theirs, groups in pairs:
                variables[f"{new}/{theirs}/layer_norm/gamma"] = weights[f"{old}.{own}_ln.weight"]
                variables[f"{new}/{theirs}/layer_norm/beta"] = weights[f"{old}.{own}_ln.bias"]
                for number, names in enumerate(groups):
                    for ending in ("weight", "bias"):
                        zeros = np.zeros(WIDTH, np.float32)
                        joined = [weights.get(f"{old}.{own}.{name}.{ending}", zeros) for name in names]
                        variables[f"{new}/{theirs}/linear_{number}/{ending}"] = np.concatenate(joined)
            variables[f"{new}/ffn/layer_norm/gamma"] = weights[f"{old}.mlp_ln.weight"]
            variables[f"{new}/ffn/layer_norm/beta"] = weights[f"{old}.mlp_ln.bias"]
            for number, name in enumerate(("mlp.0", "mlp.2")):
                variables[f"{new}/ffn/linear_{number}/weight"] = weights[f"{old}.{name}.weight"]
                variables[f"{new}/ffn/linear_{number}/bias"] = weights[f"{old}.{name}.bias"]
    for name in ("conv1", "conv2"):
        for ending in ("weight", "bias"):
            variables[f"encoder/{name}/{ending}"] = weights[f"encoder.{name}.{ending}"]
    variables["decoder/embeddings/weight"] = weights["decoder.token_embedding.weight"]
    variables["decoder/alignment_heads"] = np.array([1, 0], np.int16)
    stored: dict[str, NDArray[Any]] = {}
    for name, values in variables.items():
        if int8 and "decoder" in name and "ffn/linear" in name and name.endswith("weight"):
            scale = 127 / np.abs(values).max(axis=1)
            stored[name] = np.rint(values * scale[:, None]).astype(np.int8)
            stored[f"{name}_scale"] = scale.astype(np.float32)
        else:
            stored[name] = values.astype(np.float16) if values.dtype == np.float32 else values
    codes = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    data = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(stored))
    for name, values in stored.items():
        data += text(name) + struct.pack("<B", values.ndim) + struct.pack(f"<{values.ndim}I", *values.shape)
        data += struct.pack("<BI", codes[values.dtype.name], values.nbytes) + np.ascontiguousarray(values).tobytes()
    data += struct.pack("<I", 0)
    (folder / "model.bin").write_bytes(data)
    (folder / "config.json").write_text(json.dumps({"alignment_heads": ALIGNMENT}))
    write_tokenizer(folder)


def write_ggml(path: Path, weights: Tensors) -> None:
    fields = (ROWS, SOURCE, WIDTH, HEADS, LAYERS, CONTEXT, WIDTH, HEADS, LAYERS, BINS, 1)
    data = struct.pack("<I11i", 0x67676D6C, *fields) + struct.pack("<2i", BINS, 201) + bytes(4 * BINS * 201)
    tokens = text_tokens()
    data += struct.pack("<i", len(tokens)) + b"".join(struct.pack("<I", len(token)) + token for token in tokens)
    pieces = [data]
    for name, values in weights.items():
        whole = values[:, None] if name in ("encoder.conv1.bias", "encoder.conv2.bias") else values
        half = whole.ndim > 1 and "positional" not in name and "bias" not in name
        numbers = whole.astype(np.float16 if half else np.float32)
        pieces.append(struct.pack("<3i", whole.ndim, len(name), int(half)))
        pieces.append(struct.pack(f"<{whole.ndim}i", *whole.shape[::-1]) + name.encode())
        pieces.append(numbers.tobytes())
    path.write_bytes(b"".join(pieces))


@contextmanager
def _fake_torch() -> Iterator[types.ModuleType]:
    """Modules that a pickle can name; reading it back needs none of them."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def rebuild(*_arguments: object) -> None:
        raise AssertionError("a pickle was executed")

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = rebuild  # type: ignore[attr-defined]
    torch._utils = utils  # type: ignore[attr-defined]
    torch.HalfStorage = type("HalfStorage", (), {"__module__": "torch"})  # type: ignore[attr-defined]
    before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules |= {"torch": torch, "torch._utils": utils}
    try:
        yield torch
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def write_openai(path: Path, weights: Tensors, extra: object = None) -> None:
    """OpenAI's .pt file; ``extra`` goes into the pickle as it is."""
    storages: list[bytes] = []
    with _fake_torch() as torch:

        class _Tensor:
            def __init__(self, values: NDArray[np.float32]) -> None:
                self.values = values

            def __reduce__(self) -> tuple[Any, ...]:
                strides = tuple(stride // 4 for stride in self.values.strides)
                arguments = (_Stored(self.values), 0, self.values.shape, strides, False, OrderedDict())
                return sys.modules["torch._utils"]._rebuild_tensor_v2, arguments

        class _Stored:
            def __init__(self, values: NDArray[np.float32]) -> None:
                self.values = values

        class _Pickler(pickle.Pickler):
            def persistent_id(self, value: object) -> Any:
                if not isinstance(value, _Stored):
                    return None
                storages.append(value.values.astype(np.float16).tobytes())
                return ("storage", torch.HalfStorage, str(len(storages) - 1), "cpu", value.values.size)

        buffer = io.BytesIO()
        dims = {"n_audio_head": HEADS, "n_text_head": HEADS}
        state = OrderedDict((name, _Tensor(np.ascontiguousarray(values))) for name, values in weights.items())
        content = {"dims": dims, "model_state_dict": state, **({} if extra is None else {"extra": extra})}
        _Pickler(buffer, 2).dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", buffer.getvalue())
        for number, data in enumerate(storages):
            archive.writestr(f"model/data/{number}", data)
    write_tokenizer(path.parent)
