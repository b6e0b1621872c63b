"""Products of quantized weights and activations: one kernel per packed weight format.

Weights are packed in groups of 16 rows, one lane a row (`edgellm.kernels.packing` describes every format), and
activations are quantized once to int8 with a scale per 32 values (`edgellm.kernels.quantize`). A weight is
``scale * code + offset`` with an unsigned code, so a block of products is

    sum_k weight_k x_k  =  scale * (d * sum_k code_k q_k)  +  offset * (d * sum_k q_k),       x_k = d * q_k

where the first sum is exact integer arithmetic (`dot4`) and the second, the block's sum, comes with the activations.
Codes are unpacked once for a tile of several activation rows.

Variants: a packed format (``q4``), or one with ``_fine`` behind it: activations come with their quantized remainders
(see `edgellm.kernels.quantize`), which are multiplied in the same pass over the weights.
"""

from __future__ import annotations

from edgellm.kernels.blocks import BLOCKS, TILE
from edgellm.kernels.memory import get, here, int64_at, load_floats, store_floats
from edgellm.kernels.packing import FLOAT_FORMATS, FORMATS
from edgellm.kernels.records import MATMUL as F
from edgellm.kernels.simd import helper, share, splat_float
from edgellm.kernels.tile_layout import BY_ROW

ROW_BLOCK = 64  # activation rows that stay in the second-level cache while all weights pass


def distance_ahead(name):
    """How many bytes ahead weights of a format are asked for."""
    return 2048 if name == "q8" else 16384


@helper
def store_result(value, place, bias, accumulate):
    """Write 16 results, adding bias and what was there if asked."""
    if bias:
        value = value + load_floats(bias)
    if accumulate:
        value = value + load_floats(place)
    store_floats(place, value)


@helper
def store_tile(tile, output, stride, bias, accumulate):
    """Write the results of TILE rows."""
    store_result(tile[0], output, bias, accumulate)
    store_result(tile[1], output + stride, bias, accumulate)
    store_result(tile[2], output + 2 * stride, bias, accumulate)
    store_result(tile[3], output + 3 * stride, bias, accumulate)


@helper
def what_follows(record, end, distance, thread, threads):
    """Where a thread's part of the next product is what to prefetch, in place of what lies behind its part of this
    one: the address of blocks from which on that is so, and how much further on it is."""
    following = get(record, F.following)
    if following == 0:
        return end, 0
    first, _ = share(get(following, F.groups), thread, threads)
    begin = get(following, F.weights) + first * get(following, F.group_bytes)
    return end - distance, begin - end


def products_of_blocks(rows, name):
    """``f(tile, weights, blocks, ...)``: add the products of all blocks of a group to a tile.

    Blocks that share a unit are two calls in one round of the loop: then each load goes on by the same number of bytes
    every time, which is what a processor's prefetcher recognises.
    """
    layout = FORMATS[name]
    block = BLOCKS[name](rows, name, BY_ROW)
    distance = distance_ahead(name)
    code_bytes, scale_bytes, unit_bytes = layout.code_bytes, layout.scale_bytes, layout.unit_bytes
    input_bytes, sums_bytes = (layout.values // 32 * step for step in (BY_ROW.codes_step, BY_ROW.scales_step))

    if not layout.paired:

        @helper
        def group(tile, weights, blocks, x, x_stride, s, s_stride, turn):
            for number in range(blocks):
                codes = here(weights + number * unit_bytes)
                ahead = codes + distance + (turn[1] if codes >= turn[0] else 0)
                tile = block(
                    tile, codes, codes + code_bytes, here(x + number * input_bytes), x_stride,
                    here(s + number * sums_bytes), s_stride, ahead,
                )  # fmt: skip
            return tile

        return group

    @helper
    def group(tile, weights, blocks, x, x_stride, s, s_stride, turn):
        for number in range(0, blocks - 1, 2):
            codes = here(weights + (number >> 1) * unit_bytes)
            scales = codes + 2 * code_bytes
            ahead = codes + distance + (turn[1] if codes >= turn[0] else 0)
            x_pair, s_pair = here(x + number * input_bytes), here(s + number * sums_bytes)
            tile = block(tile, codes, scales, x_pair, x_stride, s_pair, s_stride, ahead)
            codes, scales = codes + code_bytes, scales + scale_bytes
            ahead = ahead + code_bytes
            tile = block(tile, codes, scales, x_pair + input_bytes, x_stride, s_pair + sums_bytes, s_stride, ahead)
        if blocks & 1:
            codes = weights + (blocks >> 1) * unit_bytes
            x_last, s_last = x + (blocks - 1) * input_bytes, s + (blocks - 1) * sums_bytes
            tile = block(tile, codes, codes + 2 * code_bytes, x_last, x_stride, s_last, s_stride, codes)
        return tile

    return group


VARIANTS = tuple(f"{name}{fine}" for name in FORMATS if name not in FLOAT_FORMATS for fine in ("", "_fine"))


@helper
def _even(stride):
    """The strides of a tile whose rows all lie equally far from the next."""
    return stride, stride


@helper
def _with_remainders(stride, fine):
    """The strides of a tile in which each row is followed by its remainder."""
    return fine, stride - fine


def group_products(variant):
    """Products of a group of 16 weight rows and a tile of activation rows, or one: for kernels to call.

    Returns two functions of the record, the address of the group, the number of blocks, the addresses of codes,
    scales, results and bias, and `what_follows`; and how many activation rows are a tile.
    """
    name, _, fine = variant.partition("_")
    return (_fine_products if fine else _plain_products)(name)


def _plain_products(name):
    many, one = products_of_blocks(TILE, name), products_of_blocks(1, name)

    @helper
    def group_by_tile(record, weights, blocks, x, s, output, bias, turn):
        x_strides, s_strides = _even(get(record, F.input_stride)), _even(get(record, F.scales_stride))
        zero = splat_float(0.0)
        tile = many((zero, zero, zero, zero), weights, blocks, x, x_strides, s, s_strides, turn)
        store_tile(tile, output, get(record, F.output_stride), bias, get(record, F.accumulate))

    @helper
    def group_by_row(record, weights, blocks, x, s, output, bias, turn):
        tile = one((splat_float(0.0),), weights, blocks, x, _even(0), s, _even(0), turn)
        store_result(tile[0], output, bias, get(record, F.accumulate))

    return group_by_tile, group_by_row, TILE


def _fine_products(name):
    """A row and its remainder are a tile of two, and two such rows a tile of four."""
    many, one = products_of_blocks(TILE, name), products_of_blocks(2, name)

    @helper
    def strides(record):
        return (
            _with_remainders(get(record, F.input_stride), get(record, F.fine_codes)),
            _with_remainders(get(record, F.scales_stride), get(record, F.fine_scales)),
        )

    @helper
    def group_by_tile(record, weights, blocks, x, s, output, bias, turn):
        x_strides, s_strides = strides(record)
        zero = splat_float(0.0)
        tile = many((zero, zero, zero, zero), weights, blocks, x, x_strides, s, s_strides, turn)
        accumulate = get(record, F.accumulate)
        store_result(tile[0] + tile[1], output, bias, accumulate)
        store_result(tile[2] + tile[3], output + get(record, F.output_stride), bias, accumulate)

    @helper
    def group_by_row(record, weights, blocks, x, s, output, bias, turn):
        x_strides, s_strides = strides(record)
        zero = splat_float(0.0)
        tile = one((zero, zero), weights, blocks, x, x_strides, s, s_strides, turn)
        store_result(tile[0] + tile[1], output, bias, get(record, F.accumulate))

    return group_by_tile, group_by_row, TILE // 2


def kernel(variant):
    """The kernel ``output[row, :] = weights @ input[row]`` for one packed format."""
    group_by_tile, group_by_row, rows_at_once = group_products(variant)
    distance = distance_ahead(variant.partition("_")[0])

    def matmul(record, thread, threads):
        rows, groups, blocks = (
            int64_at(get(record, F.rows)),
            get(record, F.groups),
            get(record, F.blocks),
        )
        x, x_stride, s, s_stride = (
            get(record, F.input), get(record, F.input_stride), get(record, F.scales), get(record, F.scales_stride)
        )  # fmt: skip
        group_bytes = get(record, F.group_bytes)
        first, end = share(groups, thread, threads)
        turn = what_follows(record, get(record, F.weights) + end * group_bytes, distance, thread, threads)
        for start in range(0, rows, ROW_BLOCK):
            stop = min(rows, start + ROW_BLOCK)
            for group in range(first, end):
                weights = get(record, F.weights) + group * group_bytes
                output = get(record, F.output) + group * 64
                bias = get(record, F.bias)
                if bias:
                    bias += group * 64
                row = start
                while row + rows_at_once <= stop:
                    place = output + row * get(record, F.output_stride)
                    group_by_tile(record, weights, blocks, x + row * x_stride, s + row * s_stride, place, bias, turn)
                    row += rows_at_once
                while row < stop:
                    place = output + row * get(record, F.output_stride)
                    group_by_row(record, weights, blocks, x + row * x_stride, s + row * s_stride, place, bias, turn)
                    row += 1

    return matmul
