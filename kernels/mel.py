"""Log-mel spectra of overlapping frames of sound, as Whisper reads them (Radford et al. 2022).

A frame is 400 samples under a Hann window; its 201 powers are weighted into mel bands, of which the logarithms (base
10) are taken. Variants: ``logarithms``, and ``scale``, which raises them to within 8 of the largest and maps them to
about -1 .. 1.

The Fourier transform is a product with cosines and sines. The window and the waves are symmetric, so that samples are
first added to, and subtracted from, their mirror images at 400 - n and at 200 - n; what remains are four sums of 101
terms, for the even and the odd frequencies, cosine and sine. Eight frames share each load of the waves.
"""

from __future__ import annotations

import numpy as np

from edgellm.kernels.memory import (
    broadcast_float,
    float_at,
    get,
    int32_at,
    int64_at,
    load_floats,
    set_float,
    store_floats,
)
from edgellm.kernels.simd import helper, logarithm, max_lanes, maximum, multiply_add, share, splat_float
from edgellm.kernels.sound_records import MEL as F

FRAME, HOP, HALF = 400, 160, 200
TILE = 8
TERMS = 101
BINS = 112  # even or odd frequencies, padded to 16
VECTORS = BINS // 16
_FOLDED = 4 * 104 * 4  # bytes of a frame's four sums: even cosine and sine, odd cosine and sine
_POWERS = TILE * _FOLDED
_POWER_BYTES = 2 * BINS * 4
SCRATCH_BYTES = _POWERS + TILE * _POWER_BYTES
_FLOOR = -10.0

VARIANTS = ("logarithms", "scale")


@helper
def _fold(samples, window, folded):
    """One frame to its four sums of terms."""
    for n in range(HALF // 2 + 1):
        mirror = HALF - n
        weight, other = float_at(window + 4 * n), float_at(window + 4 * mirror)
        a = weight * float_at(samples + 4 * n)
        b = weight * float_at(samples + 4 * ((FRAME - n) % FRAME))
        c = other * float_at(samples + 4 * mirror)
        d = other * float_at(samples + 4 * (FRAME - mirror))
        even, odd = a + b, a - b
        even_mirror, odd_mirror = c + d, c - d
        if n == 0:
            even, even_mirror = a, c  # each is its own mirror image
        if n == HALF // 2:
            even_mirror, odd_mirror = np.float32(0.0), np.float32(0.0)
        set_float(folded + 4 * n, even + even_mirror)
        set_float(folded + 4 * (104 + n), odd - odd_mirror)
        set_float(folded + 4 * (208 + n), even - even_mirror)
        set_float(folded + 4 * (312 + n), odd + odd_mirror)


@helper
def _power(cosine, sine, place):
    store_floats(place, multiply_add(cosine, cosine, sine * sine))


@helper
def _transform(folded, waves, powers):
    """Powers of 16 frequencies of eight frames."""
    c0 = c1 = c2 = c3 = c4 = c5 = c6 = c7 = splat_float(0.0)
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = splat_float(0.0)
    for n in range(TERMS):
        cosine, sine = load_floats(waves + 128 * n), load_floats(waves + 128 * n + 64)
        x = folded + 4 * n
        y = x + 4 * 104
        c0 = multiply_add(broadcast_float(x), cosine, c0)
        s0 = multiply_add(broadcast_float(y), sine, s0)
        c1 = multiply_add(broadcast_float(x + _FOLDED), cosine, c1)
        s1 = multiply_add(broadcast_float(y + _FOLDED), sine, s1)
        c2 = multiply_add(broadcast_float(x + 2 * _FOLDED), cosine, c2)
        s2 = multiply_add(broadcast_float(y + 2 * _FOLDED), sine, s2)
        c3 = multiply_add(broadcast_float(x + 3 * _FOLDED), cosine, c3)
        s3 = multiply_add(broadcast_float(y + 3 * _FOLDED), sine, s3)
        c4 = multiply_add(broadcast_float(x + 4 * _FOLDED), cosine, c4)
        s4 = multiply_add(broadcast_float(y + 4 * _FOLDED), sine, s4)
        c5 = multiply_add(broadcast_float(x + 5 * _FOLDED), cosine, c5)
        s5 = multiply_add(broadcast_float(y + 5 * _FOLDED), sine, s5)
        c6 = multiply_add(broadcast_float(x + 6 * _FOLDED), cosine, c6)
        s6 = multiply_add(broadcast_float(y + 6 * _FOLDED), sine, s6)
        c7 = multiply_add(broadcast_float(x + 7 * _FOLDED), cosine, c7)
        s7 = multiply_add(broadcast_float(y + 7 * _FOLDED), sine, s7)
    _power(c0, s0, powers)
    _power(c1, s1, powers + _POWER_BYTES)
    _power(c2, s2, powers + 2 * _POWER_BYTES)
    _power(c3, s3, powers + 3 * _POWER_BYTES)
    _power(c4, s4, powers + 4 * _POWER_BYTES)
    _power(c5, s5, powers + 5 * _POWER_BYTES)
    _power(c6, s6, powers + 6 * _POWER_BYTES)
    _power(c7, s7, powers + 7 * _POWER_BYTES)


@helper
def _bands(record, powers, group):
    """16 mel bands of one frame: logarithms."""
    filters = get(record, F.filters) + group * 2 * BINS * 64
    ranges = get(record, F.ranges) + 16 * group
    total = splat_float(0.0)
    for part in range(2):
        for bin in range(int32_at(ranges + 8 * part), int32_at(ranges + 8 * part + 4)):
            total = multiply_add(broadcast_float(powers + 4 * bin), load_floats(filters + 64 * bin), total)
    return logarithm(maximum(total, splat_float(1e-10))) * splat_float(0.4342944819032518)


def _logarithms():
    def logarithms(record, thread, threads):
        frames, groups = int64_at(get(record, F.frames)), get(record, F.groups)
        scratch = get(record, F.scratch) + thread * get(record, F.scratch_stride)
        peak = splat_float(_FLOOR)
        tiles = -(-frames // TILE)
        first, end = share(tiles, thread, threads)
        for tile in range(first, end):
            start = min(tile * TILE, max(frames - TILE, 0))  # the last tile repeats some frames
            for number in range(TILE):
                frame = min(start + number, frames - 1)
                _fold(get(record, F.samples) + 4 * HOP * frame, get(record, F.window), scratch + number * _FOLDED)
            for parity in range(2):
                for vector in range(VECTORS):
                    waves = get(record, F.waves) + (parity * VECTORS + vector) * TERMS * 128
                    powers = scratch + _POWERS + 4 * (parity * BINS + 16 * vector)
                    _transform(scratch + parity * 4 * 208, waves, powers)
            for number in range(min(TILE, frames)):
                output = get(record, F.output) + (start + number) * get(record, F.output_stride)
                for group in range(groups):
                    value = _bands(record, scratch + _POWERS + number * _POWER_BYTES, group)
                    store_floats(output + 64 * group, value)
                    peak = maximum(value, peak)
        set_float(get(record, F.peaks) + 64 * thread, max_lanes(peak))

    return logarithms


def _scale():
    def scale(record, thread, threads):
        frames, groups = int64_at(get(record, F.frames)), get(record, F.groups)
        peak = float_at(get(record, F.peaks))
        for other in range(1, threads):
            peak = max(peak, float_at(get(record, F.peaks) + 64 * other))
        low = splat_float(peak - 8.0)
        first, end = share(frames, thread, threads)
        for frame in range(first, end):
            output = get(record, F.output) + frame * get(record, F.output_stride)
            for group in range(groups):
                place = output + 64 * group
                value = maximum(load_floats(place), low)
                store_floats(place, (value + splat_float(4.0)) * splat_float(0.25))

    return scale


def kernel(variant):
    """The kernel of one step."""
    return _logarithms() if variant == "logarithms" else _scale()
