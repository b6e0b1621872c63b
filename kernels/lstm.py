"""One direction of a layer of long short-term memory over several sequences, with codes of 8 bits (S. Hochreiter and
J. Schmidhuber, "Long short-term memory", Neural Computation 9, 1997).

What goes in and comes out lies between -1 and 1, so that its code is 128 + round(127 x) wherever it is. Weights are
int8, those of the input before those of the output of the step before; in their products with the codes, which are
exact, the 128 adds a constant to each gate, which belongs into ``starts``. Gates are the input's, the forgetting one,
the cell's and the output's. Weights of 16 units lie together: for four codes after four codes 16 times four weights of
each gate.

Four sequences are computed side by side, so that each weight is read once for all of them. Of the last ones those that
are not there are the last one again.
"""

from __future__ import annotations

from edgellm.kernels.memory import broadcast_int, get, int64_at, load_floats, load_ints, store_bytes, store_floats
from edgellm.kernels.products import dot4
from edgellm.kernels.simd import (
    exponential,
    helper,
    maximum,
    minimum,
    multiply_add,
    round_to_ints,
    share,
    splat_float,
    splat_int,
    to_floats,
)
from edgellm.kernels.sound_records import LSTM as F

VARIANTS = ("int8",)
TOGETHER = 4
_GATES = 4
VECTOR = 64
GROUP = _GATES * VECTOR
"""Bytes of the gates of 16 units, as float32, and of their weights for four codes."""
_FAR = 15.0
"""Beyond which the functions of the gates are flat in float32; products of three powers stay finite."""


@helper
def _products(totals, codes, w0, w1, w2, w3):
    """Four codes times the weights of the four gates, added."""
    return (
        dot4(totals[0], codes, w0),
        dot4(totals[1], codes, w1),
        dot4(totals[2], codes, w2),
        dot4(totals[3], codes, w3),
    )


@helper
def multiply(totals, codes, count, weights):
    """The sums of four sequences, ``count`` bytes of codes at the addresses ``codes`` of each."""
    a, b, c, d = totals
    for place in range(0, count, 4):
        w0, w1 = load_ints(weights), load_ints(weights + VECTOR)
        w2, w3 = load_ints(weights + 2 * VECTOR), load_ints(weights + 3 * VECTOR)
        a = _products(a, broadcast_int(codes[0] + place), w0, w1, w2, w3)
        b = _products(b, broadcast_int(codes[1] + place), w0, w1, w2, w3)
        c = _products(c, broadcast_int(codes[2] + place), w0, w1, w2, w3)
        d = _products(d, broadcast_int(codes[3] + place), w0, w1, w2, w3)
        weights += GROUP
    return a, b, c, d


@helper
def _power(value):
    """e^value, of values that are not too far from zero."""
    return exponential(maximum(splat_float(-_FAR), minimum(splat_float(_FAR), value)))


@helper
def _gate(total, scales, starts):
    """A gate before its function."""
    return multiply_add(to_floats(total), load_floats(scales), load_floats(starts))


@helper
def _advance(totals, scales, starts, cell, output):
    """16 units one step on: their cells at ``cell``, their codes to ``output``.

    With sigmoid(x) = 1 / (1 + e^-x) and tanh(x) = (e^2x - 1) / (e^2x + 1), over a common denominator.
    """
    one, zero = splat_float(1.0), splat_float(0.0)
    entering = one + _power(zero - _gate(totals[0], scales, starts))
    kept = one + _power(zero - _gate(totals[1], scales + VECTOR, starts + VECTOR))
    doubled = _gate(totals[2], scales + 2 * VECTOR, starts + 2 * VECTOR)
    new = _power(doubled + doubled)
    entering = entering * (new + one)
    value = multiply_add(load_floats(cell), entering, (new - one) * kept) / (entering * kept)
    store_floats(cell, value)
    leaving = one + _power(zero - _gate(totals[3], scales + 3 * VECTOR, starts + 3 * VECTOR))
    new = _power(value + value)
    value = (new - one) / ((new + one) * leaving)
    store_bytes(output, round_to_ints(value * splat_float(127.0)) + splat_int(128))


@helper
def _step(record, inputs, before, starts, outputs, cells):
    """All units of four sequences one step on."""
    zero = splat_int(0)
    none = (zero, zero, zero, zero)
    units, width = get(record, F.units), get(record, F.width)
    weights = get(record, F.weights)
    for unit in range(0, units, 16):
        gates = unit // 16 * GROUP
        totals = multiply((none, none, none, none), inputs, width, weights)
        weights += width // 4 * GROUP
        totals = multiply(totals, before, units, weights)
        weights += units // 4 * GROUP
        scales, cell = get(record, F.scales) + gates, cells + 4 * unit
        _advance(totals[0], scales, starts[0] + gates, cell, outputs[0] + unit)
        _advance(totals[1], scales, starts[1] + gates, cell + 4 * units, outputs[1] + unit)
        _advance(totals[2], scales, starts[2] + gates, cell + 8 * units, outputs[2] + unit)
        _advance(totals[3], scales, starts[3] + gates, cell + 12 * units, outputs[3] + unit)


@helper
def of_four(address, row, rows):
    """The addresses of four sequences, each ``row`` bytes from the one before, of which ``rows`` are there."""
    last = rows - 1
    return address, address + min(1, last) * row, address + min(2, last) * row, address + min(3, last) * row


def kernel(variant):
    """The only variant, ``int8``; threads share the sequences."""

    def lstm(record, thread, threads):
        rows, units = int64_at(get(record, F.rows)), get(record, F.units)
        first, end = share((rows + TOGETHER - 1) // TOGETHER, thread, threads)
        cells = get(record, F.cells) + thread * get(record, F.cells_stride)
        nothing = get(record, F.nothing)
        for group in range(first, end):
            row, here = TOGETHER * group, min(TOGETHER, rows - TOGETHER * group)
            for unit in range(0, TOGETHER * units, 16):
                store_floats(cells + 4 * unit, splat_float(0.0))
            before = (nothing, nothing, nothing, nothing)
            for step in range(get(record, F.steps)):
                address = get(record, F.input) + row * get(record, F.input_row) + step * get(record, F.input_step)
                inputs = of_four(address, get(record, F.input_row), here)
                address = get(record, F.starts) + row * get(record, F.starts_row) + step * get(record, F.starts_step)
                starts = of_four(address, get(record, F.starts_row), here)
                address = get(record, F.output) + row * get(record, F.output_row) + step * get(record, F.output_step)
                outputs = of_four(address, get(record, F.output_row), here)
                _step(record, inputs, before, starts, outputs, cells)
                before = outputs

    return lstm
