"""Write keys and values of a step into the paged cache.

A block of 32 tokens holds, per key/value head, first the keys of all heads and then the values:

- keys transposed, (key_width, 32 tokens): 16 tokens are the lanes of a vector when scores are computed;
- values as rows, (32 tokens, value_width padded to 16).

Variants: ``f32``, ``f16``; ``q8_0``: int8 codes with one half-precision scale per 32 values of a token, all scales of a
part behind all its codes: keys (key_width / 32, 32 tokens), values (32 tokens, value_width / 32).

With ``_latent`` behind it, a variant stores keys alone, as rows like values: their first numbers are the values too.
"""

from __future__ import annotations

from edgellm.kernels.attention_layout import BLOCK_TOKENS
from edgellm.kernels.memory import (
    float_at,
    get,
    int32_at,
    int64_at,
    load_floats,
    set_byte,
    set_float,
    set_half,
    store_bytes,
)
from edgellm.kernels.records import CACHE as F
from edgellm.kernels.simd import absolute, helper, max_lanes, maximum, round_to_ints, share, splat_float, sum_lanes


@helper
def _key_floats(source, target, slot, width):
    for column in range(width):
        set_float(target + 128 * column + 4 * slot, float_at(source + 4 * column))


@helper
def _value_floats(source, target, slot, width):
    row = target + slot * 4 * (-(-width // 16) * 16)
    for column in range(width):
        set_float(row + 4 * column, float_at(source + 4 * column))


@helper
def _key_halves(source, target, slot, width):
    for column in range(width):
        set_half(target + 64 * column + 2 * slot, float_at(source + 4 * column))


@helper
def _value_halves(source, target, slot, width):
    row = target + slot * 2 * (-(-width // 16) * 16)
    for column in range(width):
        set_half(row + 2 * column, float_at(source + 4 * column))


@helper
def _block_scale(source):
    """NaN if a value is not finite, so that it is seen in the result and not taken for a number."""
    low, high = load_floats(source), load_floats(source + 64)
    return max_lanes(maximum(absolute(low), absolute(high))) / 127.0 + sum_lanes((low - low) + (high - high))


@helper
def _key_codes(source, target, slot, width):
    scales = target + 32 * width
    for block in range(width // 32):
        scale = _block_scale(source + 128 * block)
        set_half(scales + 64 * block + 2 * slot, scale)
        inverse = 1.0 / scale if scale > 1e-30 else 0.0
        for column in range(32 * block, 32 * block + 32):
            set_byte(target + 32 * column + slot, float_at(source + 4 * column) * inverse)


@helper
def _value_codes(source, target, slot, width):
    scales = target + 32 * width + slot * (width // 32) * 2
    row = target + slot * width
    for block in range(width // 32):
        scale = _block_scale(source + 128 * block)
        set_half(scales + 2 * block, scale)
        inverse = splat_float(1.0 / scale if scale > 1e-30 else 0.0)
        place = source + 128 * block
        store_bytes(row + 32 * block, round_to_ints(load_floats(place) * inverse))
        store_bytes(row + 32 * block + 16, round_to_ints(load_floats(place + 64) * inverse))


_STORES = {
    "f32": (_key_floats, _value_floats),
    "f16": (_key_halves, _value_halves),
    "q8_0": (_key_codes, _value_codes),
}
VARIANTS = tuple(f"{name}{latent}" for name in _STORES for latent in ("", "_latent"))


def kernel(variant):
    """The kernel that stores one layer's keys and values; (row, head) pairs are shared among the threads."""
    store_key, store_value = _STORES[variant.removesuffix("_latent")]
    latent = variant.endswith("_latent")

    def store(record, thread, threads):
        rows, heads = int64_at(get(record, F.rows)), get(record, F.heads)
        key_width, value_width = get(record, F.key_width), get(record, F.value_width)
        first, end = share(rows * heads, thread, threads)
        for item in range(first, end):
            row, head = item // heads, item % heads
            place = int32_at(get(record, F.slots) + 4 * row)
            block = get(record, F.cache) + (place // BLOCK_TOKENS) * get(record, F.block_bytes)
            slot = place % BLOCK_TOKENS
            keys = get(record, F.keys) + row * get(record, F.keys_stride) + 4 * head * key_width
            target = block + head * get(record, F.head_key_bytes)
            if latent:
                store_value(keys, target, slot, key_width)
                continue
            store_key(keys, target, slot, key_width)
            values = get(record, F.values) + row * get(record, F.values_stride) + 4 * head * value_width
            target = block + get(record, F.values_offset) + head * get(record, F.head_value_bytes)
            store_value(values, target, slot, value_width)

    return store
