"""The quantizers in plain NumPy: the same search, group by group, without blocks of bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.quantizer_schemes import SCHEMES, STEPS, Scheme

Array = NDArray[Any]
_NOTHING = 1e-30


def _ratio(a: Array, b: Array) -> Array:
    return np.where(b > 0, a / np.where(b > 0, b, 1), 0)


def _inverse(a: Array) -> Array:
    usable = a * a > 1e-37
    return np.where(usable, 1 / np.where(usable, a, 1), 0)


def _half(a: Array) -> Array:
    return np.clip(a, -65504, 65504).astype(np.float16).astype(np.float32)


def _nearest(scheme: Scheme, x: Array) -> Array:
    if scheme.by_table:
        steps = np.array(STEPS, np.float32)
        return steps[np.searchsorted((steps[1:] + steps[:-1]) / 2, x)]
    return np.clip(np.rint(x), scheme.low, scheme.high)


@dataclass
class _Groups:
    """x and w, (blocks, groups, count); sums have the shape (blocks, groups)."""

    scheme: Scheme
    x: Array
    w: Array

    def codes(self, inverse: Array, low: Array | float = 0.0) -> Array:
        low = np.asarray(low, np.float32)
        return _nearest(self.scheme, (self.x - low[..., None]) * inverse[..., None])

    def sum(self, values: Array) -> Array:
        return (self.w * values).sum(axis=-1)

    # -- s q

    def scales(self) -> Array:
        x, scheme = self.x, self.scheme
        high, low = x.max(axis=-1), x.min(axis=-1)
        peak = np.where(-np.minimum(low, 0) > np.maximum(high, 0), low, high)
        peak = np.where(np.abs(peak) > _NOTHING, peak, 0)
        if scheme.low == -scheme.high:
            peak = np.abs(peak)
        best, scale = np.zeros_like(peak), np.zeros_like(peak)
        for trial in range(scheme.trials + scheme.refinements):
            put = scheme.first + scheme.step * trial
            inverse = _inverse(peak) * np.float32(put) if trial < scheme.trials else _inverse(scale)
            q = self.codes(inverse)
            products = self.sum(x * q)
            solution = _ratio(products, self.sum(q * q))
            better = products * solution > best
            best, scale = np.where(better, products * solution, best), np.where(better, solution, scale)
        return scale

    def two_levels(self) -> Array:
        """The scale of each group, of all of them rounded together."""
        low, high = self.scheme.multiples or (0, 0)
        scales = self.scales()
        size = np.abs(scales).max(axis=-1, keepdims=True)
        peak = np.where(size > scales.max(axis=-1, keepdims=True), -size, size)
        d = _half(peak / low)
        multiples = np.clip(np.rint(scales * _inverse(d)), low, high)
        best, best_scale = np.full_like(d, -1), d * multiples
        for _ in range(self.scheme.refinements + 1):
            scale = d * multiples
            q = self.codes(_inverse(scale))
            products, squares = self.sum(self.x * q), self.sum(q * q)
            gain = (scale * (2 * products - scale * squares)).sum(axis=-1, keepdims=True)
            best, best_scale = np.where(gain > best, gain, best), np.where(gain > best, scale, best_scale)
            solution = np.clip(np.rint(_ratio(products, squares) * _inverse(d)), low, high)
            multiples = np.where(squares > 0, solution, multiples)
            d = _half(
                _ratio(
                    (multiples * products).sum(axis=-1, keepdims=True),
                    (multiples**2 * squares).sum(axis=-1, keepdims=True),
                )
            )
        return best_scale

    # -- s q + m

    def _solve(self, base: Array, q: Array) -> tuple[Array, Array, Array]:
        """Scale, offset from the base, and what they gain."""
        y = self.x - base[..., None]
        total, first = self.w.sum(axis=-1), self.sum(y)
        codes, squares, products = self.sum(q), self.sum(q * q), self.sum(y * q)
        determinant = total * squares - codes * codes
        enough = np.where(determinant > 1e-6 * total * squares, determinant, 0)
        scale = _ratio(total * products - first * codes, enough)
        offset = _ratio(first - scale * codes, total)
        if self.scheme.multiples:
            over = offset + base > 0
            scale = np.where(over, _ratio(products + base * codes, squares), scale)
            offset = np.where(over, -base, offset)
        linear = scale * products + offset * first
        gain = 2 * linear - (scale**2 * squares + 2 * scale * offset * codes + offset**2 * total)
        return scale, offset, gain

    def ranges(self) -> tuple[Array, Array]:
        scheme = self.scheme
        low, high = self.x.min(axis=-1), self.x.max(axis=-1)
        if scheme.multiples:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
        inverse_range = _inverse(high - low)
        best, scale, offset = np.full_like(low, -1e30), np.zeros_like(low), np.zeros_like(low)
        for trial in range(scheme.trials + 1):
            if trial < scheme.trials:
                q = self.codes(inverse_range * np.float32(scheme.high + scheme.first + scheme.step * trial), low)
            else:
                q = self.codes(_inverse(scale), low + offset)
            solved = self._solve(low, q)
            better = solved[2] > best
            scale, offset = np.where(better, solved[0], scale), np.where(better, solved[1], offset)
            best = np.where(better, solved[2], best)
        return scale, low + offset

    def two_level_ranges(self) -> tuple[Array, Array]:
        highest = (self.scheme.multiples or (0, 0))[1]
        x = self.x
        scales, lows = self.ranges()
        total, first = self.w.sum(axis=-1), self.sum(x)
        d = _half(scales.max(axis=-1, keepdims=True) / highest)
        e = _half((-lows).max(axis=-1, keepdims=True) / highest)
        up = np.clip(np.rint(scales * _inverse(d)), 0, highest)
        down = np.clip(np.rint(-lows * _inverse(e)), 0, highest)
        best, result = np.full_like(d, -1e30), (d * up, -e * down)
        for _ in range(self.scheme.refinements + 1):
            scale, offset = d * up, -e * down
            q = self.codes(_inverse(scale), offset)
            codes, squares, products = self.sum(q), self.sum(q * q), self.sum(x * q)
            linear = scale * products + offset * first
            gain = 2 * linear - (scale**2 * squares + 2 * scale * offset * codes + offset**2 * total)
            gain = gain.sum(axis=-1, keepdims=True)
            result = np.where(gain > best, scale, result[0]), np.where(gain > best, offset, result[1])
            best = np.maximum(gain, best)
            determinant = total * squares - codes * codes
            enough = np.where(determinant > 1e-6 * total * squares, determinant, 0)
            solution = _ratio(total * products - first * codes, enough)
            up = np.where(squares > 0, np.clip(np.rint(solution * _inverse(d)), 0, highest), up)
            down = np.clip(np.rint(-_ratio(first - d * up * codes, total) * _inverse(e)), 0, highest)
            d, e = _two_numbers(up, down, total, first, codes, squares, products, d, e)
        return result


def _two_numbers(
    up: Array,
    down: Array,
    total: Array,
    first: Array,
    codes: Array,
    squares: Array,
    products: Array,
    d: Array,
    e: Array,
) -> tuple[Array, Array]:
    across = lambda values: values.sum(axis=-1, keepdims=True)  # noqa: E731
    aa, ab, bb = across(up * up * squares), across(up * down * codes), across(down * down * total)
    a, b = across(up * products), -across(down * first)
    determinant = aa * bb - ab * ab
    usable = np.where(determinant > 1e-6 * aa * bb, determinant, 0)
    new_d = np.where(usable > 0, _ratio(bb * a + ab * b, usable), np.where(bb > 0, d, _ratio(a, aa)))
    new_e = np.where(usable > 0, _ratio(aa * b + ab * a, usable), e)
    return _half(np.where(new_d > 0, new_d, d)), _half(np.where(new_e > 0, new_e, e))


def requantized(values: Array, type_name: str, importance: Array | None = None) -> NDArray[np.float32]:
    """Values (rows, columns) as they are after being quantized, with an importance of columns or without."""
    scheme = SCHEMES[type_name]
    shape = (-1, scheme.groups, scheme.group)
    weights = np.broadcast_to(np.float32(1) if importance is None else importance, values.shape)
    groups = _Groups(scheme, values.astype(np.float32).reshape(shape), weights.astype(np.float32).reshape(shape))
    with np.errstate(over="ignore", invalid="ignore"):
        low: Array = np.zeros(groups.x.shape[:2], np.float32)
        if scheme.has_minima:
            scale, low = groups.two_level_ranges() if scheme.multiples else groups.ranges()
            if not scheme.multiples:
                scale, low = _half(scale), _half(low)
        else:
            scale = groups.two_levels() if scheme.multiples else _half(groups.scales())
        q = groups.codes(_inverse(scale), low)
        result: NDArray[np.float32] = (scale[..., None] * q + low[..., None]).reshape(values.shape)
    return result
