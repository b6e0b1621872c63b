"""Adapters in Hugging Face's format with random matrices, and checkpoints into which they are merged in NumPy."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import read_safetensors, safetensors_bytes
from numpy.typing import NDArray

RANK, ALPHA = 4, 6.0
Matrices = dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True)
class RandomAdapter:
    """A folder as peft writes it, and what is in it: module to A (rank, input) and B (output, rank)."""

    folder: Path
    matrices: Matrices
    alpha: float = ALPHA

    def delta(self, module: str, scale: float) -> NDArray[np.float64]:
        """What the adapter adds to a weight of (output, input)."""
        a, b = self.matrices[module]
        return scale * self.alpha / len(a) * (b.astype(np.float64) @ a.astype(np.float64))


def as_float32(kind: str, values: NDArray[Any]) -> NDArray[np.float32]:
    """The values of a safetensors file; bfloat16 comes as uint16."""
    return (values.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else values.astype(np.float32)


def make_adapter(
    folder: Path, checkpoint: Path, modules: tuple[str, ...], seed: int, transposed: bool = False, **config: Any
) -> RandomAdapter:
    """A random adapter of all modules whose names end so. ``transposed``: the checkpoint stores (input, output)."""
    random = np.random.default_rng(seed)
    matrices: Matrices = {}
    tensors = {}
    for name, (_, weight) in read_safetensors(checkpoint / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if not name.endswith(".weight") or not module.endswith(modules):
            continue
        rows, columns = weight.shape[::-1] if transposed else weight.shape
        a = random.normal(0, 0.2, (RANK, columns)).astype(np.float32)
        b = random.normal(0, 0.2, (rows, RANK)).astype(np.float32)
        matrices[module] = a, b
        # In the other order than sorted names, as peft does now and then.
        tensors[f"base_model.model.{module}.lora_B.weight"] = ("F32", b)
        tensors[f"base_model.model.{module}.lora_A.weight"] = ("F32", a)
    assert matrices
    write_adapter(folder, tensors, **config)
    return RandomAdapter(folder, matrices)


def write_adapter(folder: Path, tensors: dict[str, tuple[str, NDArray[Any]]], **config: Any) -> None:
    """The two files of an adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors))
    values = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))


def merged_checkpoint(
    folder: Path, checkpoint: Path, adapters: list[tuple[RandomAdapter, float]], transposed: bool = False
) -> Path:
    """A copy of a checkpoint with adapters merged into it, each times a scale; all weights float32."""
    shutil.copytree(checkpoint, folder)
    tensors = {}
    for name, (kind, stored) in read_safetensors(checkpoint / "model.safetensors").items():
        values = as_float32(kind, stored).astype(np.float64)
        module = name.removesuffix(".weight")
        for adapter, scale in adapters:
            if module in adapter.matrices:
                delta = adapter.delta(module, scale)
                values = values + (delta.T if transposed else delta)
        tensors[name] = ("F32", values.astype(np.float32))
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return folder
