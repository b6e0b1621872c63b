"""Checkpoints whose weights are packed: BitNet's ternary ones, gpt-oss's MXFP4, DeepSeek's 8-bit floats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import read_safetensors, safetensors_bytes, write_json

from edgellm.convert import ConvertSettings, convert
from edgellm.errors import CorruptFileError, UnsupportedModelError
from edgellm.gguf import TensorType, open_gguf

Tensors = dict[str, tuple[str, np.ndarray]]


def _copy(source: Path, folder: Path, tensors: Tensors, **config: Any) -> Path:
    """A checkpoint like another with other tensors and other settings."""
    folder.mkdir(exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    write_json(folder / "config.json", {**json.loads((source / "config.json").read_text()), **config})
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return folder


@pytest.fixture
def bitnet(shared: Path) -> Path:
    return shared / "models" / "bitnet-tiny"


def _unpacked(packed: np.ndarray) -> np.ndarray:
    """Value by value: the i-th quarter of the rows is in bits 2i and 2i + 1."""
    quarter = len(packed)
    out = np.empty((4 * quarter, packed.shape[1]), np.float32)
    for row in range(4 * quarter):
        out[row] = (packed[row % quarter] >> 2 * (row // quarter) & 3).astype(np.float32) - 1
    return out


@pytest.mark.parametrize("kind", ["auto", "tq1_0", "tq2_0", "f32", "f16", "q8_0"])
def test_bitnet(bitnet: Path, tmp_path: Path, kind: str) -> None:
    tensors = read_safetensors(bitnet / "model.safetensors")
    done = convert(bitnet, tmp_path / "out.gguf", ConvertSettings(type=kind))
    assert done.architecture == "bitnet-b1.58"
    assert done.type == ("tq2_0" if kind == "auto" else kind)
    with open_gguf(done.path) as file:
        assert file.metadata["general.file_type"] == {"tq1_0": 36, "f32": 0, "f16": 1, "q8_0": 7}.get(kind, 37)
        for old, new in (("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"), ("mlp.down_proj", "ffn_down")):
            packed = tensors[f"model.layers.2.{old}.weight"][1]
            scale = (tensors[f"model.layers.2.{old}.weight_scale"][1].astype(np.uint32) << 16).view(np.float32)
            name = f"blk.2.{new}.weight"
            assert file.tensors[name].type is TensorType[done.type.upper()]
            exact = _unpacked(packed) * scale
            if kind == "q8_0":  # a block's scale times 127 is rounded
                np.testing.assert_allclose(file.decode(name), exact, rtol=1e-3)
            else:
                assert np.array_equal(file.decode(name), exact)
        assert file.tensors["token_embd.weight"].type is TensorType[{"f32": "F32", "q8_0": "Q8_0"}.get(kind, "F16")]
        assert file.tensors["blk.0.attn_sub_norm.weight"].type is TensorType.F32
        assert file.tensors["blk.0.ffn_sub_norm.weight"].shape == (768,)


def test_bitnet_layers_that_divide(bitnet: Path, tmp_path: Path) -> None:
    """Of the class ``bitlinear``, which is meant where none is named."""
    tensors = read_safetensors(bitnet / "model.safetensors")
    folder = _copy(bitnet, tmp_path / "c", tensors, quantization_config={"quant_method": "bitnet"})
    with open_gguf(convert(folder, tmp_path / "out.gguf", ConvertSettings(type="f32")).path) as file:
        packed = tensors["model.layers.0.mlp.up_proj.weight"][1]
        scale = (tensors["model.layers.0.mlp.up_proj.weight_scale"][1].astype(np.uint32) << 16).view(np.float32)
        assert np.array_equal(file.decode("blk.0.ffn_up.weight"), _unpacked(packed) / scale)


@pytest.mark.parametrize(
    "quantization", [{"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}, None]
)
def test_bitnet_with_real_weights(bitnet: Path, tmp_path: Path, quantization: dict[str, str] | None) -> None:
    """They are rounded as the layers do: by the mean of their magnitudes."""
    random = np.random.default_rng(0)
    tensors: Tensors = {}
    for name, (kind, values) in read_safetensors(bitnet / "model.safetensors").items():
        if kind == "U8":
            weights = (random.standard_normal((4 * len(values), values.shape[1])) * 0.05).astype(np.float32)
            tensors[name] = ("BF16", (weights.view(np.uint32) >> 16).astype(np.uint16))
        elif not name.endswith("weight_scale"):
            tensors[name] = (kind, values)
    folder = _copy(bitnet, tmp_path / "c", tensors, quantization_config=quantization)
    done = convert(folder, tmp_path / "out.gguf")
    assert done.type == "tq2_0"
    with open_gguf(done.path) as file:
        weights = (tensors["model.layers.1.mlp.gate_proj.weight"][1].astype(np.uint32) << 16).view(np.float32)
        scale = np.abs(weights).mean()
        expected = np.clip(np.round(weights / scale), -1, 1)
        decoded = file.decode("blk.1.ffn_gate.weight")
        assert np.array_equal(np.sign(decoded), expected)
        np.testing.assert_allclose(np.abs(decoded).max(), scale, rtol=2**-11)


def test_older_bitnet(bitnet: Path, tmp_path: Path) -> None:
    """The first models have SiLU, which makes another architecture, and other names for the norms within."""
    tensors = {}
    for name, entry in read_safetensors(bitnet / "model.safetensors").items():
        name = name.replace("self_attn.attn_sub_norm", "self_attn.inner_attn_ln")
        tensors[name.replace("mlp.ffn_sub_norm", "mlp.ffn_layernorm")] = entry
    folder = _copy(bitnet, tmp_path / "c", tensors, architectures=["BitnetForCausalLM"], hidden_act="silu")
    done = convert(folder, tmp_path / "out.gguf")
    assert done.architecture == "bitnet"
    with open_gguf(done.path) as file:
        assert file.metadata["bitnet.rope.scaling.type"] == "linear"
        assert {"blk.3.attn_sub_norm.weight", "blk.3.ffn_sub_norm.weight"} <= set(file.tensors)


def test_damaged_bitnet(bitnet: Path, tmp_path: Path) -> None:
    tensors = read_safetensors(bitnet / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    without = {key: entry for key, entry in tensors.items() if key != f"{name}_scale"}
    with pytest.raises(CorruptFileError, match=r"up_proj.weight is packed but has no weight_scale"):
        convert(_copy(bitnet, tmp_path / "a", without), tmp_path / "a.gguf")
    wrong = {**tensors, name: ("U8", np.full_like(tensors[name][1], 0xFF))}
    with pytest.raises(CorruptFileError, match="a value that is not ternary"):
        convert(_copy(bitnet, tmp_path / "b", wrong), tmp_path / "b.gguf")
    zero = {**tensors, f"{name}_scale": ("BF16", np.zeros(1, np.uint16))}
    with pytest.raises(CorruptFileError, match="a weight_scale is 0"):
        convert(_copy(bitnet, tmp_path / "d", zero), tmp_path / "d.gguf")


def test_ternary_types_need_ternary_weights(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="type tq2_0 is for models with ternary weights"):
        convert(shared / "fixtures" / "llama", tmp_path / "out.gguf", ConvertSettings(type="tq2_0"))


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def _from_mxfp4(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Neighbours share a byte, the first in its low half; (experts, rows, columns)."""
    values = np.empty((*blocks.shape[:-1], 32), np.float32)
    for byte in range(16):
        values[..., 2 * byte] = E2M1[blocks[..., byte] & 15]
        values[..., 2 * byte + 1] = E2M1[blocks[..., byte] >> 4]
    values *= 2.0 ** (scales[..., None].astype(np.float32) - 127)
    return values.reshape(*blocks.shape[:2], -1)


@pytest.mark.parametrize("kind", ["auto", "q8_0"])
def test_mxfp4(shared: Path, tmp_path: Path, kind: str) -> None:
    source = shared / "fixtures" / "gpt_oss"
    random = np.random.default_rng(0)
    tensors: Tensors = {}
    for name, (dtype, values) in read_safetensors(source / "model.safetensors").items():
        if name.endswith(("experts.down_proj", "experts.gate_up_proj")):
            experts, columns, rows = values.shape
            tensors[f"{name}_blocks"] = ("U8", random.integers(0, 256, (experts, rows, columns // 32, 16), np.uint8))
            tensors[f"{name}_scales"] = ("U8", random.integers(118, 130, (experts, rows, columns // 32), np.uint8))
        else:
            bits = np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16
            tensors[name] = ("BF16", bits.astype(np.uint16)) if dtype == "F32" else (dtype, values)
    folder = _copy(source, tmp_path / "c", tensors, quantization_config={"quant_method": "mxfp4"})
    done = convert(folder, tmp_path / "out.gguf", ConvertSettings(type=kind))
    with open_gguf(done.path) as file:
        assert file.metadata["general.file_type"] == (38 if kind == "auto" else 7)
        assert file.tensors["token_embd.weight"].type is TensorType["BF16" if kind == "auto" else "Q8_0"]
        old = "model.layers.1.mlp.experts"
        down, both = (
            _from_mxfp4(tensors[f"{old}.{name}_blocks"][1], tensors[f"{old}.{name}_scales"][1])
            for name in ("down_proj", "gate_up_proj")
        )
        expected = {"down": down, "gate": both[:, 0::2], "up": both[:, 1::2]}
        for name, values in expected.items():
            info = file.tensors[f"blk.1.ffn_{name}_exps.weight"]
            assert info.type is TensorType.MXFP4
            assert info.shape == values.shape
            assert np.array_equal(file.decode(info.name), values)


def _e4m3(code: int) -> float:
    sign, exponent, mantissa = -1 if code & 0x80 else 1, code >> 3 & 15, code & 7
    return sign * (mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10))


def test_blocks_of_8_bit_floats(shared: Path, tmp_path: Path) -> None:
    source = shared / "fixtures" / "deepseek_v3"
    random = np.random.default_rng(0)
    tensors = read_safetensors(source / "model.safetensors")
    codes = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)
    name = "model.layers.0.mlp.gate_proj.weight"
    rows, columns = tensors[name][1].shape
    stored = random.choice(codes, (rows, columns))
    scales = random.uniform(0.001, 0.01, (-(-rows // 48), -(-columns // 24))).astype(np.float32)
    tensors[name] = ("F8_E4M3", stored)
    tensors[f"{name}_scale_inv"] = ("F32", scales)
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [48, 24]}
    folder = _copy(source, tmp_path / "c", tensors, quantization_config=quantization)
    done = convert(folder, tmp_path / "out.gguf", ConvertSettings(type="f32"))
    with open_gguf(done.path) as file:
        values = file.decode("blk.0.ffn_gate.weight")
        for row, column in random.integers(0, [rows, columns], (300, 2)):
            expected = np.float32(_e4m3(int(stored[row, column]))) * scales[row // 48, column // 24]
            assert values[row, column] == expected
    assert convert(folder, tmp_path / "auto.gguf").type == "bf16"
    tensors[f"{name}_scale_inv"] = ("F32", scales[:, :1])
    with pytest.raises(CorruptFileError, match=r"gate_proj.weight and its scales do not go together"):
        convert(_copy(source, tmp_path / "d", tensors, quantization_config=quantization), tmp_path / "d.gguf")


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "quanto"])
def test_other_quantizations_are_refused_by_name(shared: Path, tmp_path: Path, method: str) -> None:
    source = shared / "fixtures" / "llama"
    tensors = read_safetensors(source / "model.safetensors")
    folder = _copy(source, tmp_path / "c", tensors, quantization_config={"quant_method": method})
    with pytest.raises(UnsupportedModelError, match=f"quantized with {method}.*known: bitnet, mxfp4, fp8"):
        convert(folder, tmp_path / "out.gguf")
