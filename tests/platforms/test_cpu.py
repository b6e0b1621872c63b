"""The CPU executor: the reference executor's logits within what rounding allows, however rows are cut and laid out."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batches import Sequences, whole_logits
from kernel_calls import load_kernels
from numpy.typing import NDArray

from edgellm.errors import EdgeLLMError, InvalidSettingError, OutOfMemoryError, UnsupportedModelError
from edgellm.gguf import GGUFFile, open_gguf
from edgellm.graph import Activation, Attention, Graph, Linear, Norm, StackedLinear
from edgellm.kernels.packing import CONVERSIONS
from edgellm.kernels.records import MATMUL
from edgellm.models import build_graph
from edgellm.platforms.amx import amx_mode
from edgellm.platforms.batch import BLOCK_TOKENS, Batch
from edgellm.platforms.cpu import CPUExecutor
from edgellm.platforms.cpu_parts import MAX_OUTPUTS, MAX_ROWS
from edgellm.platforms.reference import ReferenceExecutor
from edgellm.weights import WeightStore

MakeModel = Callable[..., Path]
FLOAT_TYPES = ("F32", "F16", "BF16")
TYPES_OF_32 = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL")
TYPES_OF_256 = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "TQ1_0", "TQ2_0")
CONVERTED = ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "MXFP4")
WIDE = {"width": 256, "feed_forward": 256, "heads": 4, "kv_heads": 2, "head_dim": 64}
IDS = np.random.default_rng(5).integers(0, 271, 90).tolist()
OTHER_IDS = np.random.default_rng(6).integers(0, 271, 45).tolist()

# Logits of the float formats differ by the cache's half precision, a relative error of 2^-12 on average per key and
# value, which softmax and residuals dampen.
HALF_CACHE = 4e-4
# Int8 activations: the rounding error is d / sqrt(12) with d = peak / 127, and the peak of 32 normal numbers is about
# 2.3 of their standard deviations: 0.52 % of an input. Errors of the 8 products of two layers and the last add up
# independently to at most 3 * 0.52 %.
INT8 = 0.0156


def executor_of(file: GGUFFile, threads: int | None = 1, **settings: Any) -> CPUExecutor:
    return CPUExecutor(build_graph(file), WeightStore(file), threads, **settings)


def exact_logits(file: GGUFFile, ids: list[int]) -> NDArray[np.float32]:
    return whole_logits(ReferenceExecutor(build_graph(file), WeightStore(file), "float64"), ids)


def cpu_logits(file: GGUFFile, ids: list[int], chunk: int = 64, **settings: Any) -> NDArray[np.float32]:
    executor = executor_of(file, **settings)
    try:
        return whole_logits(executor, ids, chunk)
    finally:
        executor.close()


def assert_close(got: NDArray[np.float32], expected: NDArray[np.float32], error: float) -> None:
    """The root of the mean square difference, and no single one out of proportion."""
    assert got.shape == expected.shape
    difference = (got.astype(np.float64) - expected) / expected.std()
    assert np.sqrt(np.square(difference).mean()) <= error
    assert np.abs(difference).max() <= 8 * error


# Weight types and architectures


@pytest.mark.parametrize("weight_type", [*FLOAT_TYPES, *TYPES_OF_32, *TYPES_OF_256])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_every_weight_type(tiny_model: MakeModel, architecture: str, weight_type: str) -> None:
    window = 33 if architecture == "gemma3" else None
    path = tiny_model(architecture, weight_types=(weight_type,), embedding_type=weight_type, window=window, **WIDE)
    with open_gguf(path) as file:
        bfloats = weight_type == "BF16" and amx_mode() is not None  # activations are rounded too, but less than to int8
        error = HALF_CACHE if weight_type in FLOAT_TYPES and not bfloats else INT8
        assert_close(cpu_logits(file, IDS), exact_logits(file, IDS), error)


@pytest.mark.parametrize("weight_type", CONVERTED)
def test_other_types_are_converted_with_a_notice(
    tiny_model: MakeModel, caplog: pytest.LogCaptureFixture, weight_type: str
) -> None:
    assert weight_type in CONVERSIONS
    path = tiny_model("llama", weight_types=(weight_type, "Q8_0"), **WIDE)
    with open_gguf(path) as file, caplog.at_level(logging.WARNING, "edgellm"):
        # Converted weights have an error of at most 1 / 254 of a block's peak more, like activations.
        assert_close(cpu_logits(file, IDS), exact_logits(file, IDS), 2**0.5 * INT8)
    assert [record.getMessage() for record in caplog.records] == [
        f"weights of type {weight_type} have no kernel: converted to Q8_0"
    ]


def test_types_with_kernels_give_no_notice(tiny_model: MakeModel, caplog: pytest.LogCaptureFixture) -> None:
    path = tiny_model("llama", weight_types=("TQ1_0", "Q4_K", "Q8_0"), **WIDE)
    with open_gguf(path) as file, caplog.at_level(logging.DEBUG, "edgellm"):
        executor_of(file).close()
    assert not caplog.records


@pytest.mark.parametrize(
    "shape",
    [
        {"width": 48, "feed_forward": 80, "heads": 3, "kv_heads": 1, "head_dim": 20},
        {"width": 33, "feed_forward": 17, "heads": 2, "kv_heads": 2, "head_dim": 8},
        {"width": 64, "feed_forward": 96, "heads": 6, "kv_heads": 3, "head_dim": 80},
        {"width": 16, "feed_forward": 16, "heads": 1, "kv_heads": 1, "head_dim": 6, "layers": 1},
    ],
)
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "qwen2"])
def test_odd_widths(tiny_model: MakeModel, architecture: str, shape: dict[str, int]) -> None:
    window = 20 if architecture == "gemma3" else None
    path = tiny_model(architecture, weight_types=("F32", "F16"), window=window, extra_tokens=7, tied=False, **shape)
    with open_gguf(path) as file:
        assert_close(cpu_logits(file, IDS, threads=3), exact_logits(file, IDS), HALF_CACHE)


def test_mixed_types_biases_and_a_vocabulary_of_its_own(tiny_model: MakeModel) -> None:
    path = tiny_model(
        "qwen2", layers=3, weight_types=("Q4_0", "F16", "Q6_K", "Q5_1", "F32"), embedding_type="Q8_0", tied=False,
        extra_tokens=3, **WIDE,
    )  # fmt: skip
    with open_gguf(path) as file:
        assert_close(cpu_logits(file, IDS, threads=2), exact_logits(file, IDS), 1.5 * INT8)


@pytest.mark.parametrize("weight_type", ["F32", "Q8_0"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_the_q8_0_cache(tiny_model: MakeModel, architecture: str, weight_type: str) -> None:
    window = 33 if architecture == "gemma3" else None
    path = tiny_model(architecture, weight_types=(weight_type,), window=window, **(WIDE | {"head_dim": 32}))
    with open_gguf(path) as file:
        expected = exact_logits(file, IDS)
        assert_close(cpu_logits(file, IDS, cache_type="q8_0"), expected, 2**0.5 * INT8)
        small = executor_of(file, cache_type="q8_0")
        large = executor_of(file)
        assert 34 * large.block_bytes == 64 * small.block_bytes
        small.close()
        large.close()


def changed(graph: Graph, operation: type, **fields: Any) -> Graph:
    """The graph with some fields of all operations of one class replaced."""
    operations = tuple(replace(op, **fields) if isinstance(op, operation) else op for op in graph.operations)
    return replace(graph, operations=operations)


@pytest.mark.parametrize(
    "change",
    [
        (Attention, {"softcap": 2.0}),
        (Attention, {"sinks": "blk.0.attn_norm.weight"}),
        (Attention, {"window": 1}),
        (Activation, {"kind": "relu_squared"}),
        (Activation, {"kind": "gelu"}),
        (Activation, {"kind": "swiglu_clamped"}),
        (Activation, {"up": None}),
        (Norm, {"kind": "layer"}),
        (Norm, {"weight": None}),
    ],
)
def test_what_other_architectures_use(tiny_model: MakeModel, change: tuple[type, dict[str, Any]]) -> None:
    with open_gguf(tiny_model("llama", width=64, heads=64, kv_heads=32, head_dim=4)) as file:
        graph = changed(build_graph(file), change[0], **change[1])
        expected = whole_logits(ReferenceExecutor(graph, WeightStore(file), "float64"), IDS)
        executor = CPUExecutor(graph, WeightStore(file), 2)
        assert_close(whole_logits(executor, IDS), expected, 2 * HALF_CACHE)
        executor.close()
        unchanged = exact_logits(file, IDS)
        assert np.abs(expected - unchanged).max() > 0.01 * unchanged.std()  # the change does something


def test_a_matrix_where_a_stack_is_expected_is_refused(tiny_model: MakeModel) -> None:
    with open_gguf(tiny_model("llama")) as file:
        graph = build_graph(file)
        first = next(number for number, op in enumerate(graph.operations) if isinstance(op, Linear))
        linear = graph.operations[first]
        assert isinstance(linear, Linear)
        stacked = StackedLinear(linear.out, linear.x, linear.weight, 1)
        graph = replace(graph, operations=(*graph.operations[:first], stacked, *graph.operations[first + 1 :]))
        with pytest.raises(UnsupportedModelError, match=f"{linear.weight} has 2 dimensions where a stack"):
            CPUExecutor(graph, WeightStore(file), 1)


# Rows, sequences and blocks


@pytest.fixture(params=["llama", "gemma3"])
def file(request: pytest.FixtureRequest, tiny_model: MakeModel) -> Iterator[GGUFFile]:
    layers, window = (7, 33) if request.param == "gemma3" else (2, None)
    types = ("Q4_0", "Q8_0", "F16")
    with open_gguf(tiny_model(request.param, layers=layers, window=window, weight_types=types)) as opened:
        yield opened


@pytest.fixture
def executor(file: GGUFFile) -> Iterator[CPUExecutor]:
    made = executor_of(file, 2)
    yield made
    made.close()


def test_threads_do_not_change_a_bit(file: GGUFFile) -> None:
    expected = cpu_logits(file, IDS, threads=1)
    for threads in (2, 3, 8):
        assert np.array_equal(cpu_logits(file, IDS, threads=threads), expected)


def test_weights_that_come_next_are_known(executor: CPUExecutor) -> None:
    """What waits, and what is nearly done, may ask for them: of the next token too."""
    steps = executor._planner.steps
    products = [step.record.ctypes.data for step in steps if step.kernel.startswith("matmul.")]
    following = [int(step.record[MATMUL.following // 8]) for step in steps if step.kernel.startswith("matmul.")]
    assert following == [*products[1:], products[0]] and len(products) > 5
    for number, (_kernel, _record, _barrier, product) in enumerate(executor._all_of_few.tolist()):
        later = (step.record.ctypes.data for step in steps[number:] if step.kernel.startswith("matmul."))
        assert product == next(later, 0)


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0), (0, 2, 1), None])
@pytest.mark.parametrize(
    ("architecture", "heads"), [("llama", (4, 2)), ("llama", (2, 1)), ("gemma3", (4, 2)), ("gemma3", (4, 1))]
)
def test_barriers_stand_wherever_threads_depend_on_each_other(
    tiny_model: MakeModel, architecture: str, heads: tuple[int, int], order: tuple[int, int, int] | None
) -> None:
    """Between two barriers each thread may be as far ahead of the others as it likes: here it does all of its work
    there before the next thread begins, in every order (None: by chance)."""
    generator = np.random.default_rng(1)
    path = tiny_model(
        architecture, layers=3, heads=heads[0], kv_heads=heads[1], weight_types=("Q4_0", "F16", "Q8_0"), window=9
    )
    with open_gguf(path) as file:
        executor = executor_of(file, 3)
        kernels = load_kernels()

        def logits(order: tuple[int, ...] | None) -> list[NDArray[np.float32]]:
            def run(plan: NDArray[np.int64], threads: int) -> None:
                assert threads == 3
                for segment in np.split(plan, np.flatnonzero(plan[:, 2])):
                    for thread in generator.permutation(3) if order is None else order:
                        for address, record, _barrier, _product in segment.tolist():
                            kernels.call_at(address, record, int(thread), 3)

            executor._team.run = run  # type: ignore[method-assign, assignment]
            sequences = Sequences.of([IDS[:30], OTHER_IDS[:20]])
            executor.reserve(sequences.blocks)
            steps = ((1, 0), (12, 5), (1, 1), (0, 2), (16, 12))  # few and many rows, one and two sequences
            return [executor.step(sequences.take(*counts)).copy() for counts in steps]

        expected = logits((0, 1, 2))
        assert all(np.array_equal(got, want) for got, want in zip(logits(order), expected, strict=True))
        executor.close()


def test_chunks_and_repetition_change_nothing_but_rounding(file: GGUFFile, executor: CPUExecutor) -> None:
    """Products of several rows add up in another order only where the weights are floats."""
    expected = whole_logits(executor, IDS, 90)
    assert np.array_equal(whole_logits(executor, IDS, 90), expected)
    for chunk in (1, 31, 32, 33):
        assert_close(whole_logits(executor, IDS, chunk), expected, INT8)


def test_chunks_do_not_change_a_bit_of_quantized_models(tiny_model: MakeModel) -> None:
    with open_gguf(tiny_model("llama", weight_types=("Q4_0", "Q8_0"), embedding_type="Q5_1")) as file:
        expected = cpu_logits(file, IDS, 90)
        few = cpu_logits(file, IDS, 1)
        if amx_mode() is None:  # else products of many rows have kernels of their own
            assert np.array_equal(few, expected)
        for chunk in (2, 7):
            assert np.array_equal(cpu_logits(file, IDS, chunk), few)
        for chunk in (32, 33):
            assert np.array_equal(cpu_logits(file, IDS, chunk), expected)


def test_unequal_sequences_in_shuffled_blocks(executor: CPUExecutor) -> None:
    alone = [whole_logits(executor, IDS), whole_logits(executor, OTHER_IDS)]
    sequences = Sequences.of([IDS, OTHER_IDS], shuffle=np.random.default_rng(1))
    executor.reserve(sequences.blocks)
    parts: list[list[NDArray[np.float32]]] = [[], []]
    for counts in ((40, 1), (1, 30), (0, 9), (34, 0), (15, 5)):
        batch = sequences.take(*counts)
        logits = executor.step(batch)
        for number, own in enumerate(parts):
            own.append(logits[batch.sequences == number].copy())
    assert sequences.done == [90, 45]
    for own, expected in zip(parts, alone, strict=True):
        assert_close(np.concatenate(own), expected, INT8)


def test_rows_of_sequences_may_be_mixed(executor: CPUExecutor) -> None:
    alone = [whole_logits(executor, IDS[:40]), whole_logits(executor, OTHER_IDS[:40])]
    sequences = Sequences.of([IDS[:40], OTHER_IDS[:40]])
    executor.reserve(sequences.blocks)
    batch = sequences.take(40, 40)
    order = np.arange(80).reshape(2, 40).T.ravel()  # one row of each in turn
    logits = executor.step(
        Batch(batch.tokens[order], batch.positions[order], batch.sequences[order], batch.block_tables, batch.outputs)
    )
    assert_close(logits[0::2], alone[0], INT8)
    assert_close(logits[1::2], alone[1], INT8)


@pytest.mark.parametrize("outputs", [[], [3], [49, 0, 0], [*range(50), *range(50)], list(range(MAX_OUTPUTS + 1))])
def test_only_the_rows_asked_for_come_back(executor: CPUExecutor, outputs: list[int]) -> None:
    expected = whole_logits(executor, IDS[:50], 50)
    batch = Sequences.of([IDS[:50]]).take(50)
    logits = executor.step(replace(batch, outputs=np.array(outputs, np.int32)))
    assert logits.shape == (len(outputs), 271)
    # The weights of this vocabulary are floats, whose products add up in another order in a tile of four rows.
    assert logits == pytest.approx(expected[outputs], rel=1e-5, abs=1e-5)


def test_full_steps(executor: CPUExecutor, file: GGUFFile) -> None:
    ids = np.random.default_rng(7).integers(0, 271, MAX_ROWS).tolist()
    assert file.metadata[f"{file.metadata['general.architecture']}.context_length"] == MAX_ROWS
    assert_close(whole_logits(executor, ids, MAX_ROWS), exact_logits(file, ids), INT8)


def test_a_copied_block_continues_another_sequence(executor: CPUExecutor) -> None:
    expected = whole_logits(executor, IDS[:BLOCK_TOKENS] + OTHER_IDS)
    executor.reserve(8)
    executor.step(Sequences.of([IDS[:BLOCK_TOKENS]]).take(BLOCK_TOKENS))  # in block 0
    executor.copy_block(0, 5)
    whole = np.array(IDS[:BLOCK_TOKENS] + OTHER_IDS, np.int32)
    continued = Sequences([whole], np.array([[5, 7, 1]], np.int32), [BLOCK_TOKENS])
    assert_close(executor.step(continued.take(200)), expected[BLOCK_TOKENS:], INT8)


def test_a_new_cache_knows_nothing_of_the_old(executor: CPUExecutor) -> None:
    expected = whole_logits(executor, IDS)
    for blocks in (3, 40):
        executor.reserve(blocks)
        assert executor.memory()["cache"] == blocks * executor.block_bytes
        assert np.array_equal(whole_logits(executor, IDS), expected)


def test_calls_from_several_threads_take_turns(executor: CPUExecutor) -> None:
    """Each uses blocks of its own; results are copied before the next step may overwrite them."""
    expected = whole_logits(executor, IDS, 30)
    executor.reserve(12)
    results: dict[int, NDArray[np.float32]] = {}
    lock = threading.Lock()

    def work(number: int) -> None:
        tables = np.arange(3 * number, 3 * number + 3, dtype=np.int32)[None]
        sequences, parts = Sequences([np.array(IDS, np.int32)], tables, [0]), []
        for _ in range(3):
            with lock:
                parts.append(executor.step(sequences.take(30)).copy())
        results[number] = np.concatenate(parts)

    callers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(results) == [0, 1, 2, 3]
    assert all(np.array_equal(result, expected) for result in results.values())


# What is refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": [271]}, "token id is not within 0 to 270"),
        ({"tokens": [-1]}, "token id"),
        ({"positions": [288]}, "position"),
        ({"positions": [-1]}, "position"),
        ({"sequences": [1]}, "sequence"),
        ({"sequences": [-1]}, "sequence"),
        ({"outputs": [1]}, "output"),
        ({"outputs": [-1]}, "output"),
        ({"block_tables": [[0, -1]]}, "cache block"),
        ({"block_tables": [[0, 2]]}, "cache block"),
        ({"block_tables": [[]]}, "position"),
        ({"tokens": []}, "0 rows"),
        ({"tokens": [1, 2]}, "different numbers"),
        ({"positions": [0, 1]}, "different numbers"),
        ({"sequences": []}, "different numbers"),
    ],
)
def test_a_batch_that_leads_outside_is_refused(executor: CPUExecutor, fields: dict[str, Any], message: str) -> None:
    executor.reserve(2)
    good = {"tokens": [1], "positions": [0], "sequences": [0], "block_tables": [[0, 1]], "outputs": [0]}
    if fields.get("positions") == [288]:
        good["block_tables"] = [[0, 1] * 4]
    arrays = {name: np.array(values, np.int32) for name, values in (good | fields).items()}
    with pytest.raises(InvalidSettingError, match=message):
        executor.step(Batch(**arrays))
    assert np.isfinite(executor.step(Batch(**{name: np.array(v, np.int32) for name, v in good.items()}))).all()


def test_too_many_rows_and_blocks_that_are_not_there_are_refused(executor: CPUExecutor) -> None:
    rows = executor.max_rows + 1
    zeros = np.zeros(rows, np.int32)
    with pytest.raises(InvalidSettingError, match=f"a step of {rows} rows"):
        executor.step(Batch(zeros, zeros, zeros, np.zeros((1, 1), np.int32), zeros))
    executor.reserve(2)
    for source, destination in ((0, 2), (2, 0), (-1, 0), (0, -1)):
        with pytest.raises(InvalidSettingError, match="cache block"):
            executor.copy_block(source, destination)
    with pytest.raises(OutOfMemoryError, match="cache of"):
        executor.reserve(2**55)
    with pytest.raises(InvalidSettingError, match="cache block"):  # and there is none left
        executor.copy_block(0, 0)


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_impossible_numbers_of_threads_are_refused(file: GGUFFile, threads: int) -> None:
    with pytest.raises(InvalidSettingError, match=f"threads is {threads}"):
        executor_of(file, threads)


def test_cache_types_that_do_not_exist_or_fit_are_refused(file: GGUFFile) -> None:
    with pytest.raises(InvalidSettingError, match=r"q4_7.*use one of f16, q8_0"):
        executor_of(file, cache_type="q4_7")
    with pytest.raises(InvalidSettingError, match="multiples of 32"):  # these heads have 16 values
        executor_of(file, cache_type="q8_0")


# Memory and closing


def test_progress_and_memory_are_told(file: GGUFFile) -> None:
    reports: list[tuple[str, int, int]] = []
    executor = executor_of(file, 1, progress=lambda *report: reports.append(report))
    weights = [report for report in reports if report[0] == "weights"]
    total = weights[-1][2]
    assert weights[0] == ("weights", 0, total)
    assert weights[-1] == ("weights", total, total)
    assert weights == sorted(weights)
    executor.reserve(3)
    held = executor.memory()
    matrices = sum(tensor.size_bytes for tensor in file.tensors.values() if len(tensor.shape) == 2)
    assert matrices <= held["weights"] <= 1.3 * matrices  # rows of the vocabulary are filled up to 16
    assert held["cache"] == 3 * executor.block_bytes
    assert held["buffers"] > 0
    executor.close()


def test_closing_gives_everything_back(file: GGUFFile) -> None:
    gc.collect()
    before = threading.active_count()
    executor = executor_of(file, 3)
    whole_logits(executor, IDS)
    assert threading.active_count() == before + 2
    parts = [weakref.ref(executor._planner), weakref.ref(executor._team._shared)]
    parts += [weakref.ref(matrix.data.base) for matrix in executor._matrices.values()]
    parts += [weakref.ref(region) for region in executor._cache._regions]
    executor.close()
    executor.close()
    gc.collect()
    assert threading.active_count() == before
    assert executor.memory() == {"weights": 0, "cache": 0, "buffers": 0}
    alive = [part() for part in parts if part() is not None]
    assert alive == [executor._team._shared]
    for call in (
        lambda: executor.step(Sequences.of([IDS[:3]]).take(3)),
        lambda: executor.reserve(1),
        lambda: executor.copy_block(0, 0),
    ):
        with pytest.raises(EdgeLLMError, match="closed"):
            call()


def test_a_forgotten_executor_gives_everything_back(file: GGUFFile) -> None:
    gc.collect()
    before = threading.active_count()
    executor = executor_of(file, 3)
    whole_logits(executor, IDS)
    planner = weakref.ref(executor._planner)
    del executor
    gc.collect()
    assert planner() is None
    assert threading.active_count() == before
