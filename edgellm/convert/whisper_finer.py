"""What makes a Q8_0 file of Whisper say nearly what its float weights say.

Rounding harms most in the values and outputs of attention, which are added to what all later layers see, and in the
matrix of the logits. The former stay F16: they are a tenth of the weights. The latter is stored apart from the
embedding, with the mean over tokens subtracted, which moves all logits alike, and its columns scaled, which the norm
before it undoes, so that rounding a column counts no more than rounding another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgellm.convert.encode import to_float32
from edgellm.convert.tensors import LazyTensor, constant
from edgellm.convert.writer import Planned
from edgellm.gguf import TensorType

_KEPT = re.compile(r"(enc\.)?blk\.\d+\.(cross_)?attn_(v|output)\.weight")
_CROSS_VALUES = re.compile(r"blk\.\d+\.cross_attn_v\.weight")
_TIMESTAMPS = 1501
"""Tokens at the end of the vocabulary, unlike those of text."""
_ROWS = 4096
_LEAST = 1e-3
"""Of the largest deviation or gain: the least that counts as such."""


def finer(planned: Sequence[Planned]) -> list[Planned]:
    """The tensors of a Q8_0 file with what is sensitive in more precise forms."""
    tensors = {tensor.name: tensor for tensor in planned}
    kept = [replace(tensor, type=TensorType.F16) if _is_kept(tensor) else tensor for tensor in planned]
    names = ("token_embd.weight", "output_norm.weight", "output_norm.bias")
    if "output.weight" in tensors or not all(name in tensors for name in names):
        return kept
    embedding, gain, bias = (tensors[name] for name in names)
    if embedding.type is not TensorType.Q8_0 or not gain.shape == bias.shape == embedding.shape[1:]:
        return kept
    mean, scale = _balanced(embedding.tensor, _values(gain.tensor), _values(bias.tensor))
    if not (np.isfinite(mean).all() and np.isfinite(scale).all()):
        return kept
    changed = {
        tensor.name: Planned(tensor.name, constant(_values(tensor.tensor) / scale), tensor.type)
        for tensor in (gain, bias)
    }
    head = Planned("output.weight", _moved(embedding.tensor, mean, scale), embedding.type)
    return [changed.get(tensor.name, tensor) for tensor in kept] + [head]


def _is_kept(tensor: Planned) -> bool:
    matched = _KEPT.fullmatch(tensor.name) is not None and _CROSS_VALUES.fullmatch(tensor.name) is None
    return matched and tensor.type is TensorType.Q8_0


def _values(tensor: LazyTensor) -> NDArray[np.float32]:
    return to_float32(tensor.load(0, tensor.shape[0]), tensor.kind)


def _balanced(
    embedding: LazyTensor, gain: NDArray[np.float32], bias: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean of the columns (width,) over text, and factors (width,) that share the rounding errors out.

    A column's error is its deviation over tokens, by the block it lies in, times what the norm puts into it; the error
    of that by its own rounding, times the deviation. Both are alike for a factor of the root of one by the other.
    """
    rows = embedding.shape[0] - (_TIMESTAMPS if embedding.shape[0] > 2 * _TIMESTAMPS else 0)
    total, squares = np.zeros(embedding.shape[1]), np.zeros(embedding.shape[1])
    for first in range(0, rows, _ROWS):
        part = to_float32(embedding.load(first, min(first + _ROWS, rows)), embedding.kind).astype(np.float64)
        total += part.sum(axis=0)
        squares += np.square(part).sum(axis=0)
    mean = total / rows
    deviation = np.sqrt(np.maximum(squares / rows - mean**2, 0))
    size = np.hypot(gain.astype(np.float64), bias)
    scale = np.sqrt(_floored(size) / _floored(deviation))
    scale /= np.exp(np.log(scale).mean())
    return mean.astype(np.float32), scale.astype(np.float32)


def _floored(values: NDArray[np.float64]) -> NDArray[np.float64]:
    most = values.max(initial=0.0)
    return np.maximum(values, most * _LEAST if most > 0 else 1.0)


def _moved(embedding: LazyTensor, mean: NDArray[np.float32], scale: NDArray[np.float32]) -> LazyTensor:
    def load(start: int, stop: int) -> NDArray[np.float32]:
        return (to_float32(embedding.load(start, stop), embedding.kind) - mean) * scale

    return LazyTensor(embedding.shape, "F32", load, embedding.step)
