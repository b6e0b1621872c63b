"""Element-wise functions of rows.

Variants: ``silu``, ``gelu_tanh``, ``gelu``, ``relu_squared``, ``sigmoid`` (kind(a) * b, or kind(a) where b is absent),
``sigmoid_of_row`` (one a for the whole row), ``swiglu_clamped`` (of a and b, see `edgellm.graph.Activation`), ``add``
(a + b), ``scale`` (a * factor) and ``softcap`` (factor * tanh(a / factor)). The result may be quantized at once.
Widths are padded to 16, so vectors never cross a row's end.
"""

from __future__ import annotations

from edgellm.kernels.memory import broadcast_float, get, int64_at, load_floats, store_floats
from edgellm.kernels.quantize import quantize_block
from edgellm.kernels.records import ACTIVATION as F
from edgellm.kernels.simd import (
    absolute,
    exponential,
    helper,
    maximum,
    minimum,
    multiply_add,
    share,
    splat_float,
    tanh,
)

SWIGLU_SLOPE, SWIGLU_LIMIT = 1.702, 7.0  # those of `edgellm.graph`, which kernels do not import


@helper
def _silu(value, factor):
    """x / (1 + e^-x)."""
    return value / (splat_float(1.0) + exponential(splat_float(0.0) - value))


@helper
def _gelu_tanh(value, factor):
    """x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))  (Hendrycks and Gimpel 2016)."""
    cube = value * value * value
    inner = multiply_add(cube, splat_float(0.044715), value) * splat_float(0.7978845608028654)
    return value * splat_float(0.5) * (splat_float(1.0) + tanh(inner))


def below_by(splat, multiply_add, minimum, exponential):
    """``f(t)``: t Phi(-t) for vectors t >= 0 of either precision, whose functions are given.

    e^(-t^2 / 2) times a quotient of polynomials, fitted to the rest for t < 8 with a relative error of 2.6e-9: with
    float32 about 3 units in the last place.
    """

    @helper
    def below(t):
        t = minimum(splat(13.0), t)
        p = splat(3.413821075e-03)
        p = multiply_add(p, t, splat(3.575524065e-02))
        p = multiply_add(p, t, splat(1.684923804e-01))
        p = multiply_add(p, t, splat(4.178914783e-01))
        p = multiply_add(p, t, splat(0.5))
        q = splat(8.556765387e-03)
        q = multiply_add(q, t, splat(8.964176268e-02))
        q = multiply_add(q, t, splat(4.306016483e-01))
        q = multiply_add(q, t, splat(1.140461591))
        q = multiply_add(q, t, splat(1.633667622))
        q = multiply_add(q, t, splat(1.0))
        return exponential(t * t * splat(-0.5)) * (t * p / q)

    return below


_below_by = below_by(splat_float, multiply_add, minimum, exponential)


@helper
def _gelu(value, factor):
    """x Phi(x), as max(x, 0) - |x| Phi(-|x|), which nothing cancels out in  (Hendrycks and Gimpel 2016)."""
    return maximum(value, splat_float(0.0)) - _below_by(absolute(value))


@helper
def _sigmoid(value, factor):
    return splat_float(1.0) / (splat_float(1.0) + exponential(splat_float(0.0) - value))


@helper
def _swiglu_clamped(gate, up):
    """g sigmoid(slope g) (u + 1) of the gate cut off above and of u cut off on both sides (OpenAI 2025, gpt-oss)."""
    limit = splat_float(SWIGLU_LIMIT)
    g = minimum(limit, gate)
    u = minimum(limit, maximum(splat_float(-SWIGLU_LIMIT), up))
    return g * _sigmoid(g * splat_float(SWIGLU_SLOPE), g) * (u + splat_float(1.0))


@helper
def _relu_squared(value, factor):
    positive = maximum(splat_float(0.0), value)  # in this order NaN passes
    return positive * positive


@helper
def _scale(value, factor):
    return value * factor


@helper
def _softcap(value, factor):
    return factor * tanh(value / factor)


_KINDS = {
    "silu": _silu,
    "gelu_tanh": _gelu_tanh,
    "gelu": _gelu,
    "relu_squared": _relu_squared,
    "sigmoid": _sigmoid,
    "sigmoid_of_row": _sigmoid,
    "swiglu_clamped": None,
    "scale": _scale,
    "softcap": _softcap,
    "add": None,
}


VARIANTS = tuple(_KINDS)


def kernel(variant):
    """The kernel of one function."""
    function = _KINDS[variant]
    a_bytes = 0 if variant == "sigmoid_of_row" else 4  # from one column to the next

    if variant == "add":

        @helper
        def value_of(a, b, factor):
            return load_floats(a) + load_floats(b)
    elif variant == "swiglu_clamped":

        @helper
        def value_of(a, b, factor):
            return _swiglu_clamped(load_floats(a), load_floats(b))
    else:
        load = load_floats if a_bytes else broadcast_float

        @helper
        def value_of(a, b, factor):
            value = function(load(a), factor)
            if b:
                value = value * load_floats(b)
            return value

    def activation(record, thread, threads):
        rows, width = int64_at(get(record, F.rows)), get(record, F.width)
        codes, b = get(record, F.codes), get(record, F.b)
        factor = broadcast_float(get(record, F.factor))
        blocks = -(-width // 32)  # a block of 32 columns is one item of work
        first, end = share(rows * blocks, thread, threads)
        for item in range(first, end):
            row, block = item // blocks, item % blocks
            start = 128 * block
            a_place = get(record, F.a) + row * get(record, F.a_stride) + 32 * a_bytes * block
            output = get(record, F.output) + row * get(record, F.output_stride) + start
            b_place = b + row * get(record, F.b_stride) + start if b else 0
            store_floats(output, value_of(a_place, b_place, factor))
            if width - 32 * block > 16:
                b_next = b_place + 64 if b else 0
                store_floats(output + 64, value_of(a_place + 16 * a_bytes, b_next, factor))
            if codes:
                row_codes = codes + row * get(record, F.codes_stride)
                row_scales = get(record, F.scales) + row * get(record, F.scales_stride)
                quantize_block(
                    output,
                    row_codes + 32 * block,
                    row_scales + 16 * block,
                    get(record, F.fine_codes),
                    get(record, F.fine_scales),
                )

    return activation
