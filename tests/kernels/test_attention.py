"""The paged cache and attention over it, against their definitions in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import SENTINEL, UNIT, Record, gamma, load_kernels, outlined
from numpy.typing import NDArray

from edgellm.graph import CacheLayer
from edgellm.kernels.attention_layout import scratch_bytes
from edgellm.kernels.records import ATTENTION, CACHE
from edgellm.platforms.batch import BLOCK_TOKENS
from edgellm.platforms.cpu_cache import BlockLayout

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]
HALF_UNIT = 2.0**-11  # largest relative error of rounding to half precision
HALF_TINY = 2.0**-25  # and the largest absolute one below its normal numbers
# One software or hardware way to half precision each, and vectors of 4 or 16 lanes; the rest is the same code.
TIERS = ("plain", "native")
EXPONENTIAL = 1.7e-7 + UNIT  # relative error of the kernels' e^x, see test_elementwise.py
NO_WEIGHT = float(np.exp(-87.3))  # the least e^x that the kernels return


@dataclass
class PagedLayer:
    """One layer's cache whose memory was full of NaN before anything was stored."""

    tier: str
    kind: str
    layer: CacheLayer
    blocks: int

    def __post_init__(self) -> None:
        self.layout = BlockLayout.of(self.layer, self.kind.removesuffix("_latent"))
        whole = np.full(self.layout.block_bytes * self.blocks + 128, 0xFF, np.uint8)
        start = -whole.ctypes.data % 64
        self.memory = whole[start : start + self.layout.block_bytes * self.blocks]

    @property
    def _fields(self) -> dict[str, Any]:
        layout = self.layout
        return {
            "heads": self.layer.kv_heads, "key_width": layout.key_width, "value_width": layout.value_width,
            "cache": self.memory, "block_bytes": layout.block_bytes, "head_key_bytes": layout.head_key_bytes,
            "head_value_bytes": layout.head_value_bytes, "values_offset": layout.values_offset,
        }  # fmt: skip

    def store(self, keys: Floats, values: Floats, slots: list[int], threads: int = 1) -> None:
        """Keys (rows, heads, width) and values; slot: block * 32 + place in the block."""
        rows = len(slots)
        flat_keys, flat_values = (np.ascontiguousarray(part.reshape(rows, -1)) for part in (keys, values))
        record = Record(
            CACHE, rows=np.array([rows]), keys=flat_keys, keys_stride=flat_keys.strides[0], values=flat_values,
            values_stride=flat_values.strides[0], slots=np.array(slots, np.int32), **self._fields,
        )  # fmt: skip
        load_kernels(self.tier).call(f"cache.{self.kind}", record, threads)

    def stored(self, slot: int) -> tuple[Doubles, Doubles]:
        """Keys (heads, width) and values of one token, as the layout in ``edgellm.kernels.cache`` says."""
        layout, place = self.layout, slot % BLOCK_TOKENS
        first = slot // BLOCK_TOKENS * layout.block_bytes
        block = self.memory[first : first + layout.block_bytes]
        keys, values = [], []
        for head in range(self.layer.kv_heads):
            part = block[head * layout.head_key_bytes :][: layout.head_key_bytes]
            start = layout.values_offset + head * layout.head_value_bytes
            value_part = block[start : start + layout.head_value_bytes]
            if self.layer.values_in_keys:
                row = self._row(part, layout.key_width, place)
                keys.append(row)
                values.append(row[: layout.value_width])
            elif self.kind == "f32":
                keys.append(part.view(np.float32).reshape(-1, BLOCK_TOKENS)[:, place])
                values.append(self._row(value_part, layout.value_width, place))
            elif self.kind == "f16":
                keys.append(part.view(np.float16).reshape(-1, BLOCK_TOKENS)[:, place])
                values.append(self._row(value_part, layout.value_width, place))
            else:
                codes, scales = np.split(part, [BLOCK_TOKENS * layout.key_width])
                scale = scales.view(np.float16).reshape(-1, BLOCK_TOKENS)[:, place].astype(np.float64)
                keys.append(self._product(codes.view(np.int8).reshape(-1, BLOCK_TOKENS)[:, place], scale))
                values.append(self._row(value_part, layout.value_width, place))
        return np.array(keys, np.float64), np.array(values, np.float64)

    def _row(self, part: NDArray[np.uint8], width: int, place: int) -> Doubles:
        """One token's numbers where they lie as rows."""
        if not self.kind.startswith("q8_0"):
            number = np.float16 if self.kind.startswith("f16") else np.float32
            return part.view(number).reshape(BLOCK_TOKENS, -1)[place, :width].astype(np.float64)
        codes, scales = np.split(part, [BLOCK_TOKENS * width])
        scale = scales.view(np.float16).reshape(BLOCK_TOKENS, -1)[place].astype(np.float64)
        return self._product(codes.view(np.int8).reshape(BLOCK_TOKENS, -1)[place], scale)

    @staticmethod
    def _product(codes: NDArray[np.int8], scales: Doubles) -> Doubles:
        with np.errstate(invalid="ignore"):
            return codes * np.repeat(scales, 32)

    def attend(
        self, queries: Floats, positions: list[int], sequences: list[int], tables: NDArray[np.int32], scale: float,
        *, window: int = 0, cap: float = 0.0, sinks: Floats | None = None, threads: int = 1,
    ) -> Floats:  # fmt: skip
        """Queries (rows, query heads, key width) -> (rows, query heads, value width)."""
        rows, heads, _ = queries.shape
        flat = queries.reshape(rows, -1)
        output, untouched = outlined(rows, heads * self.layout.value_width)
        scratch, scratch_untouched = outlined(threads, scratch_bytes(self.layout.value_width) // 4)
        record = Record(
            ATTENTION, rows=np.array([rows]), group=heads // self.layer.kv_heads, queries=flat,
            queries_stride=flat.strides[0], output=output, output_stride=output.strides[0],
            positions=np.array(positions, np.int32), sequences=np.array(sequences, np.int32), tables=tables,
            tables_stride=np.array([tables.strides[0]]), window=window, constants=np.array([scale, cap], np.float32),
            sinks=0 if sinks is None else sinks, scratch=scratch, scratch_stride=scratch.strides[0], **self._fields,
        )  # fmt: skip
        load_kernels(self.tier).call(f"attention.{self.kind}", record, threads)
        assert untouched()
        assert scratch_untouched()
        return output.reshape(rows, heads, -1)


# Storing


@pytest.mark.parametrize("tier", TIERS)
@settings(deadline=None, max_examples=60)
@given(
    key_width=st.sampled_from([1, 8, 20, 64, 80]),
    value_width=st.sampled_from([1, 8, 20, 32, 80]),
    heads=st.integers(1, 3),
    rows=st.integers(1, 5),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_half_precision_is_stored_bit_for_bit(
    tier: str, key_width: int, value_width: int, heads: int, rows: int, threads: int, seed: int
) -> None:
    """Every float32, denormal, infinite or none, becomes the half that NumPy rounds it to."""
    generator = np.random.default_rng(seed)
    cache = PagedLayer(tier, "f16", CacheLayer(heads, key_width, value_width), 3)
    bits = generator.integers(0, 1 << 32, (rows, heads, key_width + value_width), dtype=np.uint32)
    near = generator.integers(0x33000000 - (1 << 20), 0x47800000 + (1 << 20), bits.shape, dtype=np.uint32)
    numbers = np.where(generator.random(bits.shape) < 0.1, bits, near | (bits & 0x80000000)).view(np.float32)
    keys, values = numbers[..., :key_width], numbers[..., key_width:]
    slots = generator.choice(3 * BLOCK_TOKENS, rows, replace=False).tolist()
    before = cache.memory.copy()
    cache.store(keys, values, slots, threads)
    with np.errstate(over="ignore"):
        expected_keys, expected_values = keys.astype(np.float16), values.astype(np.float16)
    for row, slot in enumerate(slots):
        got_keys, got_values = cache.stored(slot)
        assert np.array_equal(got_keys, expected_keys[row].astype(np.float64), equal_nan=True)
        assert np.array_equal(got_values, expected_values[row].astype(np.float64), equal_nan=True)
    changed = np.count_nonzero((cache.memory != before).reshape(-1, 2).any(axis=1))
    assert changed <= rows * heads * (key_width + value_width)  # nothing else was written


@pytest.mark.parametrize("tier", TIERS)
@settings(deadline=None, max_examples=60)
@given(
    key_blocks=st.integers(1, 3),
    value_blocks=st.integers(1, 3),
    heads=st.integers(1, 3),
    rows=st.integers(1, 4),
    magnitude=st.sampled_from([0.0, 1e-40, 1e-6, 1e-3, 1.0, 1e3, 1e5]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_codes_of_the_q8_0_cache(
    tier: str, key_blocks: int, value_blocks: int, heads: int, rows: int, magnitude: float, threads: int, seed: int
) -> None:
    """A code is off by a half, and what it is multiplied by is a scale rounded to half precision."""
    generator = np.random.default_rng(seed)
    cache = PagedLayer(tier, "q8_0", CacheLayer(heads, 32 * key_blocks, 32 * value_blocks), 2)
    numbers = generator.standard_normal((rows, heads, 32 * (key_blocks + value_blocks))) * magnitude
    numbers[generator.random(numbers.shape) < 0.01] *= 5
    numbers = numbers.astype(np.float32)
    slots = generator.choice(2 * BLOCK_TOKENS, rows, replace=False).tolist()
    cache.store(numbers[..., : 32 * key_blocks], numbers[..., 32 * key_blocks :], slots, threads)
    peaks = np.abs(numbers.astype(np.float64)).reshape(rows, heads, -1, 32).max(axis=3)
    error = peaks / 127 * (0.5 + 127 * 4 * UNIT) + peaks * HALF_UNIT + 127 * HALF_TINY
    for row, slot in enumerate(slots):
        got = np.concatenate(cache.stored(slot), axis=1)
        assert (np.abs(got - numbers[row]) <= np.repeat(error[row], 32, axis=1)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e9])
@pytest.mark.parametrize("tier", TIERS)
def test_the_q8_0_cache_does_not_turn_what_it_cannot_hold_into_a_number(tier: str, bad: float) -> None:
    for column in (0, 15, 16, 31):
        cache = PagedLayer(tier, "q8_0", CacheLayer(1, 64, 64), 1)
        numbers = np.ones((1, 1, 64), np.float32)
        numbers[..., column] = bad
        cache.store(numbers, numbers, [7])
        for got in cache.stored(7):
            assert not np.isfinite(got[0, column])
            assert np.isfinite(got[0, 32:]).all()


@pytest.mark.parametrize("kind", ["f32", "f16_latent", "q8_0_latent", "f32_latent"])
@pytest.mark.parametrize("tier", TIERS)
@settings(deadline=None, max_examples=30)
@given(
    widths=st.sampled_from([(1, 1), (20, 16), (64, 64), (36, 20), (96, 64)]),
    heads=st.integers(1, 3),
    rows=st.integers(1, 5),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_other_layouts_hold_what_the_plain_ones_hold(
    tier: str, kind: str, widths: tuple[int, int], heads: int, rows: int, threads: int, seed: int
) -> None:
    """A latent's row is that of a value in an ordinary cache; float32 stays as it is."""
    generator = np.random.default_rng(seed)
    plain, latent = kind.removesuffix("_latent"), kind.endswith("_latent")
    key_width, value_width = (-(-width // 32) * 32 for width in widths) if plain == "q8_0" else widths
    cache = PagedLayer(tier, kind, CacheLayer(heads, key_width, value_width, values_in_keys=latent), 2)
    keys = generator.standard_normal((rows, heads, key_width)).astype(np.float32)
    values = generator.standard_normal((rows, heads, value_width)).astype(np.float32)
    slots = generator.choice(2 * BLOCK_TOKENS, rows, replace=False).tolist()
    cache.store(keys, values, slots, threads)
    expected = keys.astype(np.float64), values.astype(np.float64)
    if latent:
        other = PagedLayer(tier, plain, CacheLayer(heads, key_width, key_width), 2)
        other.store(keys, keys, slots)
        stored = np.array([other.stored(slot)[1] for slot in slots])
        expected = stored, stored[..., :value_width]
    for row, slot in enumerate(slots):
        got = cache.stored(slot)
        assert np.array_equal(got[0], expected[0][row])
        assert np.array_equal(got[1], expected[1][row])


# Attending


def exact(
    q: Doubles, k: Doubles, v: Doubles, scale: float, cap: float, sinks: Doubles | None
) -> tuple[Doubles, Doubles]:
    """One row: q (heads, width), what it sees: k (tokens, heads, width), v. The result and its error.

    A score is a sum of products, multiplied by the scale and capped (see test_elementwise.py), and the running maximum
    is taken from it: an error of ``score`` altogether. So a weight's relative error is that of e^(score +- error), and
    of the factors that follow it at later blocks. The sum of weighted values and the sum of weights add up at most one
    rounding per token and per block. Weights below e^-87.3, and those of tokens that this row does not see but others
    do, are not smaller than that.
    """
    tokens, width = len(k), q.shape[1]
    blocks = tokens // BLOCK_TOKENS + 2
    raw = np.einsum("hw,thw->ht", q, k) * scale
    size = np.einsum("hw,thw->ht", np.abs(q), np.abs(k)) * abs(scale)
    score = gamma(width + 2) * size
    if cap:
        score = score + cap * (EXPONENTIAL / 2 + 6 * UNIT)
        raw = cap * np.tanh(raw / cap)
    peak = raw.max(axis=1, keepdims=True)
    if sinks is not None:
        peak = np.maximum(peak, sinks[:, None])
    weights = np.exp(raw - peak)
    total = weights.sum(axis=1) + (0 if sinks is None else np.exp(sinks - peak[:, 0]))
    result = np.einsum("ht,thv->hv", weights, v) / total[:, None]
    largest = np.abs(raw).max(axis=1) + np.abs(peak[:, 0])
    relative = np.expm1(score.max(axis=1) + UNIT * largest) + blocks * (EXPONENTIAL + UNIT) + gamma(tokens + blocks + 4)
    mixed = np.einsum("ht,thv->hv", weights, np.abs(v)) / total[:, None]
    error = 2.1 * relative[:, None] * mixed + 32 * blocks * NO_WEIGHT * (10 + np.abs(v).max())
    return result, error


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "f32_latent", "f16_latent", "q8_0_latent"])
@pytest.mark.parametrize("tier", TIERS)
@settings(deadline=None, max_examples=60)
@given(
    widths=st.sampled_from([(8, 8), (20, 20), (80, 80), (17, 5), (64, 64), (1, 33)]),
    heads=st.integers(1, 3),
    group=st.integers(1, 4),
    lengths=st.lists(st.integers(1, 100), min_size=1, max_size=3),
    rows=st.integers(1, 6),
    window=st.sampled_from([0, 0, 1, 7, 32, 33, 64]),
    cap=st.sampled_from([0.0, 0.0, 5.0]),
    with_sinks=st.booleans(),
    spread=st.sampled_from([0.3, 3.0]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_attention(
    tier: str, kind: str, widths: tuple[int, int], heads: int, group: int, lengths: list[int], rows: int, window: int,
    cap: float, with_sinks: bool, spread: float, threads: int, seed: int,
) -> None:  # fmt: skip
    """Sequences of different lengths in scattered blocks; unused slots hold NaN, which must not leak."""
    generator = np.random.default_rng(seed)
    key_width, value_width = (-(-width // 32) * 32 for width in widths) if kind.startswith("q8_0") else widths
    table_width, latent = 5, kind.endswith("_latent")
    value_width = min(value_width, key_width) if latent else value_width
    layer = CacheLayer(heads, key_width, value_width, values_in_keys=latent)
    cache = PagedLayer(tier, kind, layer, table_width * len(lengths))
    tables = generator.permutation(table_width * len(lengths)).astype(np.int32).reshape(len(lengths), table_width)
    kept: list[tuple[Doubles, Doubles]] = []
    for sequence, length in enumerate(lengths):
        slots = [int(tables[sequence, p // BLOCK_TOKENS]) * BLOCK_TOKENS + p % BLOCK_TOKENS for p in range(length)]
        keys = generator.standard_normal((length, heads, key_width)).astype(np.float32)
        values = generator.standard_normal((length, heads, value_width)).astype(np.float32)
        cache.store(keys, values, slots)
        stored = [cache.stored(slot) for slot in slots]
        kept.append((np.array([pair[0] for pair in stored]), np.array([pair[1] for pair in stored])))
    sequences = generator.integers(0, len(lengths), rows).tolist()
    positions = [int(generator.integers(0, lengths[sequence])) for sequence in sequences]
    for sequence in range(len(lengths)):  # the rows of one sequence stand in rising order
        own = [row for row in range(rows) if sequences[row] == sequence]
        for row, position in zip(own, sorted(positions[row] for row in own), strict=True):
            positions[row] = position
    queries = (spread * generator.standard_normal((rows, heads * group, key_width))).astype(np.float32)
    sinks = generator.standard_normal(heads * group).astype(np.float32) if with_sinks else None
    scale = np.float32(key_width**-0.5)
    got = cache.attend(
        queries, positions, sequences, tables, float(scale), window=window, cap=cap, sinks=sinks, threads=threads
    )
    for row, (sequence, position) in enumerate(zip(sequences, positions, strict=True)):
        first = max(0, position - window + 1) if window else 0
        k, v = (part[first : position + 1].repeat(group, axis=1) for part in kept[sequence])
        exact_sinks = None if sinks is None else sinks.astype(np.float64)
        expected, error = exact(queries[row].astype(np.float64), k, v, float(scale), cap, exact_sinks)
        assert (np.abs(got[row] - expected) <= error).all()


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "f16_latent"])
@pytest.mark.parametrize("tier", TIERS)
def test_rounding_errors_do_not_grow_with_the_context(tier: str, kind: str, rows: int) -> None:
    """The mean of thousands of equal values: each addition is rounded in the same direction for long."""
    length = 6000
    blocks = -(-length // BLOCK_TOKENS)
    cache = PagedLayer(tier, kind, CacheLayer(1, 32, 32, values_in_keys=kind.endswith("_latent")), blocks)
    values = np.random.default_rng(6).uniform(1, 2, 32).astype(np.float32)
    tokens = np.broadcast_to(values, (length, 1, 32)).copy()
    cache.store(tokens, tokens, list(range(length)))
    stored = cache.stored(0)[1][0]
    positions = list(range(length - rows, length))
    table = np.arange(blocks, dtype=np.int32)[None]
    result = cache.attend(np.zeros((rows, 1, 32), np.float32), positions, [0] * rows, table, 1.0)
    assert (np.abs(result - stored) <= gamma(BLOCK_TOKENS + 6) * stored).all()


def filled(tier: str, kind: str, length: int) -> tuple[PagedLayer, NDArray[np.int32], Floats]:
    """A cache with one sequence in rising blocks, its table, and a query."""
    generator = np.random.default_rng(3)
    cache = PagedLayer(tier, kind, CacheLayer(2, 32, 32, values_in_keys=kind.endswith("_latent")), 4)
    keys, values = generator.standard_normal((2, length, 2, 32)).astype(np.float32)
    cache.store(keys, values, list(range(length)))
    return cache, np.arange(4, dtype=np.int32)[None], generator.standard_normal((1, 4, 32)).astype(np.float32)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["key", "value", "query"])
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
@pytest.mark.parametrize("tier", TIERS)
def test_what_is_no_number_shows_in_the_result_of_its_head_and_in_no_other(
    tier: str, kind: str, part: str, bad: float
) -> None:
    for token in (0, 15, 31, 40, 69):
        cache, table, query = filled(tier, kind, 70)
        pair = np.ones((2, 1, 2, 32), np.float32)
        if part == "query":
            query[0, :2, 5] = bad
        else:
            pair[0 if part == "key" else 1, 0, 0, :] = bad * np.where(np.arange(32) % 2, 1, -1)
        cache.store(pair[0], pair[1], [token])
        result = cache.attend(query, [69], [0], table, 0.2)
        assert not np.isfinite(result[0, :2]).any()
        assert np.isfinite(result[0, 2:]).all()


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
@pytest.mark.parametrize("tier", TIERS)
def test_scores_far_apart_and_far_below_zero(tier: str, kind: str) -> None:
    """The softmax does not depend on where its scores lie; the largest score takes all."""
    cache, table, _ = filled(tier, kind, 33)
    keys = np.zeros((33, 2, 32), np.float32)
    keys[:, :, 0] = np.arange(33)[:, None]
    values = np.zeros((33, 2, 32), np.float32)
    values[:, :, :] = np.arange(33, dtype=np.float32)[:, None, None]
    cache.store(keys, values, list(range(33)))
    stored = np.array([cache.stored(slot)[1][0, 0] for slot in range(33)])
    query = np.zeros((1, 4, 32), np.float32)
    query[0, :, 0] = [1e3, -1e3, 1e30, -1e30]
    result = cache.attend(query, [32], [0], table, 1.0)
    assert result[0, :, 0] == pytest.approx(stored[[32, 0, 32, 0]], abs=1e-30)
    result = cache.attend(query, [32], [0], table, 1.0, window=5)
    assert result[0, :, 0] == pytest.approx(stored[[32, 28, 32, 28]])
    query[0, :, 0] = -3e38  # times 28 and more: below all float32
    assert np.isnan(cache.attend(query, [32], [0], table, 1.0, window=5)).all()
    query[0, :, 0] = 0
    sinks = np.array([0, 100, -100, -1e30], np.float32)
    result = cache.attend(query, [32], [0], table, 1.0, sinks=sinks)
    mean = stored.mean()
    assert result[0, :, 0] == pytest.approx([mean * 33 / 34, 0, mean, mean], rel=1e-5, abs=1e-30)


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "f16_latent", "q8_0_latent"])
def test_only_blocks_within_the_window_are_read(kind: str) -> None:
    cache, table, query = filled("native", kind, 100)
    expected = cache.attend(query, [99], [0], table, 0.2, window=20)
    cache.memory[: 2 * cache.layout.block_bytes] = SENTINEL
    table[0, :2] = 1 << 30  # given back long ago
    assert np.array_equal(cache.attend(query, [99], [0], table, 0.2, window=20), expected)


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "f16_latent", "q8_0_latent"])
def test_neither_threads_nor_other_rows_change_a_result(kind: str) -> None:
    cache, table, _ = filled("native", kind, 128)
    queries = np.random.default_rng(4).standard_normal((9, 4, 32)).astype(np.float32)
    positions, sequences = [0, 1, 5, 31, 32, 64, 99, 100, 127], [0] * 9
    expected = cache.attend(queries, positions, sequences, table, 0.2)
    for threads in (2, 3, 5):
        assert np.array_equal(cache.attend(queries, positions, sequences, table, 0.2, threads=threads), expected)
    for row, position in enumerate(positions):
        assert np.array_equal(cache.attend(queries[row : row + 1], [position], [0], table, 0.2)[0], expected[row])
