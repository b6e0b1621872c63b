"""Tensors that are not loaded yet: what is known of them, how to load some of their rows, and how to rearrange them.

Nothing here holds values. A transformation gives a new description whose ``load`` reads from the old one, so that a
tensor is in memory only while it is written, and of most only some rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.convert.encode import to_float32
from edgellm.errors import CorruptFileError

Array = NDArray[Any]


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that can be loaded piece by piece.

    Attributes:
        shape: slowest dimension first.
        kind: how the loaded values are to be read, as in ``safetensors.KINDS``.
        load: elements from one number to another of the first dimension, as an array of that many times ``shape[1:]``.
        step: pieces begin at multiples of this number; the whole length if the tensor cannot be loaded in pieces.
        is_ternary: the values are -d, 0 and d with one d for all.
    """

    shape: tuple[int, ...]
    kind: str
    load: Callable[[int, int], Array]
    step: int = 1
    is_ternary: bool = False

    @property
    def size(self) -> int:
        """How many values."""
        return math.prod(self.shape)


def constant(values: Array) -> LazyTensor:
    """A small tensor that is not in the checkpoint: float32."""
    values = np.ascontiguousarray(values, np.float32)
    return LazyTensor(values.shape, "F32", lambda start, stop: values[start:stop])


def permuted_heads(tensor: LazyTensor, heads: int) -> LazyTensor:
    """Rows of each head from halves to neighbours: row ``i`` of the first half is followed by that of the second.

    Checkpoints rotate value i with value i + half; ``llama`` files rotate neighbours.
    """
    rows = tensor.shape[0]
    if heads < 1 or rows % (2 * heads):
        raise CorruptFileError(f"{rows} rows cannot be shared out to {heads} heads of even width")
    head = rows // heads

    def load(start: int, stop: int) -> Array:
        first, last = start // head * head, -(-stop // head) * head
        halves = tensor.load(first, last).reshape(-1, 2, head // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(last - first, *tensor.shape[1:])[start - first : stop - first]

    return LazyTensor(tensor.shape, tensor.kind, load, head, tensor.is_ternary)


def transposed(tensor: LazyTensor) -> LazyTensor:
    """The last two dimensions exchanged. A matrix is loaded as a whole, more dimensions one matrix at a time."""
    *lead, rows, columns = tensor.shape
    shape = (*lead, columns, rows)
    if lead:
        return LazyTensor(shape, tensor.kind, lambda start, stop: tensor.load(start, stop).swapaxes(-1, -2))
    return LazyTensor(shape, tensor.kind, lambda start, stop: tensor.load(0, rows).T[start:stop], step=columns)


def rows(tensor: LazyTensor, start: int, stop: int) -> LazyTensor:
    """Elements ``start`` to ``stop`` of the first dimension."""
    return LazyTensor(
        (stop - start, *tensor.shape[1:]), tensor.kind, lambda first, last: tensor.load(start + first, start + last)
    )


def each(tensor: LazyTensor, change: Callable[[Array], Array], shape: tuple[int, ...]) -> LazyTensor:
    """A change that works on any number of elements of the first dimension and leaves the type of the values alone."""
    return LazyTensor((tensor.shape[0], *shape), tensor.kind, lambda start, stop: change(tensor.load(start, stop)))


def reshaped(tensor: LazyTensor, first: int) -> LazyTensor:
    """The first dimension cut in two, of which the first is ``first``: (first, rest, ...)."""
    if first < 1 or tensor.shape[0] % first:
        raise CorruptFileError(f"{tensor.shape[0]} rows cannot be cut into {first} equal parts")
    rest = tensor.shape[0] // first
    shape = (first, rest, *tensor.shape[1:])
    return LazyTensor(
        shape,
        tensor.kind,
        lambda start, stop: tensor.load(start * rest, stop * rest).reshape(stop - start, *shape[1:]),
    )


def plus(tensor: LazyTensor, number: float) -> LazyTensor:
    """All values with a number added, in float32."""

    def load(start: int, stop: int) -> Array:
        return to_float32(tensor.load(start, stop), tensor.kind) + np.float32(number)

    return LazyTensor(tensor.shape, "F32", load, tensor.step)


def stacked(tensors: Sequence[LazyTensor]) -> LazyTensor:
    """Tensors of one shape and type along a new first dimension; each is loaded when its turn comes."""
    first = tensors[0]
    if any(tensor.shape != first.shape or tensor.kind != first.kind for tensor in tensors):
        raise CorruptFileError("the experts of a layer differ in shape or type")

    def load(start: int, stop: int) -> Array:
        return np.stack([tensors[index].load(0, first.shape[0]) for index in range(start, stop)])

    return LazyTensor((len(tensors), *first.shape), first.kind, load)
