"""Compensated rounding: what a matrix does to correlated inputs suffers less than by rounding each weight alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.gguf import TensorType, decode, open_gguf
from edgellm.quantize import QuantizeSettings, quantize
from edgellm.quantize.codes import KINDS, levels, put_codes, scales_and_minima
from edgellm.quantize.gptq import compensation, quantize_rows
from edgellm.quantize.rows import RowQuantizer


@cache
def quantizer() -> RowQuantizer:
    return RowQuantizer([(kind, True) for kind in KINDS])


def matrix(rows: int, columns: int) -> NDArray[np.float32]:
    return (np.random.default_rng(3).standard_normal((rows, columns)) * 0.05).astype(np.float32)


def inputs(columns: int) -> NDArray[np.float64]:
    """Correlated, and some columns much larger than others, as in real models."""
    generator = np.random.default_rng(5)
    hidden = generator.standard_normal((2048, columns // 8))
    x = hidden @ generator.standard_normal((columns // 8, columns)) + 0.3 * generator.standard_normal((2048, columns))
    result: NDArray[np.float64] = x * np.exp(generator.standard_normal(columns))
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_codes_can_be_put_and_scales_be_found(kind: TensorType) -> None:
    """Values are scale * level + minimum, whatever the codes."""
    weights = matrix(7, kind.block_size)
    blocks = quantizer().quantize(weights.view(np.uint8), TensorType.F32, kind, np.ones(kind.block_size, np.float32))
    scale, minimum = scales_and_minima(blocks, kind)
    table = levels(kind)
    codes = np.random.default_rng(7).integers(0, len(table), weights.shape).astype(np.uint8)
    put_codes(blocks, kind, codes)
    expected = scale * table[codes] + minimum
    assert np.allclose(decode(blocks, kind), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_products_suffer_less(kind: TensorType) -> None:
    columns = 2 * 256
    weights, x = matrix(40, columns), inputs(columns)
    hessian = (x.T @ x).astype(np.float32)
    known = compensation(hessian)
    assert known is not None
    plain = quantizer().quantize(weights.view(np.uint8), TensorType.F32, kind, known.importance)
    better = quantize_rows(weights, kind, known, quantizer())
    assert better.shape == plain.shape
    errors = [(((decode(raw, kind) - weights) @ x.T) ** 2).sum() for raw in (plain, better)]
    assert errors[1] < 0.85 * errors[0]


def test_without_correlation_nothing_is_compensated() -> None:
    weights = matrix(9, 64)
    known = compensation(np.eye(64, dtype=np.float32) * 7)
    assert known is not None
    plain = quantizer().quantize(weights.view(np.uint8), TensorType.F32, TensorType.Q4_0, known.importance)
    assert np.array_equal(quantize_rows(weights, TensorType.Q4_0, known, quantizer()), plain)


def test_statistics_that_cannot_be_used() -> None:
    assert compensation(np.zeros((32, 32), np.float32)) is None
    broken = np.eye(32, dtype=np.float32)
    broken[0, 1] = broken[1, 0] = 1e6  # of no inputs at all
    assert compensation(broken) is None
    dead = np.eye(32, dtype=np.float32)
    dead[5, 5] = 0  # a column that is never used
    assert compensation(dead) is not None


def test_of_a_model(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """The file has the size and types of plain rounding, and other codes."""
    model = tiny_model(context_length=1024, width=256, feed_forward=512, layers=2)
    text = tmp_path / "text.txt"
    text.write_text("the hello world of the thing and others " * 200)
    plain = quantize(model, tmp_path / "plain.gguf", QuantizeSettings("Q3_K_S"))
    settings = QuantizeSettings("Q3_K_S", gptq=str(text), chunks=2)
    planned = quantize(model, tmp_path / "gptq.gguf", settings, dry_run=True)
    made = quantize(model, tmp_path / "gptq.gguf", settings)
    assert (tmp_path / "gptq.gguf").stat().st_size == planned.size_bytes
    assert [tensor.type for tensor in plain.tensors] == [tensor.type for tensor in made.tensors]
    with open_gguf(tmp_path / "plain.gguf") as first, open_gguf(tmp_path / "gptq.gguf") as second:
        assert second.metadata["quantize.gptq.dataset"] == str(text)
        name = "blk.1.ffn_down.weight"
        assert not np.array_equal(first.raw(name), second.raw(name))
        assert np.array_equal(first.raw("token_embd.weight"), second.raw("token_embd.weight"))
