"""Every architecture against the logits of its original implementation, on small random checkpoints.

Contexts are longer than windows (16 tokens) and than what rotary frequencies were first made for (32 tokens).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import gguf
import numpy as np
import pytest
from batches import Sequences, whole_logits
from numpy.typing import NDArray

from edgellm import LLM
from edgellm.convert import ConvertSettings, convert
from edgellm.gguf import GGUFFile, open_gguf
from edgellm.graph import Attention, Linear, Route, StackedLinear
from edgellm.llm import Backend, CacheType
from edgellm.models import build_graph, known_architectures
from edgellm.platforms.batch import Executor
from edgellm.platforms.cpu import CPUExecutor
from edgellm.platforms.reference import ReferenceExecutor
from edgellm.weights import WeightStore

Converted = Callable[[str], Path]
CHECKPOINTS = (
    "llama", "llama3-rope", "llama-linear", "llama-yarn", "mistral", "mixtral", "smollm3", "granite", "olmo2", "cohere",
    "cohere2", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3", "phi2", "phi3", "phi3-longrope",
    "gpt2", "gpt_oss", "deepseek_v2", "deepseek_v3",
)  # fmt: skip
TOLERANCE = 1e-5  # of the largest logit; float32 itself leaves about 1e-6
BACKENDS = {"reference": TOLERANCE, "cpu f32": TOLERANCE, "cpu f16": 1e-3}
"""Executors, with the type of the cache: half precision alone leaves up to 6e-4."""


def reference(shared: Path, name: str) -> dict[str, NDArray[np.float32]]:
    with np.load(shared / "fixtures" / name / "reference.npz") as arrays:
        return {key: arrays[key] for key in arrays}


def executor_of(file: GGUFFile, context_length: int | None = None, backend: str = "reference") -> Executor:
    graph, weights = build_graph(file, context_length), WeightStore(file)
    if backend == "reference":
        return ReferenceExecutor(graph, weights)
    return CPUExecutor(graph, weights, 2, backend.removeprefix("cpu "))


def assert_close(got: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float = TOLERANCE) -> None:
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def context_for(name: str, key: str) -> int | None:
    """What a model must be loaded with for the frequencies that the original took for so many tokens."""
    return 32 if name == "phi3-longrope" and key == "b" else None


@pytest.mark.parametrize("chunk", [256, 1, 37])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_agree_with_the_original(
    shared: Path, converted: Converted, name: str, backend: str, chunk: int
) -> None:
    """In one pass, token by token, and in pieces."""
    arrays = reference(shared, name)
    with open_gguf(converted(name)) as file:
        for key in ("a", "b", "long"):
            with closing(executor_of(file, context_for(name, key), backend)) as executor:
                logits = whole_logits(executor, arrays[f"ids_{key}"].tolist(), chunk)
            assert_close(logits, arrays[f"logits_{key}"], BACKENDS[backend])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_sequences_of_unequal_lengths_in_one_batch(shared: Path, converted: Converted, name: str, backend: str) -> None:
    arrays = reference(shared, name)
    keys = ("a", "long") if name == "phi3-longrope" else ("a", "b", "long")
    sequences = Sequences.of([arrays[f"ids_{key}"].tolist() for key in keys], shuffle=np.random.default_rng(3))
    parts: list[list[NDArray[np.float32]]] = [[] for _ in keys]
    with open_gguf(converted(name)) as file, closing(executor_of(file, backend=backend)) as executor:
        executor.reserve(sequences.blocks)
        for counts in ((17, 5, 2), (1, 1, 40), (22, 7, 1), (0, 0, 53)):
            batch = sequences.take(*counts[: len(keys) - 1], counts[-1])
            logits = executor.step(batch)
            for number, part in enumerate(parts):
                part.append(logits[batch.sequences == number].copy())
    for key, part in zip(keys, parts, strict=True):
        assert_close(np.concatenate(part), arrays[f"logits_{key}"], BACKENDS[backend])


def test_every_architecture_has_a_checkpoint(converted: Converted) -> None:
    names = set()
    for name in CHECKPOINTS:
        with open_gguf(converted(name)) as file:
            names.add(str(file.metadata["general.architecture"]))
    assert set(known_architectures()) - names == {"bitnet", "bitnet-b1.58"}  # of which there is a trained model


@pytest.mark.parametrize("kind", ["tq1_0", "tq2_0"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_bitnet_agrees_with_the_original(shared: Path, tmp_path: Path, backend: Backend, kind: str) -> None:
    """With default settings: float noise alone, until an activation that lies between two steps is rounded otherwise;
    the original itself differs by as much between float32 and float64."""
    folder = shared / "models" / "bitnet-tiny"
    convert(folder, tmp_path / "model.gguf", ConvertSettings(type=kind))
    with (
        np.load(folder / "reference.npz") as arrays,
        LLM.load(tmp_path / "model.gguf", backend=backend) as llm,
    ):
        short, long = (llm.logits(arrays[f"ids_{key}"].tolist()) for key in "ba")
        assert_close(short, arrays["logits_b"])
        assert_close(long, arrays["logits_a"], 1e-3)
        assert_close(long[:6], arrays["logits_a"][:6])


@pytest.mark.parametrize(("kind", "cache_type"), [("tq1_0", "auto"), ("tq2_0", "auto"), ("tq2_0", "f16")])
def test_perplexity_of_bitnet(shared: Path, tmp_path: Path, kind: str, cache_type: CacheType) -> None:
    """Of the whole text, in windows."""
    folder = shared / "models" / "bitnet-tiny"
    convert(folder, tmp_path / "model.gguf", ConvertSettings(type=kind))
    with (
        np.load(folder / "reference.npz") as arrays,
        LLM.load(tmp_path / "model.gguf", cache_type=cache_type) as llm,
    ):
        windows = arrays["perplexity_ids"].reshape(-1, int(arrays["perplexity_window"]))
        losses = [losses_of(llm.logits(ids.tolist()), ids) for ids in windows]
        assert np.exp(np.mean(losses)) == pytest.approx(float(arrays["perplexity"]), rel=1e-3)


def losses_of(logits: NDArray[np.float32], ids: NDArray[np.integer]) -> NDArray[np.float64]:
    """Minus the log-probability of each token after the first."""
    wide = logits[:-1].astype(np.float64)
    peak = wide.max(axis=1)
    total = peak + np.log(np.exp(wide - peak[:, None]).sum(axis=1))
    chosen: NDArray[np.float64] = total - wide[np.arange(len(ids) - 1), ids[1:]]
    return chosen


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_quantized_weights_on_the_cpu(shared: Path, tmp_path: Path, name: str) -> None:
    """Int8 activations err by 0.52 % at each product (see tests/platforms/test_cpu.py), independently of each other.

    Where they change which expert is chosen, the rows that it concerns are off by more: a quarter at most.
    """
    convert(shared / "fixtures" / name, tmp_path / "model.gguf", ConvertSettings(type="q8_0"))
    ids = reference(shared, name)["ids_a"].tolist()
    with open_gguf(tmp_path / "model.gguf") as file:
        expected = whole_logits(executor_of(file), ids, 256)
        with closing(executor_of(file, backend="cpu f32")) as executor:
            logits = whole_logits(executor, ids, 256)
            products = sum(isinstance(op, Linear | StackedLinear) for op in executor.graph.operations)
            routed = any(isinstance(op, Route) for op in executor.graph.operations)
    errors = np.sqrt(np.square(logits - expected).mean(axis=1)) / expected.std()
    bound = 0.0052 * np.sqrt(products)
    assert np.quantile(errors, 0.75 if routed else 1.0) <= 2 * bound
    assert np.sqrt(np.median(np.square(errors))) <= bound


def with_keys_of_all_heads(path: Path, target: Path) -> None:
    """The deepseek2 file as it was written before 2025: one matrix for keys and values of all heads."""
    writer = gguf.GGUFWriter(target, "deepseek2")
    with open_gguf(path) as file:
        read = {key.removeprefix("deepseek2."): value for key, value in file.metadata.items()}
        heads, head, value = (
            int(read[f"attention.{key}"]) for key in ("head_count", "key_length_mla", "value_length_mla")
        )
        changes = {"head_count_kv": heads, "key_length": head, "value_length": value}
        kinds = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32}
        for key, old in read.items():
            if type(old) in kinds and not key.startswith(("general.", "tokenizer.")) and not key.endswith("_mla"):
                new = changes.get(key.removeprefix("attention."), old)
                writer.add_key_value(f"deepseek2.{key}", new, kinds[type(old)])
        for name in file.tensors:
            values = file.decode(name)
            if name.endswith("attn_k_b.weight"):  # (heads, rank, plain), and (heads, value, rank)
                other = file.decode(name.replace("attn_k_b", "attn_v_b"))
                both = np.concatenate([values.swapaxes(1, 2), other], axis=1)
                writer.add_tensor(name.replace("attn_k_b", "attn_kv_b"), both.reshape(-1, both.shape[2]))
            elif not name.endswith("attn_v_b.weight"):
                writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3"])
def test_a_latent_cache_is_small_and_does_the_same_as_the_keys_of_all_heads(
    shared: Path, converted: Converted, tmp_path: Path, name: str
) -> None:
    with_keys_of_all_heads(converted(name), tmp_path / "old.gguf")
    arrays = reference(shared, name)
    with open_gguf(converted(name)) as new, open_gguf(tmp_path / "old.gguf") as old:
        graphs = build_graph(new), build_graph(old)
        assert [graph.cache[0].numbers for graph in graphs] == [16 + 8, 4 * (16 + 8 + 16)]
        values = [op.v for op in graphs[0].operations if isinstance(op, Attention)]
        assert values == [None] * 3
        assert_close(whole_logits(executor_of(old), arrays["ids_long"].tolist(), 37), arrays["logits_long"])
