"""The memory that the CPU executor would take for a model, without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgellm.graph import Graph
from edgellm.platforms.amx import amx_mode
from edgellm.platforms.cpu_cache import CacheMemory
from edgellm.platforms.cpu_plan import Planner
from edgellm.platforms.cpu_tiles import tiles_for
from edgellm.platforms.cpu_weights import planned_matrices, read_vectors
from edgellm.weights import WeightStore


@dataclass(frozen=True)
class Footprint:
    """Bytes.

    Attributes:
        weights: packed for the kernels.
        cache_block: of the cache, for each ``BLOCK_TOKENS`` tokens.
        scratch: buffers of a step.
    """

    weights: int
    cache_block: int
    scratch: int


def footprint(graph: Graph, weights: WeightStore, types: Mapping[str, str], cache_type: str, threads: int) -> Footprint:
    """What a model takes.

    Args:
        graph: the model.
        weights: its weights; only vectors are read.
        types: names of types that tensors are to have, by the tensors' names; the others are as they are.
        cache_type: "f16", "q8_0" or "f32".
        threads: compute threads, each of which has memory of its own.

    Raises:
        InvalidSettingError, UnsupportedModelError: as for the executor.
    """
    matrices, size = planned_matrices(weights, graph, types)
    cache = CacheMemory(graph.cache, cache_type)
    tiles = tiles_for(amx_mode(), threads)
    planner = Planner(graph, matrices, read_vectors(graph, weights), cache_type, cache, threads, tiles)
    planner.plan()
    return Footprint(size, cache.block_bytes, planner.pool.total_bytes)
