"""How each type is quantized, as numbers. This module does not import Numba, so that others can use it cheaply."""

from __future__ import annotations

from dataclasses import dataclass

LARGEST_HALF = 65504.0
LANES = 16
STEPS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The values of the 16 codes of IQ4_NL and IQ4_XS (``kvalues_iq4nl`` of ggml)."""


@dataclass(frozen=True)
class Scheme:
    """How a type is quantized.

    Attributes:
        group: values that share a scale.
        groups: such groups in a block.
        block_bytes: bytes of a block.
        low, high: the smallest and largest code.
        has_minima: values are s q + m, not s q.
        multiples: the range of the multiples that groups have of one scale; None where each block has a scale alone.
        places: bytes of a block where its half-precision numbers are.
        trials, first, step: of the search, see `quantizer_search.py`.
        refinements: how often codes and scales are solved for in turn.
        by_table: codes are numbers of table entries.
    """

    group: int
    groups: int
    block_bytes: int
    low: int
    high: int
    trials: int
    first: float
    step: float
    refinements: int = 1
    has_minima: bool = False
    multiples: tuple[int, int] | None = None
    places: tuple[int, ...] = (0,)
    by_table: bool = False

    @property
    def largest(self) -> float:
        """What magnitudes may be at most, so that scale and minimum fit half precision whatever they become."""
        codes = 1 if self.has_minima else 113 if self.by_table else max(self.high, -self.low)
        return 0.7 * LARGEST_HALF * codes * (max(map(abs, self.multiples)) if self.multiples else 1)

    @property
    def chunk_blocks(self) -> int:
        """Blocks that are quantized together: 16 groups."""
        return LANES // self.groups


SCHEMES = {
    "Q4_0": Scheme(32, 1, 18, -8, 7, 19, -8.9, 0.1),
    "Q4_1": Scheme(32, 1, 20, 0, 15, 16, -1.2, 0.1, has_minima=True, places=(0, 2)),
    "Q5_0": Scheme(32, 1, 22, -16, 15, 15, -16.7, 0.1),
    "Q5_1": Scheme(32, 1, 24, 0, 31, 16, -1.2, 0.1, has_minima=True, places=(0, 2)),
    "Q8_0": Scheme(32, 1, 34, -127, 127, 20, 124.0, 0.25),
    "Q2_K": Scheme(16, 16, 84, 0, 3, 16, -0.6, 0.1, 2, True, (0, 15), (80, 82)),
    "Q3_K": Scheme(16, 16, 110, -4, 3, 19, -4.9, 0.1, 2, multiples=(-32, 31), places=(108,)),
    "Q4_K": Scheme(32, 8, 144, 0, 15, 16, -1.2, 0.1, 2, True, (0, 63), (0, 2)),
    "Q5_K": Scheme(32, 8, 176, 0, 31, 16, -1.2, 0.1, 2, True, (0, 63), (0, 2)),
    "Q6_K": Scheme(16, 16, 210, -32, 31, 15, -32.7, 0.1, 1, multiples=(-128, 127), places=(208,)),
    "IQ4_NL": Scheme(32, 1, 18, -127, 113, 15, -134.0, 2.0, by_table=True),
    "IQ4_XS": Scheme(32, 8, 136, -127, 113, 15, -134.0, 2.0, 2, multiples=(-32, 31), by_table=True),
    "TQ1_0": Scheme(256, 1, 54, -1, 1, 23, 0.6, 0.2, 2, places=(52,)),
    "TQ2_0": Scheme(256, 1, 66, -1, 1, 23, 0.6, 0.2, 2, places=(64,)),
}
