"""Real models against exact arithmetic: how far quantized kernels lead away from it, teacher-forced.

The references hold, for each token of a completion, its log-probability and the ten best tokens in float64 arithmetic
on the same weights. llama.cpp's own mean absolute differences on these files are 0.0333 (SmolLM2) and 0.0313 (Gemma 3),
and it agrees on the best token in 97.4 % and 97.0 % of the steps.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batches import Sequences
from numpy.typing import NDArray

from edgellm.errors import InvalidSettingError
from edgellm.gguf import open_gguf
from edgellm.kernels.target import target_for
from edgellm.models import build_graph
from edgellm.platforms.batch import Batch
from edgellm.platforms.cpu import CPUExecutor
from edgellm.weights import WeightStore

pytestmark = pytest.mark.slow

# Largest mean absolute difference, least share of steps with the same best token: what must be reached in any case,
# also with a quantized cache, and what was reached with a cache of half precision, with a little room.
REQUIRED = {"smollm2": (0.035, 0.970), "gemma": (0.033, 0.965)}
USUAL = {"smollm2": (0.026, 0.970), "gemma": (0.020, 0.965)}


@dataclass(frozen=True)
class Fidelity:
    """Over all steps of some prompts."""

    difference: float
    agreement: float
    steps: int


def predictions(executor: CPUExecutor, prompt: list[int], completion: list[int]) -> NDArray[np.float64]:
    """Log-probabilities before each token of the completion: (len(completion), vocabulary)."""
    sequences = Sequences.of([prompt + completion[:-1]])
    executor.reserve(sequences.blocks)
    parts = []
    while sequences.done[0] < len(sequences.tokens[0]):
        batch = sequences.take(executor.max_rows)
        wanted = np.flatnonzero(batch.positions >= len(prompt) - 1).astype(np.int32)
        batch = Batch(batch.tokens, batch.positions, batch.sequences, batch.block_tables, wanted)
        parts.append(executor.step(batch).astype(np.float64))
    logits = np.concatenate(parts)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def fidelity(path: Path, references: list[dict[str, Any]], **settings: Any) -> Fidelity:
    """Run a model over the references."""
    differences, agreements = [], []
    with open_gguf(path) as file:
        executor = CPUExecutor(build_graph(file), WeightStore(file), **settings)
        for reference in references:
            got = predictions(executor, reference["prompt_ids"], reference["completion_ids"])
            for step, logprobs in zip(reference["steps"], got, strict=True):
                differences.append(abs(logprobs[step["id"]] - step["logprob"]))
                agreements.append(logprobs.argmax() == step["top"][0][0])
        executor.close()
    return Fidelity(float(np.mean(differences)), float(np.mean(agreements)), len(differences))


@pytest.fixture(params=["smollm2", "gemma"])
def model(request: pytest.FixtureRequest, shared: Path) -> tuple[str, Path, list[dict[str, Any]]]:
    """Name, file and references."""
    name = request.param
    path = request.getfixturevalue("smollm2_path" if name == "smollm2" else "gemma3_path")
    references = [json.loads(line) for line in (shared / "reference/llm" / f"{name}.exact.jsonl").open()]
    return name, path, references


def short(references: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [reference for reference in references if len(reference["prompt_ids"]) < 100]


def test_all_prompts(model: tuple[str, Path, list[dict[str, Any]]]) -> None:
    name, path, references = model
    result = fidelity(path, references)
    difference, agreement = USUAL[name]
    assert result.steps == sum(len(reference["completion_ids"]) for reference in references)
    assert result.difference <= difference
    assert result.agreement >= agreement


@pytest.mark.parametrize("tier", ["avx2", "plain"])
def test_lower_instruction_sets_on_short_prompts(
    model: tuple[str, Path, list[dict[str, Any]]], tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fused products, as AVX2 has them, there is no difference at all to the native instruction set."""
    try:
        target_for(tier)
    except InvalidSettingError as error:
        pytest.skip(str(error))
    name, path, references = model
    native = fidelity(path, short(references)) if tier == "avx2" else None
    monkeypatch.setenv("EDGELLM_INSTRUCTION_SET", tier)
    result = fidelity(path, short(references))
    difference, agreement = USUAL[name]
    assert result.difference <= difference
    assert result.agreement >= agreement
    assert native is None or result == native


def test_products_on_tiles_on_the_shortest_prompts(
    model: tuple[str, Path, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In software: rounding to bfloat16 harms less than to int8."""
    name, path, references = model
    shortest = sorted(references, key=lambda reference: len(reference["prompt_ids"]))[:2]
    monkeypatch.setenv("EDGELLM_INSTRUCTION_SET", "amx_emulated")
    tiled = fidelity(path, shortest)
    assert tiled.difference <= USUAL[name][0] / 2
    assert tiled.agreement >= USUAL[name][1]


def test_the_q8_0_cache_on_short_prompts(model: tuple[str, Path, list[dict[str, Any]]]) -> None:
    name, path, references = model
    result = fidelity(path, short(references), cache_type="q8_0")
    difference, agreement = REQUIRED[name]
    assert result.difference <= difference
    assert result.agreement >= agreement
