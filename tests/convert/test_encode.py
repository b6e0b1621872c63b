"""Numbers in the file, bit for bit against NumPy's conversions and the gguf package's quantizers."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.convert.encode import EncodeError, encode, to_float32
from edgellm.gguf import TensorType, decode

ALL_HALVES = np.arange(65536, dtype=np.uint16).view(np.float16)


def _difficult() -> np.ndarray:
    """All halves, what lies in the middle between two, and the neighbours of these."""
    finite = np.sort(ALL_HALVES[np.isfinite(ALL_HALVES)].astype(np.float32))
    middles = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    random = np.random.default_rng(0)
    others = (random.standard_normal(100000) * 10.0 ** random.uniform(-45, 4.4, 100000)).astype(np.float32)
    below, above = (np.nextafter(middles, np.float32(end)) for end in (-np.inf, np.inf))
    return np.concatenate([finite, middles, below, above, others])


def test_halves_become_float32() -> None:
    with np.errstate(invalid="ignore"):
        expected = ALL_HALVES.astype(np.float32)
    assert np.array_equal(to_float32(ALL_HALVES, "F16"), expected, equal_nan=True)
    finite = ALL_HALVES[np.isfinite(ALL_HALVES)]  # another way, for arrays without the others
    assert np.array_equal(to_float32(finite, "F16").view(np.uint32), finite.astype(np.float32).view(np.uint32))


def test_float32_becomes_halves() -> None:
    values = _difficult()
    values = values[np.abs(values) < 65520]
    assert np.array_equal(encode(values, "F32", TensorType.F16).view(np.uint16), values.astype("<f2").view(np.uint16))


def test_what_f16_cannot_hold_is_an_error_but_infinity_stays() -> None:
    values = np.array([1, np.inf, -np.inf, np.nan, 65519], np.float32)
    assert np.array_equal(
        encode(values, "F32", TensorType.F16).view(np.float16), values.astype(np.float16), equal_nan=True
    )
    with pytest.raises(EncodeError, match="has values as large as 65520, f16 holds 65504 at most"):
        encode(np.array([1, np.inf, -65520], np.float32), "F32", TensorType.F16)


@pytest.mark.parametrize("kind", ["BF16", "Q8_0"])
def test_equals_the_package(kind: str) -> None:
    values = _difficult()
    values = np.concatenate([values, np.zeros(64, np.float32)])
    values = np.random.default_rng(1).permutation(values)[: len(values) // 32 * 32].reshape(-1, 32)
    theirs = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(encode(values, "F32", TensorType[kind]), theirs.view(np.uint8).reshape(-1))


def test_bfloat16_that_is_no_number_stays_none() -> None:
    values = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0x7F800000, 0x7F7FFFFF], np.uint32).view(np.float32)
    stored = encode(values, "F32", TensorType.BF16).view(np.uint16)
    assert list(np.isnan(to_float32(stored, "BF16"))) == [True, True, True, False, False]
    assert np.isinf(to_float32(stored, "BF16")[3:]).all()


@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 7),
    columns=st.integers(1, 9),
    source=st.sampled_from(["F32", "F16", "BF16"]),
)
@settings(max_examples=40, deadline=None)
def test_any_source_and_shape(seed: int, rows: int, columns: int, source: str) -> None:
    random = np.random.default_rng(seed)
    exact = (random.standard_normal((rows, 32 * columns)) * 10.0 ** random.integers(-6, 4)).astype(np.float32)
    stored = {
        "F32": exact,
        "F16": exact.astype("<f2"),
        "BF16": (exact.view(np.uint32) >> 16).astype("<u2"),
    }[source]
    values = to_float32(stored, source)
    for target in (TensorType.F32, TensorType.F16, TensorType.BF16, TensorType.Q8_0):
        data = encode(stored, source, target).reshape(rows, -1)
        theirs = gguf.quants.quantize(values, gguf.GGMLQuantizationType(int(target)))
        assert np.array_equal(data, theirs.view(np.uint8).reshape(rows, -1)), target


@pytest.mark.parametrize("kind", [TensorType.TQ1_0, TensorType.TQ2_0])
@given(seed=st.integers(0, 2**32), scale=st.floats(2.0**-14, 1000))
@settings(max_examples=30, deadline=None)
def test_ternary_values_come_back(kind: TensorType, seed: int, scale: float) -> None:
    scale = float(np.float16(scale))
    digits = np.random.default_rng(seed).integers(-1, 2, (3, 512))
    digits[1, :256] = 0
    values = (digits * scale).astype(np.float32)
    data = encode(values, "F32", kind).reshape(3, -1)
    assert np.array_equal(decode(data, kind), values)
    assert np.array_equal(data, gguf.quants.quantize(values, gguf.GGMLQuantizationType(int(kind))))


def test_what_is_not_ternary_is_an_error() -> None:
    with pytest.raises(EncodeError, match="is not ternary"):
        encode(np.linspace(-1, 1, 256, dtype=np.float32), "F32", TensorType.TQ2_0)
