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
from edgellm.kernels.simd import exponential, helper, maximum, minimum, multiply_add, share, splat_float, tanh

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


@helper
def _error_function(value):
    """erf(x) to 5e-7, by a quotient of polynomials for |x| < 4 (Eigen, MathFunctionsImpl.h)."""
    x = minimum(splat_float(4.0), maximum(splat_float(-4.0), value))
    square = x * x
    p = splat_float(-2.72614225801306e-10)
    p = multiply_add(p, square, splat_float(2.77068142495902e-08))
    p = multiply_add(p, square, splat_float(-2.10102402082508e-06))
    p = multiply_add(p, square, splat_float(-5.69250639462346e-05))
    p = multiply_add(p, square, splat_float(-7.34990630326855e-04))
    p = multiply_add(p, square, splat_float(-2.95459980854025e-03))
    p = multiply_add(p, square, splat_float(-1.60960333262415e-02))
    q = splat_float(-1.45660718464996e-05)
    q = multiply_add(q, square, splat_float(-2.13374055278905e-04))
    q = multiply_add(q, square, splat_float(-1.68282697438203e-03))
    q = multiply_add(q, square, splat_float(-7.37332916720468e-03))
    q = multiply_add(q, square, splat_float(-1.42647390514189e-02))
    return x * p / q


@helper
def _gelu(value, factor):
    """x / 2 * (1 + erf(x / sqrt(2)))  (Hendrycks and Gimpel 2016)."""
    return value * splat_float(0.5) * (splat_float(1.0) + _error_function(value * splat_float(0.7071067811865476)))


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
