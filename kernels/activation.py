"""Element-wise functions of rows.

Variants: ``silu``, ``gelu_tanh``, ``relu_squared`` (kind(a) * b, or kind(a) where b is absent), ``add`` (a + b),
``scale`` (a * factor) and ``softcap`` (factor * tanh(a / factor)). The result may be quantized at once.
Widths are padded to 16, so vectors never cross a row's end.
"""

from __future__ import annotations

from edgellm.kernels.quantize import quantize_block
from edgellm.kernels.records import ACTIVATION as F
from edgellm.kernels.simd import (
    broadcast_float,
    exponential,
    get,
    helper,
    int64_at,
    load_floats,
    maximum,
    multiply_add,
    share,
    splat_float,
    store_floats,
    tanh,
)


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
    "relu_squared": _relu_squared,
    "scale": _scale,
    "softcap": _softcap,
    "add": None,
}


VARIANTS = tuple(_KINDS)


def kernel(variant):
    """The kernel of one function."""
    function, adds = _KINDS[variant], variant == "add"

    if adds:

        @helper
        def value_of(a, b, factor):
            return load_floats(a) + load_floats(b)
    else:

        @helper
        def value_of(a, b, factor):
            value = function(load_floats(a), factor)
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
            a_place = get(record, F.a) + row * get(record, F.a_stride) + start
            output = get(record, F.output) + row * get(record, F.output_stride) + start
            b_place = b + row * get(record, F.b_stride) + start if b else 0
            store_floats(output, value_of(a_place, b_place, factor))
            if width - 32 * block > 16:
                b_next = b_place + 64 if b else 0
                store_floats(output + 64, value_of(a_place + 64, b_next, factor))
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
