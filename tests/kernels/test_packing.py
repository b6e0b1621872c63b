"""Packing: what is rearranged keeps its meaning, what is converted loses no more than promised."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import Kernels, load_kernels
from numpy.typing import NDArray
from weight_blocks import EXTREME_HALVES, FLOAT_TYPES, QUANTIZED_TYPES, random_blocks, random_floats

from edgellm.gguf import TensorType, decode
from edgellm.kernels.packing import (
    CONVERSIONS,
    FORMATS,
    RECIPES,
    PackedMatrix,
    aligned_empty,
    i2_s_to_two_bits,
    pack_kernels,
    pack_matrix,
    packed_type,
    ternary_to_two_bits,
    to_q8_0,
)

HALF_UNIT = 2.0**-11
# Types with one scale for 32 values, which are integers times it: Q8_0 holds them but for the rounding of the scale.
ONE_SCALE = ("IQ1_S", "IQ2_XXS", "IQ3_XXS", "IQ3_S", "MXFP4", "Q1_0")
HALVES = {  # where the half-precision scales of the converted types lie
    "IQ1_S": (0,), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,), "Q8_1": (0, 2),
    "Q1_0": (0,),
}  # fmt: skip


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return load_kernels()


def random_raw(type_name: str, rows: int, blocks: int, seed: int = 0) -> NDArray[np.uint8]:
    make = random_floats if type_name in FLOAT_TYPES else random_blocks
    return make(type_name, rows, blocks, "ordinary", np.random.default_rng(seed))


# Rearranging


def parts(matrix: PackedMatrix) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """What kernels read: codes and scales, each (groups, blocks, bytes of a block)."""
    layout, blocks = matrix.format, matrix.blocks
    groups = matrix.data.reshape(matrix.groups, layout.group_bytes(blocks))
    codes_at, scales_at = layout.places()
    codes = np.stack([groups[:, codes_at(block) :][:, : layout.code_bytes] for block in range(blocks)], axis=1)
    scales = np.stack([groups[:, scales_at(block) :][:, : layout.scale_bytes] for block in range(blocks)], axis=1)
    if layout.name in ("k3", "k6"):
        scales[:, :, 32:64] = 0  # the place of the minimum, which these have not
    return codes, scales


def same(a: PackedMatrix, b: PackedMatrix) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(parts(a), parts(b), strict=True))


@pytest.mark.parametrize("type_name", [*QUANTIZED_TYPES, *FLOAT_TYPES])
@pytest.mark.parametrize("rows", [1, 16, 37])
def test_groups_do_not_depend_on_threads_or_neighbours(kernels: Kernels, type_name: str, rows: int) -> None:
    columns = 3 * TensorType[type_name].block_size
    raw = random_raw(type_name, rows, 3)
    matrix = kernels.pack(raw, type_name, columns)
    assert (matrix.rows, matrix.columns, matrix.groups, matrix.blocks) == (rows, columns, -(-rows // 16), 3)
    assert matrix.data.nbytes == matrix.groups * matrix.format.group_bytes(3)
    assert matrix.data.ctypes.data % 64 == matrix.format.group_bytes(3) % 64 == 0
    for threads in (2, 5):
        assert same(kernels.pack(raw, type_name, columns, threads), matrix)
    last = kernels.pack(raw[(rows - 1) // 16 * 16 :], type_name, columns)
    assert all(np.array_equal(x[0], y[-1]) for x, y in zip(parts(last), parts(matrix), strict=True))


@pytest.mark.parametrize("type_name", [*QUANTIZED_TYPES, *FLOAT_TYPES])
def test_rows_that_do_not_exist_are_zero(kernels: Kernels, type_name: str) -> None:
    """Their scales are, or the numbers themselves: codes and small scales may be what they like."""
    columns = 2 * TensorType[type_name].block_size
    codes, scales = parts(kernels.pack(random_raw(type_name, 5, 2), type_name, columns))
    if type_name in FLOAT_TYPES:
        width = 4 if type_name == "F32" else 2  # bytes of a lane
        assert not codes.reshape(-1, 16, width)[:, 5:].any()
    else:
        halves = 64 if RECIPES[packed_type(type_name)].format.startswith("k") else min(64, scales.shape[2])
        if type_name == "IQ4_XS":
            halves = 32
        assert not scales[:, :, :halves].reshape(-1, 16, 2)[:, 5:].any()


def test_each_group_of_a_large_matrix_lands_where_it_belongs(kernels: Kernels) -> None:
    raw = np.tile(random_raw("Q4_K", 125, 16), (16, 1))
    assert raw.nbytes > 1 << 22
    matrix = kernels.pack(raw, "Q4_K", 4096)
    groups = matrix.data.reshape(125, -1)
    for number in (0, 60, 112, 113, 114, 124):
        part = kernels.pack(raw[16 * number : 16 * number + 16], "Q4_K", 4096)
        assert np.array_equal(part.data, groups[number])


def test_rows_may_stand_apart(kernels: Kernels) -> None:
    raw = random_raw("Q5_K", 20, 2)
    spaced = np.zeros((20, raw.shape[1] + 7), np.uint8)[:, 3 : 3 + raw.shape[1]]
    spaced[...] = raw
    expected = kernels.pack(raw, "Q5_K", 512)
    assert np.array_equal(kernels.pack(spaced, "Q5_K", 512).data, expected.data)


@pytest.mark.parametrize(("rows", "columns", "size"), [(3, 64, 72), (2, 48, 36), (2, 96, 36)])
def test_bytes_that_do_not_fit_the_shape_are_refused(rows: int, columns: int, size: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        pack_matrix(np.zeros((2, size), np.uint8), "Q4_0", rows, columns, lambda name, record: None)


def test_every_type_of_the_format_has_a_way() -> None:
    for tensor_type in TensorType:
        target = packed_type(tensor_type.name)
        assert RECIPES[target].format in FORMATS
        assert pack_kernels(tensor_type.name) == {f"pack.{target}"}
        assert target == tensor_type.name or tensor_type.name in CONVERSIONS or target in ("F32", "TQ2_0")


@pytest.mark.parametrize("size", [0, 1, 4096])
@pytest.mark.parametrize("alignment", [64, 4096])
def test_aligned_memory(size: int, alignment: int) -> None:
    memory = aligned_empty(size, alignment)
    assert memory.nbytes == size
    assert memory.ctypes.data % alignment == 0 or size == 0


# Converting


def test_ternary_digits_become_two_bits() -> None:
    """Bit for bit what the codec reads, for every byte in every place and any scale."""
    generator = np.random.default_rng(1)
    raw = generator.integers(0, 256, (256, 3, 54), dtype=np.uint8)
    raw[:, :, :52] += np.arange(256, dtype=np.uint8)[:, None, None]  # every value in every column
    raw[:, 0, :52] = np.arange(256, dtype=np.uint8)[:, None]
    raw[:, :, 52:] = generator.choice(EXTREME_HALVES, (256, 3))[..., None].view(np.uint8)
    raw = raw.reshape(256, -1)
    converted = ternary_to_two_bits(raw)
    assert converted.shape == (256, 3 * 66)
    expected = decode(raw, TensorType.TQ1_0)
    assert np.array_equal(decode(converted, TensorType.TQ2_0), expected)


@pytest.mark.parametrize("scale", [0.375, 1.0, 2.0**-14, -3.0])
def test_two_bits_of_i2_s_are_turned_round(scale: float) -> None:
    """Every byte in every place, bit for bit what the codec reads."""
    raw = (np.arange(256, dtype=np.uint8)[:, None] + np.arange(128, dtype=np.uint8)).astype(np.uint8)
    converted = i2_s_to_two_bits(raw, scale)
    assert converted.shape == (256, 2 * 66)
    expected = decode(raw, TensorType.I2_S) * np.float32(scale)
    assert np.array_equal(decode(converted, TensorType.TQ2_0), expected)


def convertible(type_name: str, generator: np.random.Generator, rows: int = 8) -> NDArray[np.float32]:
    """Random values of a type that no kernel reads, of an ordinary size."""
    kind = TensorType[type_name]
    raw = generator.integers(0, 256, (rows, 4, kind.block_bytes), dtype=np.uint8)
    for offset in HALVES.get(type_name, ()):
        raw[:, :, offset : offset + 2] = generator.uniform(0.001, 0.1, (rows, 4, 1)).astype(np.float16).view(np.uint8)
    if type_name == "IQ1_M":  # the scale's bits lie in the upper four of each of the last four words
        half = generator.uniform(0.001, 0.1, (rows, 4)).astype(np.float16).view(np.uint16)
        for word in range(4):
            place = raw[:, :, 48 + 2 * word + 1]
            place[...] = (place & 15) | ((half >> (4 * word) & 15) << 4).astype(np.uint8)
    if type_name == "Q8_K":
        raw[:, :, :4] = generator.uniform(0.001, 0.1, (rows, 4, 1)).astype(np.float32).view(np.uint8)
    if type_name == "MXFP4":
        raw[:, :, 0] = generator.integers(110, 135, (rows, 4))
    if type_name == "NVFP4":
        raw[:, :, :4] = generator.integers(1, 0x70, (rows, 4, 4))
    return decode(raw.reshape(rows, -1), kind).reshape(rows, -1)


@pytest.mark.parametrize("type_name", CONVERSIONS)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_conversion_to_q8_0(type_name: str, seed: int) -> None:
    """A code is off by a half of a scale that is at most peak / 127; types of one scale for 32 integers only have that
    scale rounded to half precision."""
    values = convertible(type_name, np.random.default_rng(seed))
    assert np.isfinite(values).all()
    assert values.any()
    got = decode(to_q8_0(values, CONVERSIONS[type_name]), TensorType.Q8_0)
    assert got.shape == values.shape
    error = np.abs(got.astype(np.float64) - values).reshape(-1, 32)
    exact = np.abs(values.astype(np.float64)).reshape(-1, 32)
    peak = exact.max(axis=1, keepdims=True)
    assert (peak / 127 > 2.0**-14).mean() > 0.3  # scales of ordinary size, or the bounds would say little
    denormal = 64 * 2.0**-25  # of scales below half precision's normal numbers
    assert (error <= peak * (0.5 / 127 + HALF_UNIT) * (1 + HALF_UNIT) + denormal).all()
    if type_name in ONE_SCALE:
        assert (error <= exact * HALF_UNIT * (1 + HALF_UNIT) + denormal).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e9, -3e38])
def test_values_that_q8_0_cannot_hold_do_not_become_others(bad: float) -> None:
    values = np.ones((2, 96), np.float32)
    values[1, 40] = bad
    got = decode(to_q8_0(values, (1, 7, 9)), TensorType.Q8_0)
    assert not np.isfinite(got[1, 40])
    assert got[0] == pytest.approx(np.ones(96), rel=1e-3)
    assert got[1, :32] == pytest.approx(np.ones(32), rel=1e-3)
    assert got[1, 64:] == pytest.approx(np.ones(32), rel=1e-3)


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-9, 2.0**-24])
def test_values_too_small_for_q8_0_become_nearly_nothing(size: float) -> None:
    values = np.full((1, 32), size, np.float32)
    got = decode(to_q8_0(values, (1, 7, 9)), TensorType.Q8_0)
    assert (np.abs(got - values) <= 127 * 2.0**-25).all()
