"""The small models that other tests stand on are themselves readable by the format's own package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest


def test_same_settings_give_the_same_file(tiny_model: Callable[..., Path]) -> None:
    assert tiny_model("llama", seed=1) == tiny_model("llama", seed=1)
    assert tiny_model("llama", seed=1).read_bytes() != tiny_model("llama", seed=2).read_bytes()


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1", "Q2_K", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS", "TQ2_0"])
def test_weight_types_have_the_spread_asked_for(tiny_model: Callable[..., Path], kind: str) -> None:
    path = tiny_model("llama", width=256, feed_forward=256, head_dim=64, weight_types=(kind,))
    reader = gguf.GGUFReader(path)
    tensor = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.ffn_up.weight")
    assert tensor.tensor_type.name == kind
    assert gguf.quants.dequantize(tensor.data, tensor.tensor_type).std() == pytest.approx(0.7 / 16, rel=0.15)
