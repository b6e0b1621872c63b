"""A Q8_0 file of Whisper: its table of tokens is balanced and says the same, and the scales of blocks are searched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_whisper
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgellm.convert import ConvertSettings
from edgellm.convert.encode import encode, to_float32
from edgellm.convert.tensors import LazyTensor, constant
from edgellm.convert.whisper import convert_whisper
from edgellm.convert.whisper_finer import encode_searched, finer
from edgellm.convert.writer import Planned
from edgellm.gguf import TensorType, decode, open_gguf
from edgellm.models.whisper import build_whisper
from edgellm.platforms.batch import Batch
from edgellm.platforms.reference_speech import ReferenceSpeechExecutor
from edgellm.weights import WeightStore

Float32 = NDArray[np.float32]


def values(tensor: LazyTensor) -> Float32:
    return to_float32(tensor.load(0, tensor.shape[0]), tensor.kind)


def decoded(planned: Planned) -> Float32:
    loaded = planned.tensor.load(0, planned.tensor.shape[0])
    return decode(loaded.reshape(-1), planned.type).reshape(planned.shape) if planned.tensor.kind == "U8" else loaded


def table_and_norm(table: Float32, gain: Float32, bias: Float32, positions: Float32) -> list[Planned]:
    return [
        Planned("token_embd.weight", constant(table), TensorType.Q8_0),
        Planned("position_embd.weight", constant(positions), TensorType.F32),
        Planned("output_norm.weight", constant(gain), TensorType.F32),
        Planned("output_norm.bias", constant(bias), TensorType.F32),
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 5, 40, 9000]), st.sampled_from([1e-3, 1, 1e3]), st.booleans())
def test_what_is_looked_up_and_probabilities_stay(seed: int, rows: int, spread: float, zeros: bool) -> None:
    rng = np.random.default_rng(seed)
    table = spread * rng.normal(size=(rows, 64)) * np.exp(rng.normal(size=64)) + rng.normal(size=64)
    gain, bias, positions = rng.normal(size=64), rng.normal(size=64), rng.normal(size=(7, 64))
    if zeros:
        table[:, 3], gain[5], bias[5] = 0, 0, 0
    table, gain, bias, positions = (np.float32(array) for array in (table, gain, bias, positions))
    found = {tensor.name: tensor for tensor in finer(table_and_norm(table, gain, bias, positions))}
    assert found["token_embd.weight"].type is TensorType.Q8_0
    scale = values(found["token_embd_scale.weight"].tensor)
    stored = decoded(found["token_embd.weight"])
    step = np.repeat(np.abs(stored).reshape(rows, 2, 32).max(axis=2), 32, axis=1) / 120  # of a block
    room = step * np.abs(scale) + 1e-5 * np.abs(table).max()
    expected = table[:, None] + positions
    got = (stored * scale)[:, None] + values(found["position_embd.weight"].tensor)
    assert (np.abs(got - expected) <= room[:, None] + 1e-5 * np.abs(positions).max()).all()
    normed = rng.normal(size=(7, 64))
    changed = normed * values(found["output_norm.weight"].tensor) + values(found["output_norm.bias"].tensor)
    difference = changed @ stored.T.astype(np.float64) - (normed * gain + bias) @ table.T.astype(np.float64)
    difference -= difference.mean(axis=1, keepdims=True)  # all of a row may move together
    room = 2 * (np.abs(changed) @ step.T).max(axis=1, keepdims=True)
    assert (np.abs(difference) <= room + 1e-4 * np.abs(changed).max() * np.abs(stored).max()).all()


def test_rounding_harms_less() -> None:
    """With columns of very different size, as Whisper's are, the head's error becomes a fraction."""
    rng = np.random.default_rng(0)
    table = np.float32(rng.normal(size=(2000, 96)) * np.where(np.arange(96) % 32 == 5, 0.5, 0.02))
    gain, bias = np.where(np.arange(96) % 32 == 5, 0.04, 1).astype(np.float32), np.zeros(96, np.float32)
    found = {t.name: t for t in finer(table_and_norm(table, gain, bias, np.zeros((3, 96), np.float32)))}
    normed = rng.normal(size=(50, 96))
    exact = normed * gain @ table.T

    def error(logits: NDArray[np.float64]) -> float:
        lost = logits - exact
        return float((lost - lost.mean(axis=1, keepdims=True)).std())

    plain = decode(encode(table, "F32", TensorType.Q8_0), TensorType.Q8_0).reshape(table.shape)
    balanced = normed * values(found["output_norm.weight"].tensor) @ decoded(found["token_embd.weight"]).T
    assert error(balanced) < 0.3 * error(normed * gain @ plain.T)


@pytest.mark.parametrize("bad", ["shape", "nan", "inf", "head"])
def test_what_cannot_be_balanced_stays(bad: str) -> None:
    table, gain, bias = np.ones((40, 64), np.float32), np.ones(64, np.float32), np.zeros(64, np.float32)
    positions = np.ones((7, 64), np.float32)
    if bad == "shape":
        gain = gain[:-1]
    elif bad != "head":
        table[3, 4] = np.nan if bad == "nan" else np.inf
    planned = table_and_norm(table, gain, bias, positions)
    if bad == "head":
        planned.append(Planned("output.weight", constant(table), TensorType.Q8_0))
    with np.errstate(all="ignore"):
        found = finer(planned)
    assert [tensor.name for tensor in found] == [tensor.name for tensor in planned]
    assert np.array_equal(values(found[1].tensor), positions)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 70),
    st.sampled_from([0, 1e-12, 1e-7, 1e-3, 1, 1e3, 1e6, 1e8]),
    st.sampled_from(["normal", "sparse", "one", "cauchy"]),
)
def test_searched_scales_are_never_worse(seed: int, blocks: int, size: float, kind: str) -> None:
    rng = np.random.default_rng(seed)
    weights = {
        "normal": lambda: rng.normal(size=(blocks, 32)),
        "sparse": lambda: rng.normal(size=(blocks, 32)) * (rng.random((blocks, 32)) < 0.1),
        "one": lambda: np.full((blocks, 32), rng.normal()),
        "cauchy": lambda: np.clip(rng.standard_cauchy((blocks, 32)), -1e4, 1e4),
    }[kind]()
    weights = np.float32(size * weights)
    with np.errstate(all="ignore"):
        plain = decode(encode(weights, "F32", TensorType.Q8_0), TensorType.Q8_0).reshape(weights.shape)
        found = decode(encode_searched(weights), TensorType.Q8_0).reshape(weights.shape)
        before, after = (np.square(np.float64(x) - weights).sum(axis=1) for x in (plain, found))
    same = np.isnan(before) & np.isnan(after) | (before == after)  # of scales beyond half precision
    assert (same | (after <= before + 1e-6 * np.square(np.float64(weights)).sum(axis=1))).all()  # float32 sums


def test_searched_scales_are_better() -> None:
    weights = np.float32(np.random.default_rng(0).normal(size=(3000, 64)))
    errors = [
        np.square(decode(coded, TensorType.Q8_0).reshape(weights.shape) - weights).sum()
        for coded in (encode_searched(weights), encode(weights, "F32", TensorType.Q8_0))
    ]
    assert errors[0] < 0.88 * errors[1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_coded_as_without_search(value: float) -> None:
    weights = np.ones((4, 32), np.float32)
    weights[1, 7] = value
    with np.errstate(all="ignore"):
        plain = encode(weights, "F32", TensorType.Q8_0).reshape(4, -1)
        found = encode_searched(weights).reshape(4, -1)
    assert np.array_equal(found[1], plain[1])
    assert np.abs(decode(found[2], TensorType.Q8_0) - 1).max() < 1e-4


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("finer")
    (folder / "model").mkdir()
    weights, rng = tiny_whisper.tensors(), np.random.default_rng(2)
    table = weights["decoder.token_embedding.weight"]  # with columns of different means and sizes, as a real one
    width = table.shape[1]
    table = table * np.exp(rng.normal(size=width) / 2) + table.std() * rng.normal(size=width)
    weights["decoder.token_embedding.weight"] = table.astype(np.float32)
    tiny_whisper.write_hugging_face(folder / "model", weights)
    return {
        kind: convert_whisper(folder / "model", folder / f"{kind}.gguf", ConvertSettings(kind)).path
        for kind in ("f32", "f16", "q8_0")
    }


@pytest.mark.parametrize("kind", ["q8_0", "f16"])
def test_types_in_the_file(files: dict[str, Path], kind: str) -> None:
    with open_gguf(files[kind]) as file:
        types = {name: tensor.type.name for name, tensor in file.tensors.items()}
    kept = {
        name for name in types if name.startswith("enc.") and name.endswith(("attn_v.weight", "attn_output.weight"))
    }
    assert len(kept) == 2 * tiny_whisper.LAYERS
    assert {types[name] for name in kept} == {"F16"}
    assert ("token_embd_scale.weight" in types) == (kind == "q8_0")
    if kind == "q8_0":
        assert types["token_embd_scale.weight"] == types["position_embd.weight"] == "F32"
        assert (
            types["token_embd.weight"]
            == types["blk.0.cross_attn_v.weight"]
            == types["enc.blk.0.attn_q.weight"]
            == "Q8_0"
        )


def test_the_file_says_what_the_float_file_says(files: dict[str, Path]) -> None:
    """A mean or scale that is missing somewhere would change probabilities altogether."""
    found = []
    sound = np.random.default_rng(1).normal(size=(2 * tiny_whisper.SOURCE, tiny_whisper.BINS)).astype(np.float32)
    for kind in ("f32", "q8_0"):
        with open_gguf(files[kind]) as file:
            graphs = build_whisper(file)
            executor = ReferenceSpeechExecutor(graphs.encoder, graphs.decoder, WeightStore(file))
            executor.reserve(4)
            executor.reserve_sources(1)
            executor.encode(sound, 0)
            rows = np.arange(6, dtype=np.int32)
            table = np.arange(4, dtype=np.int32)[None]
            logits = executor.step(Batch(rows * 700, rows, 0 * rows, table, rows, sources=0 * rows)).astype(np.float64)
            executor.close()
        found.append(logits - np.log(np.exp(logits - logits.max()).sum(axis=1, keepdims=True)) - logits.max())
    assert (found[0] - found[1]).std() < 0.03 * found[0].std()
