"""Every fixture: names against the gguf package's own table, values against whole tensors rearranged in plain NumPy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from checkpoints import read_safetensors

from edgellm.gguf import GGUFFile, TensorType

FIXTURES = (
    "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "gemma", "gemma2", "gemma3", "gpt2", "gpt_oss", "granite",
    "llama", "llama-linear", "llama-yarn", "llama3-rope", "mistral", "mixtral", "olmo2", "phi2", "phi3",
    "phi3-longrope", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3",
)  # fmt: skip
Opener = Callable[..., GGUFFile]
Arrays = dict[str, np.ndarray]


def _checkpoint(shared: Path, name: str) -> tuple[dict[str, Any], Arrays]:
    folder = shared / "fixtures" / name
    tensors = {key: values for key, (_, values) in read_safetensors(folder / "model.safetensors").items()}
    return json.loads((folder / "config.json").read_text()), tensors


def _neighbours(rows: np.ndarray, heads: int) -> np.ndarray:
    """Row by row: row i and row i + half of a head become rows 2i and 2i + 1."""
    head = len(rows) // heads
    out = np.empty_like(rows)
    for number in range(heads):
        for i in range(head // 2):
            out[number * head + 2 * i] = rows[number * head + i]
            out[number * head + 2 * i + 1] = rows[number * head + head // 2 + i]
    return out


def _expected(name: str, config: dict[str, Any], tensors: Arrays) -> Arrays:
    """The tensors of the file by the names of the gguf package's table."""
    expected = dict(_special(config, tensors))
    names = gguf.get_tensor_name_map(
        next(arch for arch, text in gguf.MODEL_ARCH_NAMES.items() if text == ARCHITECTURES[config["model_type"]]),
        config.get("num_hidden_layers", config.get("n_layer")),
    )
    interleaved = config["model_type"] in ("llama", "mistral", "mixtral", "smollm3", "granite")
    for old, values in tensors.items():
        if re.search(r"experts|kv_b_proj|sinks|score_correction", old) and "shared_experts" not in old:
            continue
        new = names.get_name(old, try_suffixes=(".weight", ".bias"))
        assert new is not None, old
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(old.split(".")[-2])
        if interleaved and heads:
            values = _neighbours(values, config[heads])
        if config["model_type"].startswith("gemma") and new.endswith("norm.weight"):
            values = values + np.float32(1)
        if config["model_type"] == "gpt2" and re.search(r"c_(attn|proj|fc)\.weight", old):
            values = values.T
        expected[new] = values
    return expected


ARCHITECTURES = {
    "cohere": "command-r", "cohere2": "cohere2", "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2",
    "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3", "gpt2": "gpt2", "gpt_oss": "gpt-oss",
    "granite": "granite",
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "olmo2": "olmo2", "phi": "phi2", "phi3": "phi3",
    "qwen2": "qwen2", "qwen2_moe": "qwen2moe", "qwen3": "qwen3", "qwen3_moe": "qwen3moe", "smollm3": "smollm3",
}  # fmt: skip


def _special(config: dict[str, Any], tensors: Arrays) -> list[tuple[str, np.ndarray]]:
    """What is no renaming: experts, latent attention, tables of frequencies, sinks."""
    found: list[tuple[str, np.ndarray]] = []
    for layer in range(config.get("num_hidden_layers", 0)):
        old, new = f"model.layers.{layer}", f"blk.{layer}"
        for source, target in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
            for pattern in (
                f"{old}.mlp.experts.%d.{source}_proj.weight",
                f"{old}.block_sparse_moe.experts.%d.{target}.weight",
            ):
                parts = [tensors[pattern % number] for number in range(64) if pattern % number in tensors]
                if parts:
                    found.append((f"{new}.ffn_{source}_exps.weight", np.stack(parts)))
        if f"{old}.self_attn.kv_b_proj.weight" in tensors:
            both = tensors[f"{old}.self_attn.kv_b_proj.weight"]
            both = both.reshape(config["num_attention_heads"], -1, both.shape[1])
            plain = config["qk_nope_head_dim"]
            found.append((f"{new}.attn_k_b.weight", both[:, :plain].transpose(0, 2, 1)))
            found.append((f"{new}.attn_v_b.weight", both[:, plain:]))
        if f"{old}.mlp.gate.e_score_correction_bias" in tensors:
            found.append((f"{new}.exp_probs_b.bias", tensors[f"{old}.mlp.gate.e_score_correction_bias"]))
        if f"{old}.self_attn.sinks" in tensors:
            experts = f"{old}.mlp.experts"
            found.append((f"{new}.attn_sinks.weight", tensors[f"{old}.self_attn.sinks"]))
            found.append((f"{new}.ffn_down_exps.weight", tensors[f"{experts}.down_proj"].transpose(0, 2, 1)))
            found.append((f"{new}.ffn_down_exps.bias", tensors[f"{experts}.down_proj_bias"]))
            for first, part in enumerate(("gate", "up")):
                both = tensors[f"{experts}.gate_up_proj"].transpose(0, 2, 1)
                found.append((f"{new}.ffn_{part}_exps.weight", both[:, first::2]))
                found.append((f"{new}.ffn_{part}_exps.bias", tensors[f"{experts}.gate_up_proj_bias"][:, first::2]))
    rope = config.get("rope_parameters", {})
    if rope.get("rope_type") == "llama3":
        found.append(("rope_freqs.weight", _llama3_divisors(rope, config["head_dim"])))
    for length in ("long", "short"):
        if f"{length}_factor" in rope:
            found.append((f"rope_factors_{length}.weight", np.array(rope[f"{length}_factor"], np.float32)))
    return found


def _llama3_divisors(rope: dict[str, Any], dimensions: int) -> np.ndarray:
    """The method as Llama 3.1's authors publish it, by wavelengths."""
    divisors = []
    for pair in range(dimensions // 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (2 * pair / dimensions)
        original, factor = rope["original_max_position_embeddings"], rope["factor"]
        if wavelength < original / rope["high_freq_factor"]:
            divisors.append(1.0)
        elif wavelength > original / rope["low_freq_factor"]:
            divisors.append(factor)
        else:
            smooth = original / wavelength - rope["low_freq_factor"]
            smooth /= rope["high_freq_factor"] - rope["low_freq_factor"]
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


@pytest.mark.parametrize("name", FIXTURES)
def test_names_and_values(name: str, shared: Path, converted: Opener) -> None:
    config, tensors = _checkpoint(shared, name)
    file = converted(name)
    assert file.metadata["general.architecture"] == ARCHITECTURES[config["model_type"]]
    expected = _expected(name, config, tensors)
    assert set(file.tensors) == set(expected)
    for key, values in expected.items():
        exact = "rope_freqs" not in key
        np.testing.assert_allclose(file.decode(key), values, rtol=0 if exact else 1e-6, atol=0, err_msg=key)


@pytest.mark.parametrize("name", FIXTURES)
def test_keys(name: str, shared: Path, converted: Opener) -> None:
    """What the config says, under the names of the format."""
    config, _ = _checkpoint(shared, name)
    metadata = converted(name).metadata
    architecture = metadata["general.architecture"]

    def key(part: str) -> Any:
        return metadata.get(f"{architecture}.{part}")

    old = config["model_type"] == "gpt2"
    latent = config["model_type"].startswith("deepseek")
    assert key("block_count") == config["n_layer" if old else "num_hidden_layers"]
    assert key("context_length") == config["n_positions" if old else "max_position_embeddings"]
    assert key("embedding_length") == config["n_embd" if old else "hidden_size"]
    assert key("feed_forward_length") == config["n_inner" if old else "intermediate_size"]
    assert key("attention.head_count") == config["n_head" if old else "num_attention_heads"]
    if not old:
        assert key("attention.head_count_kv") == (1 if latent else config["num_key_value_heads"])
        rope = config["rope_parameters"]
        assert key("rope.freq_base") == rope.get("full_attention", rope)["rope_theta"]
    epsilon = config.get("rms_norm_eps")
    if epsilon is not None:
        assert key("attention.layer_norm_rms_epsilon") == pytest.approx(epsilon)
    else:
        epsilon = config.get("layer_norm_eps", config.get("layer_norm_epsilon"))
        assert key("attention.layer_norm_epsilon") == pytest.approx(epsilon)
    if config.get("head_dim") and not latent:
        assert key("attention.key_length") == key("attention.value_length") == config["head_dim"]
    assert metadata["general.file_type"] == 0
    assert metadata["general.name"] == "tiny"


OWN_KEYS: dict[str, dict[str, Any]] = {
    "llama": {"llama.rope.dimension_count": 16, "llama.vocab_size": 384, "llama.rope.scaling.type": None},
    "llama-linear": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0},
    "llama-yarn": {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 32,
    },
    "llama3-rope": {"llama.rope.scaling.type": None},
    "mistral": {"llama.attention.sliding_window": 16},
    "mixtral": {"llama.expert_count": 4, "llama.expert_used_count": 2, "llama.attention.sliding_window": None},
    "qwen2": {"qwen2.attention.sliding_window": None},
    "qwen2_moe": {
        "qwen2moe.expert_count": 6,
        "qwen2moe.expert_used_count": 2,
        "qwen2moe.expert_feed_forward_length": 64,
        "qwen2moe.expert_shared_feed_forward_length": 64,
    },
    "qwen3_moe": {
        "qwen3moe.expert_count": 8,
        "qwen3moe.expert_used_count": 3,
        "qwen3moe.expert_feed_forward_length": 64,
    },
    "gemma": {"gemma.attention.key_length": 16, "tokenizer.ggml.add_space_prefix": False},
    "gemma2": {
        "gemma2.attn_logit_softcapping": 50.0,
        "gemma2.final_logit_softcapping": 30.0,
        "gemma2.attention.sliding_window": 16,
        "gemma2.attention.sliding_window_pattern": None,
        "gemma2.attention.scale": None,
    },
    "gemma3": {
        "gemma3.attention.sliding_window": 16,
        "gemma3.rope.freq_base": 1e6,
        "gemma3.rope.freq_base_swa": 1e4,
        "gemma3.final_logit_softcapping": None,
    },
    "phi2": {"phi2.rope.dimension_count": 8, "tokenizer.ggml.add_bos_token": False},
    "phi3": {"phi3.attention.sliding_window": 0, "phi3.rope.scaling.original_context_length": 4096},
    "phi3-longrope": {
        "phi3.rope.scaling.type": "longrope",
        "phi3.rope.scaling.original_context_length": 32,
        "phi3.rope.scaling.attn_factor": float(np.float32(np.sqrt(1 + np.log(4) / np.log(32)))),
    },
    "smollm3": {"smollm3.rope.dimension_count": 16},
    "granite": {
        "granite.attention.scale": float(np.float32(0.02)),
        "granite.embedding_scale": 6.0,
        "granite.residual_scale": float(np.float32(0.22)),
        "granite.logit_scale": 4.0,
    },
    "cohere": {"command-r.logit_scale": 0.25, "command-r.rope.scaling.type": "none"},
    "cohere2": {
        "cohere2.logit_scale": 0.25,
        "cohere2.attention.sliding_window": 16,
        "cohere2.rope.dimension_count": 16,
    },
    "gpt_oss": {
        "gpt-oss.expert_count": 4,
        "gpt-oss.expert_used_count": 2,
        "gpt-oss.expert_feed_forward_length": 64,
        "gpt-oss.attention.sliding_window": 16,
        "gpt-oss.rope.scaling.type": "yarn",
    },
    "deepseek_v2": {
        "deepseek2.attention.key_length": 24,
        "deepseek2.attention.value_length": 16,
        "deepseek2.attention.key_length_mla": 24,
        "deepseek2.attention.value_length_mla": 16,
        "deepseek2.attention.kv_lora_rank": 16,
        "deepseek2.attention.q_lora_rank": None,
        "deepseek2.leading_dense_block_count": 1,
        "deepseek2.expert_gating_func": 1,
        "deepseek2.expert_group_count": None,
        "deepseek2.rope.dimension_count": 8,
    },
    "deepseek_v3": {
        "deepseek2.attention.q_lora_rank": 24,
        "deepseek2.expert_gating_func": 2,
        "deepseek2.expert_group_count": 2,
        "deepseek2.expert_group_used_count": 1,
        "deepseek2.expert_weights_norm": True,
        "deepseek2.expert_weights_scale": 2.5,
        "deepseek2.expert_shared_count": 1,
    },
}


@pytest.mark.parametrize("name", OWN_KEYS)
def test_keys_of_their_own(name: str, converted: Opener) -> None:
    metadata = converted(name).metadata
    assert {key: metadata.get(key) for key in OWN_KEYS[name]} == OWN_KEYS[name]


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", ["mixtral", "gpt2", "gpt_oss", "deepseek_v3", "phi2"])
def test_types(name: str, kind: str, converted: Opener) -> None:
    """Norms, biases, routers and positions stay float32; the rest is what the package's quantizers make of it."""
    file, exact = converted(name, kind), converted(name)
    wanted = TensorType[kind.upper()]
    for key, info in file.tensors.items():
        small = len(info.shape) < 2 or "norm" in key or key.endswith(".bias") or "gate_inp" in key or "position" in key
        fits = info.shape[-1] % wanted.block_size == 0
        assert info.type is (TensorType.F32 if small else wanted if fits else TensorType.F16), key
        values = exact.decode(key)
        stored = gguf.quants.quantize(values.reshape(-1, values.shape[-1]), gguf.GGMLQuantizationType(int(info.type)))
        assert np.array_equal(file.raw(key), np.atleast_2d(stored).view(np.uint8).reshape(file.raw(key).shape)), key


def test_unknown_architectures_name_the_nearest(tmp_path: Path, shared: Path) -> None:
    from edgellm.convert import convert
    from edgellm.errors import UnsupportedModelError

    for path in (shared / "fixtures" / "llama").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["Gemma9ForCausalLM"]}))
    with pytest.raises(UnsupportedModelError, match="Gemma9ForCausalLM cannot be converted; nearest: Gemma"):
        convert(tmp_path, tmp_path / "out.gguf")
