"""The search for the scales of groups of values, 16 groups at once, one in each lane.

A group's values x are replaced by s q or s q + m, where q are small integers (or table entries). For given codes q the
best scale s, or scale and minimum m, solve a weighted least-squares problem. Which codes are best is searched: each
trial scale gives codes by rounding, these give the best s and m, and what leaves the least squared error wins. With the
winner, rounding and solving are repeated, which can only make the error smaller.

The types with two levels then round the groups' scales (and minima) to small multiples of one number for 256 values,
and solve for that number, the multiples and the codes in turn, keeping what was best.

The idea of trial scales with a least-squares solution for each is that of ggml's quantizers; the refinements are those
of Lloyd, "Least squares quantization in PCM", 1982, one group of unknowns at a time.
"""

from __future__ import annotations

from edgellm.kernels.memory import load_floats
from edgellm.kernels.quantizer_vectors import (
    inverse_or_zero,
    largest_across,
    nearest_between,
    ratio,
    round_half,
    sum_across,
    where_greater,
)
from edgellm.kernels.simd import absolute, helper, maximum, minimum, multiply_add, splat_float

NOTHING = 1e-30
"""A group whose largest magnitude is not more than this counts as zero."""


def weight_reader(weighted):
    """``f(address)``: the weights of values, 1 without an importance matrix, where the address is not read."""
    if weighted:

        @helper
        def weight(address):
            return load_floats(address)
    else:

        @helper
        def weight(address):
            return splat_float(1.0)

    return weight


@helper
def _signed_peak(values, count):
    """Of each group the value of largest magnitude, 0 where all are next to nothing."""
    high, low = splat_float(0.0), splat_float(0.0)
    for element in range(count):
        value = load_floats(values + 64 * element)
        high, low = maximum(value, high), minimum(value, low)
    zero = splat_float(0.0)
    peak = where_greater(zero - low, high, low, high)
    return where_greater(absolute(peak), splat_float(NOTHING), peak, zero)


# -- s q: one scale ----------------------------------------------------------------------------------------------


def scale_sums(count, nearest, weighted):
    """``f(values, weights, scale)``: sums of w x q and of w q q, where q are the codes nearest to x / scale."""
    weight = weight_reader(weighted)

    @helper
    def sums(values, weights, inverse):
        products, squares = splat_float(0.0), splat_float(0.0)
        for element in range(count):
            value = load_floats(values + 64 * element)
            code = nearest(value * inverse)
            weighted_code = code * weight(weights + 64 * element)
            products = multiply_add(value, weighted_code, products)
            squares = multiply_add(code, weighted_code, squares)
        return products, squares

    return sums


def scale_search(count, nearest, weighted, signed, trials, first, step, refinements):
    """``f(values, weights)``: the best scales of 16 groups of ``count`` values.

    The value of largest magnitude is put at ``first``, ``first + step``, ... in turn, ``trials`` times; its magnitude
    is, if the scale may not be ``signed``.
    """
    sums = scale_sums(count, nearest, weighted)

    @helper
    def search(values, weights):
        zero = splat_float(0.0)
        peak = _signed_peak(values, count)
        if not signed:
            peak = absolute(peak)
        inverse_peak = inverse_or_zero(peak)
        best, scale = zero, zero
        for trial in range(trials):
            products, squares = sums(values, weights, inverse_peak * splat_float(first + step * trial))
            solution = ratio(products, squares)
            gain = products * solution
            scale = where_greater(gain, best, solution, scale)
            best = maximum(gain, best)
        for _ in range(refinements):
            products, squares = sums(values, weights, inverse_or_zero(scale))
            solution = ratio(products, squares)
            gain = products * solution
            scale = where_greater(gain, best, solution, scale)
            best = maximum(gain, best)
        return scale

    return search


# -- s q + m: scale and minimum ----------------------------------------------------------------------------------


@helper
def _range(values, count):
    low = high = load_floats(values)
    for element in range(1, count):
        value = load_floats(values + 64 * element)
        low, high = minimum(value, low), maximum(value, high)
    return low, high


def range_sums(count, nearest, weighted):
    """``f(values, weights, base, low, inverse)``: sums of w q, of w q q and of w (x - base) q, where q are the codes
    nearest to (x - low) * inverse."""
    weight = weight_reader(weighted)

    @helper
    def sums(values, weights, base, low, inverse):
        codes, squares, products = splat_float(0.0), splat_float(0.0), splat_float(0.0)
        for element in range(count):
            value = load_floats(values + 64 * element)
            code = nearest((value - low) * inverse)
            weighted_code = code * weight(weights + 64 * element)
            codes = codes + weighted_code
            squares = multiply_add(code, weighted_code, squares)
            products = multiply_add(value - base, weighted_code, products)
        return codes, squares, products

    return sums


def _totals(count, weighted):
    weight = weight_reader(weighted)

    @helper
    def totals(values, weights, base):
        """Sums of w and w y."""
        total, first = splat_float(0.0), splat_float(0.0)
        for element in range(count):
            value = load_floats(values + 64 * element) - base
            own = weight(weights + 64 * element)
            total = total + own
            first = multiply_add(own, value, first)
        return total, first

    return totals


@helper
def _solve(total, first, codes, squares, products):
    """The s and m that make sum w (y - s q - m)^2 least; s = 0 where all codes are equal."""
    determinant = total * squares - codes * codes
    enough = where_greater(determinant, splat_float(1e-6) * total * squares, determinant, splat_float(0.0))
    scale = ratio(total * products - first * codes, enough)
    return scale, ratio(first - scale * codes, total)


@helper
def _gain(total, first, codes, squares, products, scale, offset):
    """By how much s q + m is nearer to y than nothing is: sum w y^2 less the squared error."""
    linear = scale * products + offset * first
    return (
        linear
        + linear
        - (scale * scale * squares + splat_float(2.0) * scale * offset * codes + offset * offset * total)
    )


def range_search(count, high, weighted, trials, first, step, refinements, below_zero):
    """``f(values, weights)``: the best scales and minima of 16 groups of ``count`` values, with codes up to ``high``.

    The range of values is spread over ``high + first`` steps, ``high + first + step``, ... in turn. With
    ``below_zero`` minima are 0 at most.
    """
    nearest = nearest_between(0.0, float(high))
    sums, totals = range_sums(count, nearest, weighted), _totals(count, weighted)

    @helper
    def solve(base, total, one, codes, squares, products):
        scale, offset = _solve(total, one, codes, squares, products)
        if below_zero:
            # Where the minimum would be above zero it is zero: the scale alone is solved for, from x = y + base.
            zero = splat_float(0.0)
            alone = ratio(products + base * codes, squares)
            over = offset + base
            scale = where_greater(over, zero, alone, scale)
            offset = where_greater(over, zero, zero - base, offset)
        return scale, offset, _gain(total, one, codes, squares, products, scale, offset)

    @helper
    def search(values, weights):
        zero = splat_float(0.0)
        low, top = _range(values, count)
        if below_zero:
            low, top = minimum(low, zero), maximum(top, zero)
        total, one = totals(values, weights, low)
        inverse_range = inverse_or_zero(top - low)
        best, scale, offset = splat_float(-1e30), zero, zero
        for trial in range(trials):
            inverse = inverse_range * splat_float(high + first + step * trial)
            codes, squares, products = sums(values, weights, low, low, inverse)
            new_scale, new_offset, gain = solve(low, total, one, codes, squares, products)
            scale = where_greater(gain, best, new_scale, scale)
            offset = where_greater(gain, best, new_offset, offset)
            best = maximum(gain, best)
        for _ in range(refinements):
            codes, squares, products = sums(values, weights, low, low + offset, inverse_or_zero(scale))
            new_scale, new_offset, gain = solve(low, total, one, codes, squares, products)
            scale = where_greater(gain, best, new_scale, scale)
            offset = where_greater(gain, best, new_offset, offset)
            best = maximum(gain, best)
        return scale, low + offset

    return search


# -- two levels --------------------------------------------------------------------------------------------------


def two_level_scales(count, nearest, weighted, groups, low, high, search, refinements):
    """``f(values, weights)``: d and multiples l of each lane, so that x is about d l q.

    ``groups`` neighbouring lanes share d; multiples are integers from ``low``, which the largest scale becomes, to
    ``high``.
    """
    sums = scale_sums(count, nearest, weighted)
    largest, across, multiple = largest_across(groups), sum_across(groups), nearest_between(float(low), float(high))

    @helper
    def find(values, weights):
        zero = splat_float(0.0)
        scales = search(values, weights)
        size = largest(absolute(scales))
        peak = where_greater(size, largest(scales), zero - size, size)
        d = round_half(peak * splat_float(1.0 / low))
        multiples = multiple(scales * inverse_or_zero(d))
        best, best_d, best_multiples = splat_float(-1.0), d, multiples
        for refinement in range(refinements + 1):
            scale = d * multiples
            products, squares = sums(values, weights, inverse_or_zero(scale))
            gain = across(scale * (products + products - scale * squares))
            best_d = where_greater(gain, best, d, best_d)
            best_multiples = where_greater(gain, best, multiples, best_multiples)
            best = maximum(gain, best)
            if refinement < refinements:
                solution = multiple(ratio(products, squares) * inverse_or_zero(d))
                multiples = where_greater(squares, zero, solution, multiples)
                d = round_half(ratio(across(multiples * products), across(multiples * multiples * squares)))
        return best_d, best_multiples

    return find


def two_level_ranges(count, high, weighted, groups, multiples_high, search, refinements):
    """``f(values, weights)``: d, multiples l, e and multiples k of each lane, so that x is about d l q - e k."""
    nearest = nearest_between(0.0, float(high))
    sums, totals = range_sums(count, nearest, weighted), _totals(count, weighted)
    largest, across = largest_across(groups), sum_across(groups)
    multiple = nearest_between(0.0, float(multiples_high))

    @helper
    def find(values, weights):
        zero = splat_float(0.0)
        scales, lows = search(values, weights)
        total, first = totals(values, weights, zero)
        d = round_half(largest(scales) * splat_float(1.0 / multiples_high))
        e = round_half(largest(zero - lows) * splat_float(1.0 / multiples_high))
        up, down = multiple(scales * inverse_or_zero(d)), multiple((zero - lows) * inverse_or_zero(e))
        best = splat_float(-1e30)
        best_d, best_up, best_e, best_down = d, up, e, down
        for refinement in range(refinements + 1):
            scale, offset = d * up, zero - e * down
            codes, squares, products = sums(values, weights, zero, offset, inverse_or_zero(scale))
            gain = across(_gain(total, first, codes, squares, products, scale, offset))
            best_d, best_up = where_greater(gain, best, d, best_d), where_greater(gain, best, up, best_up)
            best_e, best_down = where_greater(gain, best, e, best_e), where_greater(gain, best, down, best_down)
            best = maximum(gain, best)
            if refinement < refinements:
                # The multiples for these codes, then the two numbers for these codes and multiples.
                new_scale, _ = _solve(total, first, codes, squares, products)
                up = where_greater(squares, zero, multiple(new_scale * inverse_or_zero(d)), up)
                down = multiple((first - d * up * codes) * ratio(splat_float(-1.0), total) * inverse_or_zero(e))
                d, e = _two_numbers(across, up, down, total, first, codes, squares, products, d, e)
        return best_d, best_up, best_e, best_down

    return find


@helper
def _two_numbers(across, up, down, total, first, codes, squares, products, d, e):
    """The d and e that make sum w (x - d l q + e k)^2 least over all groups; the old ones where they are not defined
    or negative."""
    zero = splat_float(0.0)
    aa, ab, bb = across(up * up * squares), across(up * down * codes), across(down * down * total)
    a, b = across(up * products), zero - across(down * first)
    determinant = aa * bb - ab * ab
    usable = where_greater(determinant, splat_float(1e-6) * aa * bb, determinant, zero)
    both_d, both_e = ratio(bb * a + ab * b, usable), ratio(aa * b + ab * a, usable)
    alone = ratio(a, aa)  # without minima
    new_d = where_greater(usable, zero, both_d, where_greater(bb, zero, d, alone))
    new_e = where_greater(usable, zero, both_e, e)
    new_d, new_e = where_greater(new_d, zero, new_d, d), where_greater(new_e, zero, new_e, e)
    return round_half(new_d), round_half(new_e)
