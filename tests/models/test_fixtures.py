"""Architectures against logits of the original implementations, on small random checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from batches import whole_logits
from hugging_face import convert

from edgellm.gguf import open_gguf
from edgellm.graph import Value
from edgellm.models import GraphBuilder, build_graph, known_architectures, registry
from edgellm.platforms.reference import ReferenceExecutor
from edgellm.weights import WeightStore

CHECKPOINTS = ["llama", "llama3-rope", "llama-linear", "llama-yarn", "mistral", "qwen2", "gemma3"]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_agree_with_the_original(shared: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.gguf"
    convert(shared / "fixtures" / name, path)
    with open_gguf(path) as file:
        executor = ReferenceExecutor(build_graph(file), WeightStore(file))
        reference = np.load(shared / "fixtures" / name / "reference.npz")
        for key in ("a", "b", "long"):
            expected = reference[f"logits_{key}"]
            got = whole_logits(executor, reference[f"ids_{key}"].tolist(), chunk=37)
            assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_longrope_takes_short_factors_within_the_original_context_and_long_ones_beyond(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Phi-3, described here as a llama whose fused weights were split when they were converted."""
    known_architectures()
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))

    @registry.architecture("split-phi3")
    def split_phi3(model: GraphBuilder) -> Value:
        rope = model.rope_table(interleaved=False)
        x = model.embedding()
        for layer in range(model.layers):
            x = model.add(x, model.self_attention(model.norm(x, f"blk.{layer}.attn_norm"), layer, rope))
            x = model.add(x, model.feed_forward(model.norm(x, f"blk.{layer}.ffn_norm"), layer, "silu"))
        return model.logits(x)

    path = tmp_path / "model.gguf"
    convert(shared / "fixtures" / "phi3-longrope", path)
    reference = np.load(shared / "fixtures" / "phi3-longrope" / "reference.npz")
    with open_gguf(path) as file:
        for key, context_length in (("b", 32), ("a", 64), ("long", None)):
            executor = ReferenceExecutor(build_graph(file, context_length), WeightStore(file))
            expected = reference[f"logits_{key}"]
            got = whole_logits(executor, reference[f"ids_{key}"].tolist())
            assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max(), key
