"""Densely connected layers over time with context-aware masks, with codes of 8 bits (the network of CAM++).

A layer takes all channels so far: scaled, shifted and rectified, they are rounded to 0..255, with a step of their own
for each moment. A product with int8 weights, a bias and perhaps another rectification follow. A layer with a mask goes
on: it rounds all it has with one step, weighs each moment and those ``dilation`` before and after with int8 weights,
and multiplies the result by a mask made of the mean over time. What it gives is put behind the channels so far.

Products with codes are exact. Of moments that do not fill a group of four the last one is computed again.
"""

from __future__ import annotations

from edgellm.kernels.lstm import GROUP, VECTOR, multiply, of_four
from edgellm.kernels.memory import (
    broadcast_float,
    broadcast_int,
    float_at,
    get,
    load_floats,
    load_ints,
    set_float,
    store_bytes,
    store_floats,
)
from edgellm.kernels.products import dot4
from edgellm.kernels.simd import (
    exponential,
    helper,
    max_lanes,
    maximum,
    multiply_add,
    round_to_ints,
    splat_float,
    splat_int,
    to_floats,
)
from edgellm.kernels.sound_records import DENSE as F
from edgellm.kernels.sound_records import DENSE_LAYER as L

VARIANTS = ("int8",)
LARGEST = 255.0
_HIDDEN, _MASK = 64, 32


@helper
def _step_of(largest):
    """The step between codes, and its inverse; none if all is zero."""
    if largest > 0.0:
        return largest / LARGEST, LARGEST / largest
    return largest, largest


@helper
def _round_row(source, factors, shifts, channels, values, codes):
    """The codes of one moment's channels, scaled, shifted and rectified; returns their step."""
    zero = splat_float(0.0)
    most = zero
    for channel in range(0, 4 * channels, VECTOR):
        value = multiply_add(
            load_floats(source + channel), load_floats(factors + channel), load_floats(shifts + channel)
        )
        value = maximum(value, zero)
        store_floats(values + channel, value)
        most = maximum(value, most)
    step, inverse = _step_of(max_lanes(most))
    scale = splat_float(inverse)
    for channel in range(0, channels, 16):
        store_bytes(codes + channel, round_to_ints(load_floats(values + 4 * channel) * scale))
    return step


@helper
def _store(total, step, scales, bias, rectify, output):
    value = multiply_add(to_floats(total), load_floats(scales) * splat_float(step), load_floats(bias))
    if rectify:
        value = maximum(value, splat_float(0.0))
    store_floats(output, value)


@helper
def _store_row(totals, step, scales, bias, rectify, output):
    for number in range(4):
        place = number * VECTOR
        _store(totals[number], step, scales + place, bias + place, rectify, output + place)


@helper
def _pointwise(layer, scratch, steps):
    """The first half of a layer: 64 outputs for four moments at a time."""
    channels, stride = get(layer, L.channels), get(layer, L.output_stride)
    values, codes = scratch + get(layer, L.values), scratch + get(layer, L.codes)
    scales_of_rows = scratch + get(layer, L.steps)
    for row in range(steps):
        source = scratch + get(layer, L.input) + row * get(layer, L.input_stride)
        step = _round_row(source, get(layer, L.factors), get(layer, L.shifts), channels, values, codes + row * channels)
        set_float(scales_of_rows + 4 * row, step)
    zero = splat_int(0)
    none = (zero, zero, zero, zero)
    for group in range(get(layer, L.groups)):
        weights = get(layer, L.weights) + group * channels // 4 * GROUP
        scales, bias = get(layer, L.scales) + group * GROUP, get(layer, L.bias) + group * GROUP
        for row in range(0, steps, 4):
            here = min(4, steps - row)
            totals = multiply(
                (none, none, none, none), of_four(codes + row * channels, channels, here), channels, weights
            )
            outputs = of_four(scratch + get(layer, L.output) + row * stride + group * GROUP, stride, here)
            rows = of_four(scales_of_rows + 4 * row, 4, here)
            _store_row(totals[0], float_at(rows[0]), scales, bias, get(layer, L.rectify), outputs[0])
            _store_row(totals[1], float_at(rows[1]), scales, bias, get(layer, L.rectify), outputs[1])
            _store_row(totals[2], float_at(rows[2]), scales, bias, get(layer, L.rectify), outputs[2])
            _store_row(totals[3], float_at(rows[3]), scales, bias, get(layer, L.rectify), outputs[3])


@helper
def _product(vector, width, matrix, outputs, bias, place):
    """16 outputs from ``place`` on of a matrix (width, outputs) times a vector, and a bias."""
    total = load_floats(bias + 4 * place)
    for number in range(width):
        total = multiply_add(
            broadcast_float(vector + 4 * number), load_floats(matrix + 4 * (number * outputs + place)), total
        )
    return total


@helper
def _mask(layer, scratch, steps):
    """The mask of a layer: 32 factors from 0 to 1; returns the largest of the outputs that it is made of."""
    width = get(layer, L.groups) * 64
    mean, hidden, mask = (
        scratch + get(layer, L.values),
        scratch + get(layer, L.values) + 4096,
        scratch + get(layer, L.mask),
    )
    most = splat_float(0.0)
    for channel in range(0, width, 16):
        total = splat_float(0.0)
        for row in range(steps):
            value = load_floats(scratch + get(layer, L.output) + row * get(layer, L.output_stride) + 4 * channel)
            total = total + value
            most = maximum(value, most)
        store_floats(mean + 4 * channel, total / splat_float(float(steps)))
    for place in range(0, _HIDDEN, 16):
        value = _product(mean, width, get(layer, L.narrow), _HIDDEN, get(layer, L.narrow_bias), place)
        store_floats(hidden + 4 * place, maximum(value, splat_float(0.0)))
    one = splat_float(1.0)
    for place in range(0, _MASK, 16):
        value = _product(hidden, _HIDDEN, get(layer, L.wide), _MASK, get(layer, L.wide_bias), place)
        store_floats(mask + 4 * place, one / (one + exponential(splat_float(0.0) - value)))
    return max_lanes(most)


@helper
def _pairs(totals, codes, count, weights):
    """As `multiply`, of two vectors of outputs instead of four."""
    a0, a1, b0, b1, c0, c1, d0, d1 = totals
    for place in range(0, count, 4):
        w0, w1 = load_ints(weights), load_ints(weights + VECTOR)
        a, b = broadcast_int(codes[0] + place), broadcast_int(codes[1] + place)
        c, d = broadcast_int(codes[2] + place), broadcast_int(codes[3] + place)
        a0, a1, b0, b1 = dot4(a0, a, w0), dot4(a1, a, w1), dot4(b0, b, w0), dot4(b1, b, w1)
        c0, c1, d0, d1 = dot4(c0, c, w0), dot4(c1, c, w1), dot4(d0, d, w0), dot4(d1, d, w1)
        weights += 2 * VECTOR
    return a0, a1, b0, b1, c0, c1, d0, d1


@helper
def _masked(low, high, step, layer, mask, target):
    scale, scales = splat_float(step), get(layer, L.local_scales)
    store_floats(target, to_floats(low) * (load_floats(scales) * scale) * load_floats(mask))
    high_scale = load_floats(scales + VECTOR) * scale
    store_floats(target + VECTOR, to_floats(high) * high_scale * load_floats(mask + VECTOR))


@helper
def _local(layer, scratch, steps):
    """The second half of a layer."""
    width, dilation = get(layer, L.groups) * 64, get(layer, L.dilation)
    step, inverse = _step_of(_mask(layer, scratch, steps))
    scale, padded = splat_float(inverse), scratch + get(layer, L.padded)
    for row in range(dilation):
        for channel in range(0, width, 16):
            store_bytes(padded + row * width + channel, splat_int(0))
            store_bytes(padded + (dilation + steps + row) * width + channel, splat_int(0))
    for row in range(steps):
        source = scratch + get(layer, L.output) + row * get(layer, L.output_stride)
        for channel in range(0, width, 16):
            value = round_to_ints(load_floats(source + 4 * channel) * scale)
            store_bytes(padded + (dilation + row) * width + channel, value)
    zero, mask = splat_int(0), scratch + get(layer, L.mask)
    stride = get(layer, L.input_stride)
    for row in range(0, steps, 4):
        here = min(4, steps - row)
        totals = (zero, zero, zero, zero, zero, zero, zero, zero)
        for neighbour in range(3):
            codes = of_four(padded + (row + neighbour * dilation) * width, width, here)
            totals = _pairs(totals, codes, width, get(layer, L.local) + neighbour * width // 4 * 2 * VECTOR)
        targets = of_four(scratch + get(layer, L.input) + 4 * get(layer, L.channels) + row * stride, stride, here)
        _masked(totals[0], totals[1], step, layer, mask, targets[0])
        _masked(totals[2], totals[3], step, layer, mask, targets[1])
        _masked(totals[4], totals[5], step, layer, mask, targets[2])
        _masked(totals[6], totals[7], step, layer, mask, targets[3])


def kernel(variant):
    """The only variant, ``int8``; one thread does it all."""

    def dense(record, thread, threads):
        if thread == 0:
            scratch, steps = get(record, F.scratch), get(record, F.steps)
            for number in range(get(record, F.layers)):
                layer = get(record, F.table) + number * get(record, F.layer_bytes)
                _pointwise(layer, scratch, steps)
                if get(layer, L.dilation):
                    _local(layer, scratch, steps)

    return dense
