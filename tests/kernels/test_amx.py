"""Products on AMX tiles, in software and, where the CPU has it, in hardware.

The weights that a kernel multiplies with are bfloat16 and can be seen one by one: with an activation that is 1 in one
column and 0 elsewhere, the results are that column. So the rounding of weights and the sums are tested apart, both
against bounds that leave no room for a wrong number.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from amx_calls import in_tiles, multiply, to_bfloats
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import TINY, Kernels, gamma, load_kernels
from numpy.typing import NDArray
from weight_blocks import (
    NOT_FINITE_HALVES,
    QUANTIZED_TYPES,
    SHAPES,
    decoded,
    offsets,
    random_blocks,
    random_floats,
)

from edgellm.gguf import TensorType
from edgellm.kernels import amx_layout
from edgellm.kernels.packing import RECIPES, PackedMatrix, packed_type
from edgellm.platforms.amx import amx_works

Doubles = NDArray[np.float64]
TYPES = (*QUANTIZED_TYPES, "BF16")
BFLOAT_UNIT = 2.0**-8  # largest relative error of rounding to bfloat16
SMALL_SCALES = 128  # the largest of those that a block's half-precision scale is multiplied by


@pytest.fixture(params=["emulated", "hardware"])
def mode(request: pytest.FixtureRequest) -> str:
    """Which tiles to use."""
    if request.param == "hardware" and not amx_works():
        pytest.skip("no AMX on this machine")
    return str(request.param)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    """Those of this machine; the ones in software are compiled in one go."""
    found = load_kernels()
    formats = dict.fromkeys(RECIPES[packed_type(name)].format for name in TYPES)
    found.library.load([*(amx_layout.kernel_name(name, True) for name in formats), "amx_input.bfloat16"])
    return found


def random_weights(
    type_name: str, rows: int, columns: int, scales: str, generator: np.random.Generator
) -> NDArray[np.uint8]:
    """Raw weights (rows, bytes)."""
    if type_name in SHAPES:
        blocks = columns // TensorType[type_name].block_size
        return random_blocks(type_name, rows, blocks, scales, generator)
    return random_floats(type_name, rows, columns, scales, generator)


def seen_weights(kernels: Kernels, matrix: PackedMatrix, mode: str) -> Doubles:
    """The weights as the kernel multiplies with them (rows, columns)."""
    unit = np.eye(matrix.columns, dtype=np.float32)
    return multiply(kernels, matrix, unit, mode).T.astype(np.float64)


def largest_scale(raw: NDArray[np.uint8], type_name: str) -> Doubles:
    """A bound of the scales of each row (rows, 1)."""
    if type_name not in SHAPES:
        return np.zeros((len(raw), 1))
    shape, kind = SHAPES[type_name], TensorType[type_name]
    blocks = raw.reshape(len(raw), -1, kind.block_bytes)
    halves = np.concatenate([blocks[:, :, at : at + 2] for at in shape.halves], axis=1).copy().view(np.float16)
    small = SMALL_SCALES if kind.block_size == 256 and type_name not in ("TQ1_0", "TQ2_0") else 1
    return np.abs(halves.astype(np.float64)).reshape(len(raw), -1).max(axis=1, keepdims=True) * small


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("scales", ["ordinary", "extreme"])
def test_weights_are_rounded_once_to_bfloat16(kernels: Kernels, mode: str, type_name: str, scales: str) -> None:
    """A weight is 256 scale (1 + code / 256) + (offset - 256 scale): the difference is rounded, then the sum.

    The codec's own weight was rounded up to three times, the scale of small scales once.
    """
    generator = np.random.default_rng(4)
    columns = 512 if TensorType[type_name].block_size == 256 else 96
    raw = random_weights(type_name, 21, columns, scales, generator)
    exact = decoded(raw, type_name)
    seen = seen_weights(kernels, kernels.pack(raw, type_name, columns), mode)
    offset = offsets(raw, type_name) if type_name in SHAPES else 0.0
    formed = gamma(1) * (256 * largest_scale(raw, type_name) + np.abs(offset)) + gamma(5) * np.abs(exact)
    ternary = type_name in ("TQ1_0", "TQ2_0")  # divided by another scale first, multiplied by it in the end
    lost = TINY * (2 + (largest_scale(raw, type_name) if ternary else 0))
    assert (np.abs(seen - exact) <= BFLOAT_UNIT * np.abs(exact) + (1 + BFLOAT_UNIT) * formed + lost).all()
    if type_name == "BF16":
        assert np.array_equal(seen, np.where(np.abs(exact) < TINY, 0, exact))
    if not ternary:
        assert not (seen.astype(np.float32).view(np.uint32) & 0xFFFF).any()


def test_ternary_weights_with_one_scale_are_exact(kernels: Kernels, mode: str) -> None:
    generator = np.random.default_rng(5)
    raw = random_weights("TQ2_0", 40, 512, "ordinary", generator)
    raw.reshape(40, 2, 66)[:, :, :64] = generator.integers(0, 3, (40, 2, 64, 4)) @ np.array([1, 4, 16, 64])
    raw.reshape(40, 2, 66)[:, :, 64:] = np.array([0.0123], np.float16).view(np.uint8)
    seen = seen_weights(kernels, kernels.pack(raw, "TQ2_0", 512), mode)
    assert np.array_equal(seen, decoded(raw, "TQ2_0"))


@pytest.mark.parametrize("type_name", TYPES)
@settings(deadline=None, max_examples=8)
@given(
    seed=st.integers(0, 2**32 - 1),
    weight_rows=st.sampled_from((1, 16, 17, 32, 50, 64)),
    rows=st.sampled_from((1, 15, 16, 17, 32, 33, 49, 70)),
    blocks=st.sampled_from((1, 2, 3, 18, 19)),
    values=st.sampled_from(["ordinary", "zeros", "huge", "tiny"]),
    extras=st.booleans(),
    threads=st.integers(1, 3),
)
def test_products(
    kernels: Kernels, type_name: str, seed: int, weight_rows: int, rows: int, blocks: int, values: str, extras: bool,
    threads: int,
) -> None:  # fmt: skip
    """Products of bfloat16 are exact in float32. For each 32 columns there are 16 additions to each of two sums, one of
    both and one to the result; then come the row's factor, bias and accumulation."""
    generator = np.random.default_rng(seed)
    block = TensorType[type_name].block_size
    columns = max(32, block) * (blocks if block < 256 else min(blocks, 3))
    raw = random_weights(type_name, weight_rows, columns, "ordinary", generator)
    matrix = kernels.pack(raw, type_name, columns)
    scale = {"ordinary": 1, "zeros": 0, "huge": 1e30, "tiny": 1e-30}[values]
    x = (scale * generator.standard_normal((rows, columns))).astype(np.float32)
    bias = generator.standard_normal(weight_rows).astype(np.float32) if extras else None
    before = generator.standard_normal((rows, weight_rows)).astype(np.float32) if extras else None
    result = multiply(kernels, matrix, x, "emulated", threads, bias, before)

    weights, used = seen_weights(kernels, matrix, "emulated"), to_bfloats(x).astype(np.float64)
    more = (bias.astype(np.float64) + before) if bias is not None and before is not None else 0.0
    size = np.abs(used) @ np.abs(weights).T + (np.abs(bias) + np.abs(before) if extras else 0.0)
    # The weights were seen times the row's factor, the kernel multiplies by it later.
    roundings = 16 + 1 + columns // 32 + 1 + 1 + 2
    lost = TINY * (columns * (1 + np.abs(weights).max()) + 2)
    assert (np.abs(result - (used @ weights.T + more)) <= gamma(roundings) * size + lost).all()


def test_long_rows_are_taken_in_slabs(kernels: Kernels, mode: str) -> None:
    """256 rows of 2,336 columns do not fit the cache; the last chunk of the second slab is a small one."""
    generator = np.random.default_rng(6)
    raw = random_weights("Q4_0", 40, 2336, "ordinary", generator)
    matrix = kernels.pack(raw, "Q4_0", 2336)
    x = generator.standard_normal((256, 2336)).astype(np.float32)
    bias, before = np.ones(40, np.float32), np.full((256, 40), 2, np.float32)
    result = multiply(kernels, matrix, x, mode, 2, bias, before)
    weights, used = seen_weights(kernels, matrix, mode), to_bfloats(x).astype(np.float64)
    size = np.abs(used) @ np.abs(weights).T + 3
    assert (np.abs(result - (used @ weights.T + 3)) <= gamma(16 + 2 + 2336 // 32 + 5) * size).all()


@pytest.mark.parametrize("type_name", ["Q4_0", "Q6_K", "TQ2_0"])
def test_all_threads_and_rows_give_the_same_bits(kernels: Kernels, mode: str, type_name: str) -> None:
    generator = np.random.default_rng(7)
    raw = random_weights(type_name, 90, 768, "ordinary", generator)
    matrix = kernels.pack(raw, type_name, 768)
    x = generator.standard_normal((45, 768)).astype(np.float32)
    one = multiply(kernels, matrix, x, mode)
    for threads in (2, 3, 7):
        assert np.array_equal(multiply(kernels, matrix, x, mode, threads), one)
    for row in (0, 20, 44):
        assert np.array_equal(multiply(kernels, matrix, x[row : row + 1], mode)[0], one[row])


@pytest.mark.parametrize("type_name", TYPES)
def test_hardware_and_emulation_agree_to_the_bit(kernels: Kernels, type_name: str) -> None:
    if not amx_works():
        pytest.skip("no AMX on this machine")
    generator = np.random.default_rng(8)
    raw = random_weights(type_name, 50, 768, "ordinary", generator)
    matrix = kernels.pack(raw, type_name, 768)
    x = (generator.standard_normal((45, 768)) * 10.0 ** generator.integers(-40, 20, (45, 1))).astype(np.float32)
    results = [multiply(kernels, matrix, x, mode) for mode in ("emulated", "hardware")]
    assert np.array_equal(results[0], results[1], equal_nan=True)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_K", "TQ2_0", "BF16"])
def test_an_activation_that_is_no_number_shows_in_all_results_of_its_row_and_in_no_other(
    kernels: Kernels, mode: str, type_name: str, bad: float
) -> None:
    generator = np.random.default_rng(9)
    matrix = kernels.pack(random_weights(type_name, 17, 512, "ordinary", generator), type_name, 512)
    x = generator.standard_normal((40, 512)).astype(np.float32)
    rows = np.array([0, 16, 39])
    x[rows, [0, 45, 511]] = bad
    result = multiply(kernels, matrix, x, mode)
    assert not np.isfinite(result[rows]).any()
    assert np.isfinite(np.delete(result, rows, axis=0)).all()


def test_a_payload_of_nan_does_not_become_a_number(kernels: Kernels) -> None:
    """Rounding by adding could carry a NaN's mantissa into its sign."""
    x = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF800000], np.uint32).view(np.float32)
    rows = np.zeros((1, 32), np.float32)
    rows[0, :4] = x
    made = in_tiles(kernels, rows)[:4].astype(np.uint32) << 16
    assert np.isnan(made.view(np.float32)[:3]).all()
    assert made.view(np.float32)[3] == -np.inf


@pytest.mark.parametrize("half", [*NOT_FINITE_HALVES, np.uint16(0x7FFF), np.uint16(0xFFFF)])
@pytest.mark.parametrize("type_name", QUANTIZED_TYPES)
def test_a_scale_that_is_no_number_shows_in_the_results(
    kernels: Kernels, mode: str, type_name: str, half: np.uint16
) -> None:
    generator = np.random.default_rng(2)
    shape, size = SHAPES[type_name], TensorType[type_name].block_bytes
    columns = 3 * TensorType[type_name].block_size
    for offset in shape.halves:
        raw = random_blocks(type_name, 18, 3, "ordinary", generator)
        raw.reshape(18, 3, size)[[0, 17], 1, offset : offset + 2] = half.reshape(1).view(np.uint8)
        x = generator.standard_normal((20, columns)).astype(np.float32)
        result = multiply(kernels, kernels.pack(raw, type_name, columns), x, mode)
        assert not np.isfinite(result[:, [0, 17]]).any()
        assert np.isfinite(result[:, 1:17]).all()


ASSEMBLY = """
import sys
from edgellm.kernels.cross import compile_with_assembly
from edgellm.kernels.target import named_target
for name in sys.argv[1:]:
    print(compile_with_assembly(name, named_target("linux-x86_64-amx"))[1])
"""


def test_the_hardware_kernels_compile_without_spilling_tiles() -> None:
    """For a CPU that has AMX, on any: each result tile is stored in one place, and nothing is called."""
    names = ["matmul_amx.q4", "matmul_amx.k6"]
    command = [sys.executable, "-P", "-c", ASSEMBLY, *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    count = Counter(re.findall(r"^\t([a-z]\w*)", done.stdout, re.MULTILINE))
    assert count["ldtilecfg"] == count["tilerelease"] == len(names)
    assert count["tilestored"] == 6 * len(names)
    assert count["tilezero"] == 6 * len(names)
    assert count["tdpbf16ps"] >= 6 * len(names)
    assert count["tileloadd"] > count["tdpbf16ps"]
    assert not any(name.startswith("call") for name in count)
