"""Rotary frequency tables: scaling methods checked by what they promise, not by their own formula."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgellm.models.rope import llama3_divisors, longrope_magnitude, plain_rope, yarn_rope


def test_plain_frequencies_fall_geometrically() -> None:
    table = plain_rope(8, 10000.0, interleaved=True)
    assert table.frequencies == pytest.approx([1.0, 0.1, 0.01, 0.001])
    assert table.interleaved and table.magnitude == 1.0


def test_linear_scaling_divides_positions() -> None:
    table = plain_rope(64, 10000.0, False)
    scaled = table.scaled_linearly(8.0)
    assert np.array(scaled.frequencies) * 8000 == pytest.approx(np.array(table.frequencies) * 1000)


def test_yarn_keeps_fast_pairs_and_divides_slow_ones() -> None:
    table = plain_rope(128, 10000.0, False)
    scaled = yarn_rope(table, 10000.0, 4.0, 4096)
    turns = 4096 * np.array(table.frequencies) / (2 * math.pi)
    ratio = np.array(scaled.frequencies) / np.array(table.frequencies)
    assert ratio[turns > 40] == pytest.approx(1.0)
    assert ratio[turns < 0.8] == pytest.approx(0.25)
    assert (np.diff(ratio) <= 1e-12).all()
    assert ratio[(turns > 2) & (turns < 16)].min() > 0.25 and ratio[(turns > 2) & (turns < 16)].max() < 1.0
    assert scaled.magnitude == pytest.approx(1 + 0.1 * math.log(4.0))


def test_yarn_without_extrapolation_is_linear_scaling() -> None:
    table = plain_rope(64, 10000.0, False)
    assert yarn_rope(table, 10000.0, 4.0, 4096, extrapolation=0.0) == table.scaled_linearly(4.0)


def test_llama3_bands() -> None:
    table = plain_rope(128, 500000.0, True)
    divisors = llama3_divisors(table, 8.0, 1.0, 4.0, 8192)
    wavelengths = 2 * math.pi / np.array(table.frequencies)
    assert divisors[wavelengths < 8192 / 4] == pytest.approx(1.0)
    assert divisors[wavelengths > 8192] == pytest.approx(8.0)
    between = divisors[(wavelengths > 8192 / 4) & (wavelengths < 8192)]
    assert len(between) and (between > 1).all() and (between < 8).all()
    assert table.divided_by(divisors).frequencies == pytest.approx(np.array(table.frequencies) / divisors)


def test_longrope_magnitude_grows_only_beyond_the_original_context() -> None:
    assert longrope_magnitude(4096, 4096) == longrope_magnitude(2048, 4096) == 1.0
    assert longrope_magnitude(131072, 4096) == pytest.approx(math.sqrt(1 + 5 / 12))


def test_tables_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        plain_rope(64, 10000.0, True).divided_by(np.ones(31, np.float32))
