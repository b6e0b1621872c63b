"""What makes a Q8_0 file of Whisper say nearly what its float weights say, at nearly the same size.

Three things lower what rounding to 8 bits does to the probabilities of tokens:

- The embedding, which is the head too, is stored with the mean over tokens subtracted and its columns divided by
  scales that make them nearly alike, so that no column makes the steps of its block coarse for others. The mean goes to
  the embedding of positions, which is added anyway, and moves all logits alike. The scales
  (``token_embd_scale.weight``) multiply what is looked up, and are in the norm before the head.
- Values and outputs of the encoder's attention, to which the result is most sensitive, stay F16: 3 % of the weights.
- The scale of each block is searched, so that the squared error is small: a sixth smaller than with the largest
  magnitude as 127.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgellm.convert.encode import encode, to_float32
from edgellm.convert.tensors import LazyTensor, constant
from edgellm.convert.writer import Planned
from edgellm.gguf import TensorType

Float32 = NDArray[np.float32]

_KEPT = re.compile(r"enc\.blk\.\d+\.attn_(v|output)\.weight")
_TABLE, _POSITIONS, _SCALES = "token_embd.weight", "position_embd.weight", "token_embd_scale.weight"
_GAIN, _BIAS = "output_norm.weight", "output_norm.bias"
_POWER = 0.8
"""Of a column's deviation: with 1 the table is rounded best, with less the activations that meet it are."""
_LEAST = 1e-3
"""Of the largest deviation: the least that counts as such."""
_ROWS = 4096
_CHUNK_VALUES = 1 << 16
_LARGEST = 1e6
"""Magnitudes from which on scales might not fit half precision."""
_LARGEST_CODES = tuple(np.float32(127 - 0.25 * trial) for trial in range(13))


def finer(planned: Sequence[Planned]) -> list[Planned]:
    """The tensors of a Q8_0 file in forms that rounding harms less."""
    kept = [replace(tensor, type=TensorType.F16) if _is_kept(tensor) else tensor for tensor in planned]
    return [_searched(tensor) for tensor in _balanced(kept)]


def _is_kept(tensor: Planned) -> bool:
    return _KEPT.fullmatch(tensor.name) is not None and tensor.type is TensorType.Q8_0


# -- the table of tokens ------------------------------------------------------------------------------------------


def _balanced(planned: list[Planned]) -> list[Planned]:
    """With the table centred and scaled; as they are where that is not possible."""
    tensors = {tensor.name: tensor for tensor in planned}
    if "output.weight" in tensors or not all(name in tensors for name in (_TABLE, _POSITIONS, _GAIN, _BIAS)):
        return planned
    table, positions, gain, bias = (tensors[name] for name in (_TABLE, _POSITIONS, _GAIN, _BIAS))
    width = table.shape[1]
    if table.type is not TensorType.Q8_0 or not gain.shape == bias.shape == positions.shape[1:] == (width,):
        return planned
    mean, scale = _mean_and_scale(table.tensor)
    if not (np.isfinite(mean).all() and np.isfinite(scale).all()):
        return planned
    changed = {
        _TABLE: _moved(table.tensor, mean, scale),
        _POSITIONS: _moved(positions.tensor, -mean, np.ones_like(scale)),
        _GAIN: constant(_values(gain.tensor) * scale),
        _BIAS: constant(_values(bias.tensor) * scale),
    }
    balanced = [replace(tensor, tensor=changed.get(tensor.name, tensor.tensor)) for tensor in planned]
    return [*balanced, Planned(_SCALES, constant(scale), TensorType.F32)]


def _values(tensor: LazyTensor) -> Float32:
    return to_float32(tensor.load(0, tensor.shape[0]), tensor.kind)


def _mean_and_scale(table: LazyTensor) -> tuple[Float32, Float32]:
    """Of the columns of (tokens, width): their means, and a power of their deviations, around 1."""
    rows, width = table.shape
    total, squares = np.zeros(width), np.zeros(width)
    step = max(1, _ROWS // table.step) * table.step
    for first in range(0, rows, step):
        part = to_float32(table.load(first, min(first + step, rows)), table.kind).astype(np.float64)
        total += part.sum(axis=0)
        squares += np.square(part).sum(axis=0)
    mean = total / rows
    deviation = np.sqrt(np.maximum(squares / rows - mean**2, 0))
    most = deviation.max(initial=0.0)
    deviation = np.maximum(deviation, _LEAST * most if most > 0 else 1.0)
    scale = deviation**_POWER
    return mean.astype(np.float32), (scale / np.exp(np.log(scale).mean())).astype(np.float32)


def _moved(tensor: LazyTensor, mean: Float32, scale: Float32) -> LazyTensor:
    def load(start: int, stop: int) -> Float32:
        return (to_float32(tensor.load(start, stop), tensor.kind) - mean) / scale

    return LazyTensor(tensor.shape, "F32", load, tensor.step)


# -- the scales of blocks -----------------------------------------------------------------------------------------


def _searched(planned: Planned) -> Planned:
    if planned.type is not TensorType.Q8_0:
        return planned
    tensor, kind = planned.tensor, planned.type
    row_bytes = tensor.shape[1] // kind.block_size * kind.block_bytes

    def load(start: int, stop: int) -> NDArray[np.uint8]:
        values = np.ascontiguousarray(to_float32(tensor.load(start, stop), tensor.kind))
        return encode_searched(values).reshape(stop - start, row_bytes)

    return replace(planned, tensor=LazyTensor((tensor.shape[0], row_bytes), "U8", load, tensor.step))


def encode_searched(values: Float32) -> NDArray[np.uint8]:
    """Rows as Q8_0, with scales that make the squared error small: uint8, one dimension.

    Each of some scales gives codes q, and these the scale d that suits them best, (q x) / (q q), which is rounded to
    half precision. The error is (x x) - 2 d (q x) + d^2 (q q). What ggml makes of a block is kept if nothing is better.
    """
    kind = TensorType.Q8_0
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    plain = encode(flat, "F32", kind).reshape(-1, kind.block_bytes)
    blocks = flat.reshape(-1, kind.block_size)
    step = _CHUNK_VALUES // kind.block_size
    with np.errstate(all="ignore"):  # blocks with other than usual numbers stay as they are
        for first in range(0, len(blocks), step):
            _search(blocks[first : first + step], plain[first : first + step])
    return plain.reshape(-1)


def _search(blocks: Float32, out: NDArray[np.uint8]) -> None:
    """Put better codes and scales in place of the plain ones."""
    largest = np.abs(blocks).max(axis=1)
    usual = (largest > 0) & (largest < _LARGEST)  # which NaN is not
    inverse = np.where(usual, 1 / largest, 0).astype(np.float32)[:, None]
    codes, scale = out[:, 2:].view(np.int8).astype(np.float32), out[:, :2].copy().view("<f2")[:, 0].astype(np.float32)
    product, square = _products(codes, blocks)
    gain = scale * (2 * product - scale * square)
    for most in _LARGEST_CODES:
        trial = np.rint(blocks * (most * inverse))
        product, square = _products(trial, blocks)
        fitting = (product / square).astype(np.float16).astype(np.float32)
        found = fitting * (2 * product - fitting * square)
        better = usual & (found > gain)
        np.copyto(gain, found, where=better)
        np.copyto(scale, fitting, where=better)
        np.copyto(codes, trial, where=better[:, None])
    out[usual, :2] = scale[usual].astype("<f2").view(np.uint8).reshape(-1, 2)
    out[usual, 2:] = codes[usual].astype(np.int8).view(np.uint8)


def _products(codes: Float32, blocks: Float32) -> tuple[Float32, Float32]:
    """Of each block, the sums of q x and q q."""
    return np.einsum("ij,ij->i", codes, blocks), np.einsum("ij,ij->i", codes, codes)
