"""Which experts work on a token, and with what weight: the routers of the originals, written out row by row."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from batches import Sequences

from edgellm.gguf import GGUFFile, open_gguf
from edgellm.graph import Linear, Route
from edgellm.models import build_graph
from edgellm.platforms.reference import ReferenceExecutor
from edgellm.weights import WeightStore

Scores = list[float]


def softmax(numbers: Scores) -> Scores:
    powers = [math.exp(number - max(numbers)) for number in numbers]
    return [power / sum(powers) for power in powers]


def best(numbers: Scores, count: int) -> list[int]:
    return sorted(range(len(numbers)), key=lambda index: -numbers[index])[:count]


def mixtral(logits: Scores, bias: Scores) -> dict[int, float]:
    """The softmax of all, shared out anew among the best two."""
    scores = softmax(logits)
    return {expert: scores[expert] / sum(scores[other] for other in best(logits, 2)) for expert in best(logits, 2)}


def gpt_oss(logits: Scores, bias: Scores) -> dict[int, float]:
    """The softmax of the best two alone."""
    chosen = best(logits, 2)
    return dict(zip(chosen, softmax([logits[expert] for expert in chosen]), strict=True))


def qwen2_moe(logits: Scores, bias: Scores) -> dict[int, float]:
    """The best two of the softmax, as they are."""
    return {expert: softmax(logits)[expert] for expert in best(logits, 2)}


def qwen3_moe(logits: Scores, bias: Scores) -> dict[int, float]:
    """The best three of the softmax, in sum one."""
    scores = softmax(logits)
    return {expert: scores[expert] / sum(scores[other] for other in best(logits, 3)) for expert in best(logits, 3)}


def deepseek_v3(logits: Scores, bias: Scores) -> dict[int, float]:
    """Sigmoids; with the bias, the group whose best two are best, and in it the best two; without it, their shares."""
    scores = [1 / (1 + math.exp(-logit)) for logit in logits]
    ranks = [score + extra for score, extra in zip(scores, bias, strict=True)]
    groups = [range(4), range(4, 8)]
    group = max(groups, key=lambda experts: sum(sorted(ranks[expert] for expert in experts)[-2:]))
    chosen = sorted(group, key=lambda expert: -ranks[expert])[:2]
    return {expert: 2.5 * scores[expert] / sum(scores[other] for other in chosen) for expert in chosen}


ROUTERS = {
    "mixtral": mixtral,
    "gpt_oss": gpt_oss,
    "qwen2_moe": qwen2_moe,
    "deepseek_v2": qwen2_moe,
    "qwen3_moe": qwen3_moe,
    "deepseek_v3": deepseek_v3,
}


def router_logits(file: GGUFFile, operation: Linear, hidden: np.ndarray) -> np.ndarray:
    logits = hidden.astype(np.float64) @ file.decode(operation.weight).astype(np.float64).T
    return logits if operation.bias is None else logits + file.decode(operation.bias)


@pytest.mark.parametrize("name", list(ROUTERS))
def test_experts_and_weights_are_those_of_the_original(
    shared: Path, converted: Callable[[str], Path], name: str
) -> None:
    with np.load(shared / "fixtures" / name / "reference.npz") as arrays:
        ids = arrays["ids_long"].tolist()
    with open_gguf(converted(name)) as file:
        graph = build_graph(file)
        executor = ReferenceExecutor(graph, WeightStore(file))
        sequences = Sequences.of([ids])
        executor.reserve(sequences.blocks)
        values = executor.trace(sequences.take(len(ids)))
        writers = {operation.out.name: operation for operation in graph.operations}
        routes = [operation for operation in graph.operations if isinstance(operation, Route)]
        assert len(routes) >= 2
        for route in routes:
            linear = writers[route.x.name]
            assert isinstance(linear, Linear)
            logits = router_logits(file, linear, values[linear.x.name])
            bias = [0.0] * logits.shape[1] if route.bias is None else file.decode(route.bias).tolist()
            for row, got in zip(logits.tolist(), values[route.out.name].tolist(), strict=True):
                expected = ROUTERS[name](row, bias)
                chosen = dict(zip(map(int, got[: route.chosen]), got[route.chosen :], strict=True))
                assert chosen == pytest.approx(expected, rel=1e-4)
