"""What evaluations need of rows of logits, in two passes over them and without keeping them.

Variants: ``tokens`` writes four numbers for each row: its largest logit, the sum of ``exp(logit - largest)``, the
logit of the row's target, and the number of the largest (the first of equals). ``divergence`` writes four for the
base's row, four for the row itself, and the sum of ``exp(a) * (a - b)``, where a are the base's logits and b the
row's, less the largest of each: from it the divergence of Kullback and Leibler follows.

Sums are kept in float32 for ``SPAN`` columns at most and then added up in float64. Where a logit is not a number,
the sum is none either.
"""

from __future__ import annotations

from edgellm.kernels.memory import float_at, get, int32_at, int64_at, load_floats, set_float, set_int32
from edgellm.kernels.records import SCORES as F
from edgellm.kernels.simd import exponential, helper, max_lanes, maximum, share, splat_float, sum_lanes

VARIANTS = ("tokens", "divergence")
SPAN = 1024


@helper
def _peak(row, width):
    """The largest value of a row, and the column from where the span begins that holds it."""
    best, place = float_at(row), 0
    for start in range(0, width, SPAN):
        end = min(width, start + SPAN)
        column, lanes = start, splat_float(float_at(row + 4 * start))
        while column + 16 <= end:
            lanes = maximum(lanes, load_floats(row + 4 * column))
            column += 16
        largest = max_lanes(lanes)
        while column < end:
            largest = max(largest, float_at(row + 4 * column))
            column += 1
        if largest > best:
            best, place = largest, start
    return best, place


@helper
def _column_of(row, width, value, place):
    """The first column from ``place`` on that holds a value; 0 if none does."""
    for column in range(place, min(width, place + SPAN)):
        if float_at(row + 4 * column) == value:
            return column
    return 0


@helper
def _exponential_of(value):
    return max_lanes(exponential(splat_float(value)))


@helper
def _sum(row, width, peak):
    """Sum of exp(x - peak)."""
    total = 0.0
    for start in range(0, width, SPAN):
        end = min(width, start + SPAN)
        column, lanes = start, splat_float(0.0)
        while column + 16 <= end:
            lanes = lanes + exponential(load_floats(row + 4 * column) - splat_float(peak))
            column += 16
        total += sum_lanes(lanes)
        while column < end:
            total += _exponential_of(float_at(row + 4 * column) - peak)
            column += 1
    return total


@helper
def _mixed_sum(base, row, width, base_peak, row_peak):
    """Sum of exp(a) * (a - b) over base a and row b, less their peaks: where it counts both are small then."""
    total = 0.0
    for start in range(0, width, SPAN):
        end = min(width, start + SPAN)
        column, lanes = start, splat_float(0.0)
        while column + 16 <= end:
            value = load_floats(base + 4 * column) - splat_float(base_peak)
            other = load_floats(row + 4 * column) - splat_float(row_peak)
            lanes = lanes + exponential(value) * (value - other)
            column += 16
        total += sum_lanes(lanes)
        while column < end:
            single = float_at(base + 4 * column) - base_peak
            total += _exponential_of(single) * (single - (float_at(row + 4 * column) - row_peak))
            column += 1
    return total


@helper
def _write(row, width, target, output):
    """The four numbers of one row; returns the largest."""
    peak, place = _peak(row, width)
    set_float(output, peak)
    set_float(output + 4, _sum(row, width, peak))
    set_float(output + 8, float_at(row + 4 * target))
    set_int32(output + 12, _column_of(row, width, peak, place))
    return peak


def _tokens(record, thread, threads):
    """Rows are shared among the threads."""
    width = get(record, F.width)
    first, end = share(int64_at(get(record, F.rows)), thread, threads)
    for number in range(first, end):
        row = get(record, F.logits) + number * get(record, F.logits_stride)
        target = int32_at(get(record, F.targets) + 4 * number)
        _write(row, width, target, get(record, F.output) + number * get(record, F.output_stride))


def _divergence(record, thread, threads):
    """Rows are shared among the threads."""
    width = get(record, F.width)
    first, end = share(int64_at(get(record, F.rows)), thread, threads)
    for number in range(first, end):
        base = get(record, F.base) + number * get(record, F.base_stride)
        row = get(record, F.logits) + number * get(record, F.logits_stride)
        target = int32_at(get(record, F.targets) + 4 * number)
        output = get(record, F.output) + number * get(record, F.output_stride)
        base_peak = _write(base, width, target, output)
        row_peak = _write(row, width, target, output + 16)
        set_float(output + 32, _mixed_sum(base, row, width, base_peak, row_peak))


_KERNELS = {"tokens": _tokens, "divergence": _divergence}


def kernel(variant):
    """The kernel of one purpose."""
    return _KERNELS[variant]
