"""Files of every architecture with keys, shapes and tensors damaged: a graph, or an error in one line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changed_files import changed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.errors import CorruptFileError, EdgeLLMError, UnsupportedModelError
from edgellm.gguf import GGUFFile, open_gguf
from edgellm.graph import Graph, Route, Value
from edgellm.models import build_graph

NAMES = (
    "mixtral", "qwen2_moe", "qwen3", "gemma2", "phi2", "phi3-longrope", "gpt2", "smollm3", "granite", "olmo2",
    "cohere2", "llama-yarn", "gpt_oss", "deepseek_v2", "deepseek_v3",
)  # fmt: skip
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, 2, 3, 4, 8, 16, 2**31 - 1, 2**63, -1]),
    st.integers(),
    st.floats(),
    st.text(max_size=9),
    st.sampled_from(["linear", "yarn", "longrope", "none"]),
    st.lists(st.integers(-1, 99), max_size=4).map(np.array),
)


@pytest.fixture(scope="module", params=NAMES)
def file(request: pytest.FixtureRequest, converted: Callable[[str], Path]) -> Iterator[GGUFFile]:
    with open_gguf(converted(request.param)) as opened:
        yield opened


def assert_sound(graph: Graph) -> None:
    """Every number that an executor would compute with is finite, and every width positive."""
    for operation in graph.operations:
        for field in vars(operation).values():
            if isinstance(field, Value):
                assert field.width > 0
            elif isinstance(field, float):
                assert math.isfinite(field)
        if isinstance(operation, Route):
            assert operation.chosen <= operation.x.width and operation.x.width % operation.groups == 0


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_values_of_its_keys_give_a_graph_or_a_clean_error(file: GGUFFile, data: st.DataObject) -> None:
    own = sorted(key for key in file.metadata if key.startswith(f"{file.metadata['general.architecture']}."))
    keys: dict[str, Any] = data.draw(st.dictionaries(st.sampled_from(own), VALUES, min_size=1, max_size=3))
    try:
        graph = build_graph(changed(file, keys))  # type: ignore[arg-type]
    except EdgeLLMError as error:
        assert "\n" not in str(error)
    else:
        assert_sound(graph)


def test_every_tensor_is_needed_and_its_shape_checked(file: GGUFFile) -> None:
    """But for biases, the head, without which the embedding is taken, and what decides what a layer is made of."""
    deciding = {"output", "ffn_gate_inp", "ffn_gate_inp_shexp", "ffn_up_shexp"}
    factors = {"rope_factors_long.weight", "rope_factors_short.weight"}  # one of both is used
    refusals = (CorruptFileError, UnsupportedModelError)
    for name in sorted(set(file.tensors) - factors):
        with pytest.raises(refusals, match=r"tensor \S+ (has shape|is missing)"):
            build_graph(changed(file, shapes={name: (3, 5, 7)}))  # type: ignore[arg-type]
        if name.endswith(".weight") and name.split(".")[-2] not in deciding:
            # Where there are several ways of doing things, that of another tensor in its place.
            with pytest.raises(refusals, match=r"tensor \S+ is missing"):
                build_graph(changed(file, shapes={name: None}))  # type: ignore[arg-type]
