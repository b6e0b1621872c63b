"""Products of many rows: bit for bit those of the kernels for few rows, which other tests compare with exact ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import (
    arrange_tiles,
    load_kernels,
    matmul_kernel,
    matmul_record,
    matmul_tiles_record,
    outlined,
    quantize_tiles,
)
from numpy.typing import NDArray
from weight_blocks import QUANTIZED_TYPES, random_blocks

from edgellm.gguf import TensorType
from edgellm.kernels import tile_layout

LARGEST = float(np.finfo(np.float32).max)
KINDS = st.sampled_from(["ordinary", "zeros", "huge", "tiny", "not finite"])


def activations(rows: int, columns: int, kind: str, generator: np.random.Generator) -> NDArray[np.float32]:
    """(rows, columns) float32."""
    x = generator.standard_normal((rows, columns))
    if kind == "zeros":
        x[generator.random(x.shape) < 0.9] = 0
    elif kind == "huge":
        x = np.clip(x * 10.0 ** generator.integers(20, 39, (rows, 1)), -LARGEST, LARGEST)
    elif kind == "tiny":
        x *= 10.0 ** generator.integers(-45, -25, (rows, 1))
    elif kind == "not finite":
        x[generator.integers(rows), generator.integers(columns)] = generator.choice([np.nan, np.inf, -np.inf])
    return x.astype(np.float32)


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("tier", ["avx2", "native"])
@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**32 - 1), rows=st.sampled_from([1, 4, 7, 8, 9, 33]), blocks=st.sampled_from([1, 2, 5]),
    kind=KINDS,
)  # fmt: skip
def test_tiles_hold_quantized_rows(tier: str, fine: bool, seed: int, rows: int, blocks: int, kind: str) -> None:
    kernels = load_kernels(tier)
    x = activations(rows, 32 * blocks, kind, np.random.default_rng(seed))
    expected = kernels.quantize(x, fine)
    _, held = quantize_tiles(kernels, x, fine)
    finite = np.isfinite(expected.scales[..., :1])  # what stands for no number may be any codes
    assert np.array_equal(held.scales, expected.scales, equal_nan=True)
    assert np.array_equal(
        held.codes.reshape(*finite.shape[:-1], 32) * finite, expected.codes.reshape(*finite.shape[:-1], 32) * finite
    )


@pytest.mark.parametrize("tier", ["avx2", "native"])
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), rows=st.sampled_from([1, 4, 7, 8, 9, 33]), blocks=st.sampled_from([1, 2, 5]))
def test_codes_are_only_put_in_another_order(tier: str, seed: int, rows: int, blocks: int) -> None:
    kernels = load_kernels(tier)
    made = kernels.quantize(activations(rows, 32 * blocks, "ordinary", np.random.default_rng(seed)))
    _, held = arrange_tiles(kernels, made)
    assert np.array_equal(held.scales.reshape(-1), made.scales.reshape(-1))
    assert np.array_equal(held.codes.reshape(-1), made.codes.reshape(-1))


@pytest.mark.parametrize("type_name", QUANTIZED_TYPES)
@pytest.mark.parametrize("tier", ["avx2", "native", "fine"])
@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 2**32 - 1), weight_rows=st.sampled_from([1, 16, 37]), rows=st.sampled_from([1, 7, 8, 9, 41]),
    blocks=st.sampled_from([1, 2, 3]), scales=st.sampled_from(["ordinary", "extreme"]), kind=KINDS, bias=st.booleans(),
    accumulate=st.booleans(), threads=st.sampled_from([1, 2, 3]),
)  # fmt: skip
def test_products_are_those_of_few_rows(
    tier: str, type_name: str, seed: int, weight_rows: int, rows: int, blocks: int, scales: str, kind: str, bias: bool,
    accumulate: bool, threads: int,
) -> None:  # fmt: skip
    generator, fine = np.random.default_rng(seed), tier == "fine"
    kernels = load_kernels("native" if fine else tier)
    columns = blocks * TensorType[type_name].block_size
    matrix = kernels.pack(random_blocks(type_name, weight_rows, blocks, scales, generator), type_name, columns)
    x, width = activations(rows, columns, kind, generator), 16 * matrix.groups
    more = {"bias": generator.standard_normal(width).astype(np.float32)} if bias else {}
    before = generator.standard_normal((rows, width)).astype(np.float32)
    expected = before.copy()
    record = matmul_record(matrix, kernels.quantize(x, fine), expected, accumulate=int(accumulate), **more)
    kernels.call(matmul_kernel(type_name, fine), record)
    tiles, _ = quantize_tiles(kernels, x, fine)
    output, untouched = outlined(-(-rows // tile_layout.ROWS) * tile_layout.ROWS, width)
    output[:rows] = before
    record = matmul_tiles_record(matrix, tiles, output, rows, accumulate=int(accumulate), **more)
    kernels.call(f"matmul_tiles.{matrix.format.name}{'_fine' if fine else ''}", record, threads)
    assert untouched()
    assert np.array_equal(output[:rows], expected, equal_nan=True)
