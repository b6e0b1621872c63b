"""Rotary position embeddings (Su et al. 2021): every method of scaling, as frequencies and a magnitude."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RopeTable:
    """Pair i turns by ``position * frequencies[i]`` and is multiplied by ``magnitude``.

    Pairs are neighbours (2i, 2i+1) if ``interleaved``, else lie half the rotated width apart.
    """

    frequencies: tuple[float, ...]
    interleaved: bool
    magnitude: float = 1.0

    def scaled_linearly(self, factor: float) -> RopeTable:
        """Position interpolation (Chen et al. 2023): all positions divided by ``factor``."""
        return replace(self, frequencies=tuple(frequency / factor for frequency in self.frequencies))

    def divided_by(self, divisors: NDArray[np.float32]) -> RopeTable:
        """Each frequency divided by its own number: Llama 3's bands (``llama3_divisors``) and LongRoPE come so."""
        pairs = zip(self.frequencies, divisors.tolist(), strict=True)
        return replace(self, frequencies=tuple(frequency / divisor for frequency, divisor in pairs))

    def with_magnitude(self, magnitude: float) -> RopeTable:
        """The same frequencies, with the magnitude multiplied."""
        return replace(self, magnitude=self.magnitude * magnitude)


def plain_rope(dimensions: int, base: float, interleaved: bool) -> RopeTable:
    """Unscaled: pair i of ``dimensions / 2`` has the frequency ``base ** (-2i / dimensions)``."""
    frequencies = tuple(base ** (-2.0 * pair / dimensions) for pair in range(dimensions // 2))
    return RopeTable(frequencies, interleaved)


def yarn_rope(
    table: RopeTable,
    base: float,
    factor: float,
    original_context_length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    extrapolation: float = 1.0,
    truncate: bool = True,
) -> RopeTable:
    """YaRN (Peng et al. 2023) on a plain table.

    Pairs that turn more than ``beta_fast`` times within the original context keep their frequency, those that turn
    less than ``beta_slow`` times are divided by ``factor``, with a ramp between; the magnitude is
    ``1 + 0.1 ln(factor)``. ``extrapolation`` is the share of the kept frequencies (1: the paper's method).
    ``truncate``: the ramp begins and ends at whole pairs.
    """
    dimensions = 2 * len(table.frequencies)

    def pair_turning(times: float) -> float:
        return dimensions * math.log(original_context_length / (times * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair_turning(beta_fast), pair_turning(beta_slow)
    if truncate:
        low, high = float(math.floor(low)), float(math.ceil(high))
    low, high = max(0.0, low), min(dimensions - 1.0, high)
    frequencies = []
    for pair, frequency in enumerate(table.frequencies):
        slow = min(1.0, max(0.0, (pair - low) / max(0.001, high - low)))
        kept = (1.0 - slow) * extrapolation
        frequencies.append(frequency * kept + frequency / factor * (1.0 - kept))
    magnitude = 1.0 + 0.1 * math.log(factor) if factor > 1.0 and extrapolation else 1.0
    return replace(table, frequencies=tuple(frequencies)).with_magnitude(magnitude)


def llama3_divisors(
    table: RopeTable, factor: float, low_factor: float, high_factor: float, original_context_length: int
) -> NDArray[np.float32]:
    """Llama 3's bands, as converters store them in ``rope_freqs.weight``.

    Wavelengths shorter than ``original_context_length / high_factor`` are kept, longer than
    ``original_context_length / low_factor`` divided by ``factor``, with a smooth passage between.
    """
    divisors = []
    for frequency in table.frequencies:
        turns = original_context_length * frequency / (2 * math.pi)
        kept = min(1.0, max(0.0, (turns - low_factor) / (high_factor - low_factor)))
        divisors.append(1.0 / (kept + (1.0 - kept) / factor))
    return np.array(divisors, np.float32)


def longrope_magnitude(context_length: int, original_context_length: int) -> float:
    """LongRoPE's magnitude (Ding et al. 2024): ``sqrt(1 + ln(factor) / ln(original_context_length))``."""
    factor = context_length / original_context_length
    if factor <= 1.0 or original_context_length <= 1:
        return 1.0
    return math.sqrt(1.0 + math.log(factor) / math.log(original_context_length))
