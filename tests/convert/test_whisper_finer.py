"""A Q8_0 file of Whisper says the same with its head apart from the embedding, and keeps what is sensitive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_whisper
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.convert import ConvertSettings
from edgellm.convert.encode import to_float32
from edgellm.convert.tensors import LazyTensor, constant
from edgellm.convert.whisper import convert_whisper
from edgellm.convert.whisper_finer import finer
from edgellm.convert.writer import Planned
from edgellm.gguf import TensorType, open_gguf


def values(tensor: LazyTensor) -> np.ndarray:
    return to_float32(tensor.load(0, tensor.shape[0]), tensor.kind)


def head(embedding: np.ndarray, gain: np.ndarray, bias: np.ndarray) -> list[Planned]:
    return [
        Planned("token_embd.weight", constant(embedding), TensorType.Q8_0),
        Planned("output_norm.weight", constant(gain), TensorType.F32),
        Planned("output_norm.bias", constant(bias), TensorType.F32),
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 5, 40, 9000]), st.sampled_from([1e-3, 1, 1e3]), st.booleans())
def test_logits_differ_by_what_all_of_a_row_have_in_common(seed: int, rows: int, spread: float, zeros: bool) -> None:
    rng = np.random.default_rng(seed)
    embedding = spread * rng.normal(size=(rows, 64)) * np.exp(rng.normal(size=64)) + rng.normal(size=64)
    gain, bias = rng.normal(size=64), rng.normal(size=64)
    if zeros:
        embedding[:, 3], gain[5], bias[5] = 0, 0, 0
    embedding, gain, bias = (np.float32(array) for array in (embedding, gain, bias))
    found = {tensor.name: tensor for tensor in finer(head(embedding, gain, bias))}
    assert found["output.weight"].type is TensorType.Q8_0
    assert np.array_equal(values(found["token_embd.weight"].tensor), embedding)
    normed = rng.normal(size=(7, 64))
    expected = (normed * gain + bias) @ embedding.T.astype(np.float64)
    changed = normed * values(found["output_norm.weight"].tensor) + values(found["output_norm.bias"].tensor)
    got = changed @ values(found["output.weight"].tensor).T.astype(np.float64)
    difference = got - expected
    assert np.abs(difference - difference[:, :1]).max() <= 1e-4 * np.abs(expected).max()


def test_rounding_harms_less() -> None:
    """With columns of very different size, as Whisper's are, the head's error becomes a fraction."""
    rng = np.random.default_rng(0)
    embedding = np.float32(rng.normal(size=(2000, 96)) * 0.02 + rng.choice([0, 0.3], 96, p=[0.97, 0.03]))
    gain, bias = np.float32(np.exp(rng.normal(size=96))), np.zeros(96, np.float32)
    found = {tensor.name: tensor for tensor in finer(head(embedding, gain, bias))}
    normed = rng.normal(size=(50, 96))

    def error(weight: np.ndarray, gain: np.ndarray) -> float:
        blocks = weight.reshape(len(weight), -1, 32)
        scales = np.abs(blocks).max(axis=2, keepdims=True) / 127
        rounded = (np.round(blocks / scales) * scales).reshape(weight.shape)
        lost = normed * gain @ (rounded - weight).T
        return float((lost - lost.mean(axis=1, keepdims=True)).std())

    assert error(values(found["output.weight"].tensor), values(found["output_norm.weight"].tensor)) < 0.5 * error(
        embedding, gain
    )


@pytest.mark.parametrize("bad", ["shape", "nan", "inf"])
def test_what_cannot_be_balanced_stays(bad: str) -> None:
    embedding, gain, bias = np.ones((40, 64), np.float32), np.ones(64, np.float32), np.zeros(64, np.float32)
    if bad == "shape":
        gain = gain[:-1]
    else:
        embedding[3, 4] = np.nan if bad == "nan" else np.inf
    with np.errstate(all="ignore"):
        found = finer(head(embedding, gain, bias))
    assert [tensor.name for tensor in found] == ["token_embd.weight", "output_norm.weight", "output_norm.bias"]


@pytest.mark.parametrize("kind", ["q8_0", "f16"])
def test_types_in_the_file(tmp_path: Path, kind: str) -> None:
    (tmp_path / "model").mkdir()
    tiny_whisper.write_hugging_face(tmp_path / "model", tiny_whisper.tensors())
    path = convert_whisper(tmp_path / "model", tmp_path / "out.gguf", ConvertSettings(kind)).path
    with open_gguf(path) as file:
        types = {name: tensor.type.name for name, tensor in file.tensors.items()}
    kept = {name for name in types if ".attn_v.weight" in name or "attn_output.weight" in name}
    assert len(kept) >= 5
    if kind == "q8_0":
        assert {types[name] for name in kept} == {"F16"}
        assert types["output.weight"] == types["blk.0.cross_attn_v.weight"] == types["blk.0.attn_q.weight"] == "Q8_0"
    else:
        assert {types[name] for name in kept} == {kind.upper()}
        assert "output.weight" not in types
