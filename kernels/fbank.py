"""Filter-bank features as Kaldi computes them: log mel energies of frames of 400 samples, 160 apart.

Sixteen frames are computed side by side, one in each lane, so that the Fourier transform has no lanes to exchange: 512
real numbers are taken as 256 complex ones, transformed in four passes of radix 4, and pulled apart (as in W. Press et
al., "Numerical Recipes", 12.3).
"""

from __future__ import annotations

from edgellm.kernels.memory import broadcast_float, copy_int32, get, int32_at, int64_at, load_floats, store_floats
from edgellm.kernels.simd import LANES, helper, logarithm, maximum, multiply_add, share, splat_float
from edgellm.kernels.sound_records import FBANK as F

FRAME, HOP, FFT = 400, 160, 512
POINTS = FFT // 2
_COMPLEX = 2 * 4 * LANES  # bytes of one complex number of every lane
_VECTOR = 4 * LANES
SCRATCH_BYTES = POINTS * _COMPLEX + FRAME * _VECTOR
PREEMPHASIS = 0.97

VARIANTS = ("kaldi",)


@helper
def _gather(samples, frames, first, columns):
    """Sample n of each frame side by side: 400 vectors."""
    for lane in range(LANES):
        source = samples + 4 * HOP * min(first + lane, frames - 1)
        for n in range(FRAME):
            copy_int32(columns + _VECTOR * n + 4 * lane, source + 4 * n)


@helper
def _prepare(columns, window, order, points):
    """Take off the mean, emphasize high frequencies, apply the window, and put the points where the transform begins.

    What lies beyond the 400 samples is zero.
    """
    total = splat_float(0.0)
    for n in range(FRAME):
        total = total + load_floats(columns + _VECTOR * n)
    mean = total * splat_float(1.0 / FRAME)
    before = load_floats(columns) - mean
    for n in range(FRAME):
        value = load_floats(columns + _VECTOR * n) - mean
        emphasized = multiply_add(before, splat_float(-PREEMPHASIS), value)
        place = points + _COMPLEX * int32_at(order + 4 * (n // 2)) + _VECTOR * (n % 2)
        store_floats(place, emphasized * broadcast_float(window + 4 * n))
        before = value
    zero = splat_float(0.0)
    for n in range(FRAME // 2, POINTS):
        place = points + _COMPLEX * int32_at(order + 4 * n)
        store_floats(place, zero)
        store_floats(place + _VECTOR, zero)


@helper
def _turn(place, factor):
    """A complex number times the factor at an address."""
    real, imaginary = load_floats(place), load_floats(place + _VECTOR)
    cosine, sine = broadcast_float(factor), broadcast_float(factor + 4)
    return real * cosine - imaginary * sine, multiply_add(real, sine, imaginary * cosine)


@helper
def _butterfly(place, apart, factors):
    """Four complex numbers ``apart`` bytes from one another; six floats at ``factors``."""
    a_real, a_imaginary = load_floats(place), load_floats(place + _VECTOR)
    b_real, b_imaginary = _turn(place + apart, factors)
    c_real, c_imaginary = _turn(place + 2 * apart, factors + 8)
    d_real, d_imaginary = _turn(place + 3 * apart, factors + 16)
    sum_real, sum_imaginary = a_real + c_real, a_imaginary + c_imaginary
    difference_real, difference_imaginary = a_real - c_real, a_imaginary - c_imaginary
    other_real, other_imaginary = b_real + d_real, b_imaginary + d_imaginary
    # (b - d) times -i
    turned_real, turned_imaginary = b_imaginary - d_imaginary, d_real - b_real
    store_floats(place, sum_real + other_real)
    store_floats(place + _VECTOR, sum_imaginary + other_imaginary)
    store_floats(place + apart, difference_real + turned_real)
    store_floats(place + apart + _VECTOR, difference_imaginary + turned_imaginary)
    store_floats(place + 2 * apart, sum_real - other_real)
    store_floats(place + 2 * apart + _VECTOR, sum_imaginary - other_imaginary)
    store_floats(place + 3 * apart, difference_real - turned_real)
    store_floats(place + 3 * apart + _VECTOR, difference_imaginary - turned_imaginary)


@helper
def _transform(points, factors):
    """256 complex points in place, which lie in the order of their reversed digits to base 4."""
    span = 1
    while span < POINTS:
        for group in range(0, POINTS, 4 * span):
            for number in range(span):
                _butterfly(points + _COMPLEX * (group + number), _COMPLEX * span, factors + 24 * number)
        factors += 24 * span
        span *= 4


@helper
def _powers(points, halves, powers):
    """Powers of the 256 lower frequencies of the real transform; ``halves`` has the cosine and sine of each."""
    half = splat_float(0.5)
    for k in range(POINTS):
        place, mirror = points + _COMPLEX * k, points + _COMPLEX * ((POINTS - k) % POINTS)
        a_real, a_imaginary = load_floats(place), load_floats(place + _VECTOR)
        b_real, b_imaginary = load_floats(mirror), load_floats(mirror + _VECTOR)
        even_real, even_imaginary = (a_real + b_real) * half, (a_imaginary - b_imaginary) * half
        odd_real, odd_imaginary = (a_imaginary + b_imaginary) * half, (b_real - a_real) * half
        cosine, sine = broadcast_float(halves + 8 * k), broadcast_float(halves + 8 * k + 4)
        real = even_real + (odd_real * cosine - odd_imaginary * sine)
        imaginary = even_imaginary + multiply_add(odd_real, sine, odd_imaginary * cosine)
        store_floats(powers + _VECTOR * k, multiply_add(real, real, imaginary * imaginary))


@helper
def _bands(record, powers, place, first, frames):
    """Logarithms of the filters' energies, a row for each frame; ``place`` is room for one vector."""
    for band in range(get(record, F.bands)):
        weights = get(record, F.filters) + 4 * POINTS * band
        ranges = get(record, F.ranges) + 8 * band
        total = splat_float(0.0)
        for k in range(int32_at(ranges), int32_at(ranges + 4)):
            total = multiply_add(broadcast_float(weights + 4 * k), load_floats(powers + _VECTOR * k), total)
        store_floats(place, logarithm(maximum(total, splat_float(1.1920928955078125e-07))))
        output = get(record, F.output) + 4 * band + first * get(record, F.output_stride)
        for lane in range(min(LANES, frames - first)):
            copy_int32(output + lane * get(record, F.output_stride), place + 4 * lane)


def kernel(variant):
    """The only variant, ``kaldi``."""

    def fbank(record, thread, threads):
        frames = int64_at(get(record, F.frames))
        points = get(record, F.scratch) + thread * get(record, F.scratch_stride)
        columns = points + POINTS * _COMPLEX
        first, end = share(-(-frames // LANES), thread, threads)
        for tile in range(first, end):
            start = LANES * tile
            _gather(get(record, F.samples), frames, start, columns)
            _prepare(columns, get(record, F.window), get(record, F.order), points)
            _transform(points, get(record, F.factors))
            _powers(points, get(record, F.halves), columns)
            _bands(record, columns, points, start, frames)

    return fbank
