"""Which type of a model fits into memory, what each takes, and what it costs in perplexity where that was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgellm.cache import blocks_for
from edgellm.errors import InvalidSettingError
from edgellm.evaluation.records import Record, file_type, model_identity, read_records
from edgellm.gguf import GGUFFile, open_gguf
from edgellm.memory import available_bytes, resident_bytes
from edgellm.platforms.batch import BLOCK_TOKENS

DEFAULT_CONTEXT = 4096
TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_1", "Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K")
TERNARY_TYPES = ("F16", "TQ2_0", "TQ1_0")
"""For models whose weights are ternary: these lose nothing, and others would make them larger."""


@dataclass(frozen=True)
class FitSettings:
    """What is wanted.

    Attributes:
        context: tokens; None: 4096, or what the model was made for if that is less.
        memory: bytes that may be used; None: what is free.
        cache_type: number format of the cache, as for ``LLM.load``.
        threads: compute threads; None: one per physical core.
    """

    context: int | None = None
    memory: int | None = None
    cache_type: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class Fit:
    """A type of the model; sizes in bytes.

    Attributes:
        type: its name.
        is_file: the model is here as that very file; other types can be made or fetched.
        file_bytes: size of the file.
        bits_per_weight: bits that a value takes on average, scales included.
        weights, cache, scratch: what they take in memory.
        total: of these three and the program itself.
        fits: whether that is not more than there is.
        longest_context: tokens for which there is room; 0 if there is none at all.
        perplexity, standard_error: as measured before; None: not yet.
        cost: how much higher the perplexity is than that of the measured type with most bits, as a share; None if
            there is nothing to compare.
    """

    type: str
    is_file: bool
    file_bytes: int
    bits_per_weight: float
    weights: int
    cache: int
    scratch: int
    total: int
    fits: bool
    longest_context: int
    perplexity: float | None = None
    standard_error: float | None = None
    cost: float | None = None


@dataclass(frozen=True)
class FitReport:
    """All types, those with most bits first.

    Attributes:
        context: tokens that were asked for.
        model_context: tokens that the model was made for.
        memory: bytes that may be used.
        program: bytes that the program takes beside the model.
        cache_type: number format of the cache.
        measure: text, context and windows of the perplexities, or None.
        types: what each type takes.
        best: the type with most bits that fits; None: none does.
    """

    context: int
    model_context: int
    memory: int
    program: int
    cache_type: str
    measure: tuple[str, int, int] | None
    types: tuple[Fit, ...]
    best: str | None


@dataclass(frozen=True)
class _Candidate:
    """A type, and what its file would be."""

    name: str
    is_file: bool
    file_bytes: int
    bits_per_weight: float
    tensor_types: Mapping[str, str]


def fit(path: Path, settings: FitSettings | None = None) -> FitReport:
    """What each type of a model would take, of which any file is here.

    Raises:
        CorruptFileError, UnsupportedModelError: the file cannot be used.
        InvalidSettingError: the context is longer than the model's, or how much memory is free is not known.
    """
    from edgellm.graph import RoundRows
    from edgellm.models import build_graph
    from edgellm.platforms.features import physical_cores
    from edgellm.platforms.footprint import footprint
    from edgellm.weights import WeightStore

    settings = settings or FitSettings()
    with ExitStack() as cleanup:
        file = cleanup.enter_context(open_gguf(path))
        graph = build_graph(file)
        context = min(DEFAULT_CONTEXT, graph.context_length) if settings.context is None else settings.context
        if not 1 <= context <= graph.context_length:
            raise InvalidSettingError(
                f"a context of {context} tokens was asked for, this model's holds {graph.context_length}",
                f"choose 1 to {graph.context_length}",
            )
        memory, program = _memory(settings.memory)
        ternary = any(isinstance(operation, RoundRows) for operation in graph.operations)
        cache_type = ("f32" if ternary else "f16") if settings.cache_type == "auto" else settings.cache_type
        records = read_records(model_identity(file))
        threads = settings.threads or physical_cores()
        fits = []
        weights = WeightStore(file)
        for candidate in _candidates(file, ternary):
            sizes = footprint(graph, weights, candidate.tensor_types, cache_type, threads)
            fixed = sizes.weights + sizes.scratch + program
            cache = blocks_for(context) * sizes.cache_block
            room = max(0, memory - fixed) // max(1, sizes.cache_block) * BLOCK_TOKENS
            fits.append(
                Fit(
                    candidate.name,
                    candidate.is_file,
                    candidate.file_bytes,
                    candidate.bits_per_weight,
                    sizes.weights,
                    cache,
                    sizes.scratch,
                    fixed + cache,
                    fixed + cache <= memory,
                    min(graph.context_length, room),
                )
            )
        model_context = graph.context_length
    fits.sort(key=lambda one: -one.bits_per_weight)
    measure, measured = with_perplexities(fits, records)
    best = next((one.type for one in measured if one.fits), None)
    return FitReport(context, model_context, memory, program, cache_type, measure, tuple(measured), best)


def _memory(wanted: int | None) -> tuple[int, int]:
    """Bytes that may be used: a tenth of what is free is left to everything else. And what this program takes now."""
    program = resident_bytes() or 0
    if wanted is not None:
        return wanted, program
    free = available_bytes()
    if free is None:
        raise InvalidSettingError("how much memory is free is not known here", "say how much with --memory")
    return free + program - free // 10, program


def _candidates(file: GGUFFile, ternary: bool) -> list[_Candidate]:
    """The file as it is, and the types it could have."""
    from edgellm.inspection import summarize
    from edgellm.quantize import QuantizeSettings
    from edgellm.quantize.plan import make_plan

    summary = summarize(file)
    own = file_type(summary)
    found = [_Candidate(own, True, file.size_bytes, summary.bits_per_weight, {})]
    for name in TERNARY_TYPES if ternary else TYPES:
        if name == own:
            continue
        plan = make_plan(file, Path("model.gguf"), QuantizeSettings(name, allow_requantize=True), {})
        types = {tensor.target.name: tensor.target.type.name for tensor in plan.tensors}
        found.append(_Candidate(name, False, plan.size_bytes, plan.bits_per_weight, types))
    return found


def with_perplexities(fits: Sequence[Fit], records: Sequence[Record]) -> tuple[tuple[str, int, int] | None, list[Fit]]:
    """Add what was measured: of all texts and windows those with most types, the longest among equals."""
    types = {one.type for one in fits}
    groups = Counter(measure for measure, _ in {(record.measure, record.type) for record in records} if types)
    if not groups:
        return None, list(fits)
    measure = max(groups, key=lambda one: (groups[one], one[1] * one[2]))
    values: dict[str, Any] = {record.type: record for record in records if record.measure == measure}
    base = next((values[one.type].perplexity for one in fits if one.type in values), None)
    found = []
    for one in fits:
        record = values.get(one.type)
        if record is None:
            found.append(one)
            continue
        cost = None if base is None else record.perplexity / base - 1
        found.append(replace(one, perplexity=record.perplexity, standard_error=record.standard_error, cost=cost))
    return measure, found
