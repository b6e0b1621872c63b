"""Low-rank adapters (LoRA; Hu et al. 2021): read from GGUF files and written into a model's graph.

An adapter changes the product with a weight W to ``x @ W.T + scale * alpha / rank * (x @ A.T) @ B.T``. The file is
llama.cpp's: ``general.type`` is "adapter", ``adapter.type`` "lora", and a weight NAME is changed by the tensors
``NAME.lora_a``, A of (rank, input width), and ``NAME.lora_b``, B of (output width, rank). The model's own weights stay
as they are, so the scale can be another one with every step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import CorruptFileError, InvalidSettingError, UnsupportedModelError
from edgellm.gguf import GGUFFile, TensorInfo, open_gguf
from edgellm.graph import Add, Embedding, Graph, Linear, Operation, RoundRows, Scale, StackedLinear, Value
from edgellm.weights import WeightStore

if TYPE_CHECKING:
    from edgellm.gguf import MetadataValue

A_ENDING, B_ENDING = ".lora_a", ".lora_b"
_HINT = "convert the adapter again: edgellm convert FOLDER --base MODEL"


@dataclass(frozen=True)
class Adapter:
    """An adapter to load with a model.

    Attributes:
        path: a GGUF file.
        scale: how much of it is added where a request does not say: 1 as it was trained, 0 nothing.
        name: what requests call it; by default the file's name without its ending.
    """

    path: str | Path
    scale: float = 1.0
    name: str | None = None

    def __post_init__(self) -> None:
        """Check the scale; InvalidSettingError if it is no finite number."""
        checked_scale(self.called, self.scale)

    @property
    def called(self) -> str:
        """Its name."""
        return Path(self.path).stem if self.name is None else self.name


def checked_scale(name: str, scale: object) -> float:
    """A scale as a number; InvalidSettingError if it is none, or none that is finite."""
    # Larger ones would overflow float32 together with what they multiply.
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not abs(scale) <= 1e6:
        raise InvalidSettingError(f"the scale of adapter {name!r} is {scale!r}", "give a number from -1e6 to 1e6")
    return float(scale)


@dataclass(frozen=True)
class Delta:
    """What an adapter adds to one weight: ``factor * B @ A``.

    Attributes:
        a: name of the tensor A, (rank, input width).
        b: name of the tensor B, (output width, rank).
        factor: alpha / rank.
    """

    a: str
    b: str
    factor: float


class AdapterFile:
    """An open adapter with its pairs of tensors.

    Attributes:
        name: what it is called.
        scale: how much of it is added by default.
        file: the tensors.
        deltas: by the name of the weight they change.
    """

    def __init__(self, adapter: Adapter, file: GGUFFile, model: GGUFFile) -> None:
        """Check the file against the model it is for; use ``open_adapter``."""
        self.name, self.scale, self.file = adapter.called, float(adapter.scale), file
        self._check_kind(model.metadata)
        alpha = file.metadata.get("adapter.lora.alpha")
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise CorruptFileError(f"adapter {self.name}: adapter.lora.alpha is no number", _HINT)
        self.deltas = {weight: self._delta(weight, float(alpha), model) for weight in self._weights()}

    def _check_kind(self, model: Mapping[str, MetadataValue]) -> None:
        metadata = self.file.metadata
        if metadata.get("general.type") != "adapter":
            raise UnsupportedModelError(f"{self.name} is a model, not an adapter", "give a LoRA adapter in GGUF format")
        if metadata.get("adapter.type") != "lora" or "adapter.alora.invocation_tokens" in metadata:
            raise UnsupportedModelError(f"adapter {self.name} is of another kind than LoRA")
        own, architecture = metadata.get("general.architecture"), model.get("general.architecture")
        if own != architecture:
            raise UnsupportedModelError(
                f"adapter {self.name} is for the architecture {str(own)[:60]!r}, this model's is {architecture!r}",
                "load it with the model that it was made for",
            )

    def _weights(self) -> list[str]:
        """The weights that are changed, each by a pair of tensors."""
        names = set()
        for tensor in self.file.tensors:
            weight, ending = tensor[:-7], tensor[-7:]
            if ending not in (A_ENDING, B_ENDING):
                raise UnsupportedModelError(f"adapter {self.name}: tensor {tensor[:80]!r} is no part of a LoRA adapter")
            names.add(weight)
        return sorted(names)

    def _delta(self, weight: str, alpha: float, model: GGUFFile) -> Delta:
        pair = [self.file.tensors.get(weight + ending) for ending in (A_ENDING, B_ENDING)]
        base = model.tensors.get(weight)
        if None in pair:
            raise CorruptFileError(f"adapter {self.name}: one of the two tensors for {weight[:80]!r} is missing", _HINT)
        if base is None:
            raise UnsupportedModelError(
                f"adapter {self.name} changes {weight[:80]!r}, which this model does not have",
                "load it with the model that it was made for",
            )
        a, b = (tensor.shape for tensor in pair if tensor is not None)
        if len(a) != 2 or len(b) != 2 or len(base.shape) != 2 or (b[0], a[1]) != base.shape or a[0] != b[1] or not a[0]:
            raise UnsupportedModelError(
                f"adapter {self.name}: for {weight}, A has the shape {a} and B {b}, but the weight has {base.shape}",
                "load it with the model that it was made for",
            )
        # An alpha of 0 stands for none: the format's reader in llama.cpp takes it so.
        return Delta(weight + A_ENDING, weight + B_ENDING, alpha / a[0] if alpha else 1.0)

    def product(self, weight: str, rows: slice) -> NDArray[np.float32]:
        """What is added to some rows of a weight at scale 1: float32 (rows, input width)."""
        delta = self.deltas[weight]
        product: NDArray[np.float32] = self.file.decode(delta.b, rows) @ self.file.decode(delta.a)
        product *= np.float32(delta.factor)
        return product


def open_adapter(adapter: Adapter, model: GGUFFile) -> AdapterFile:
    """Open an adapter and check that it fits a model.

    Raises:
        ModelNotFoundError: there is no such file.
        CorruptFileError: it breaks the rules of its format.
        UnsupportedModelError: it is no LoRA adapter, or not for this model.
    """
    path = Path(adapter.path)
    if (path / "adapter_config.json").is_file():
        raise UnsupportedModelError(f"{path} is an adapter in Hugging Face's format", _HINT.replace("again", "first"))
    file = open_gguf(path)
    try:
        return AdapterFile(adapter, file, model)
    except BaseException:
        file.close()
        raise


def open_adapters(adapters: Sequence[Adapter], model: GGUFFile, cleanup: ExitStack) -> list[AdapterFile]:
    """Open several, each under a name of its own; ``cleanup`` closes them. Errors as for ``open_adapter``."""
    names = [adapter.called for adapter in adapters]
    for name in names:
        if names.count(name) > 1:
            raise InvalidSettingError(f"two adapters are called {name!r}", "give each a name of its own")
    opened = []
    for adapter in adapters:
        opened.append(open_adapter(adapter, model))
        cleanup.callback(opened[-1].file.close)
    return opened


class AdaptedWeights(WeightStore):
    """A model's weights together with the matrices of its adapters, under the names that ``adapt`` gives them."""

    def __init__(self, file: GGUFFile) -> None:
        super().__init__(file)
        self._added: dict[str, tuple[GGUFFile, str, slice]] = {}

    def add(self, name: str, file: GGUFFile, tensor: str, rows: tuple[int, int]) -> None:
        """Some rows of a file's tensor as a weight of its own."""
        self._added[name] = file, tensor, slice(*rows)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._added or super().has(name)

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor; KeyError if there is none."""
        if name not in self._added:
            return super().info(name)
        file, tensor, rows = self._added[name]
        info, count = file.tensors[tensor], rows.stop - rows.start
        return dataclasses.replace(info, name=name, shape=(count, info.columns), size_bytes=count * info.row_bytes)

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The tensor's bytes: (rows, bytes of a row), a read-only view."""
        if name not in self._added:
            return super().raw(name)
        file, tensor, rows = self._added[name]
        return file.raw(tensor)[rows]

    def float32(self, name: str) -> NDArray[np.float32]:
        """The whole tensor decoded, in its shape."""
        if name not in self._added:
            return super().float32(name)
        file, tensor, rows = self._added[name]
        return file.decode(tensor, rows)

    def rows(self, name: str, ids: NDArray[np.integer]) -> NDArray[np.float32]:
        """Chosen rows decoded: (len(ids), width)."""
        if name not in self._added:
            return super().rows(name, ids)
        file, tensor, rows = self._added[name]
        return file.decode(tensor, ids + rows.start)

    def release(self, name: str | None = None) -> None:
        """Give the pages of a tensor, or of all, back to the system; reading it again still works."""
        if name is None or name not in self._added:
            super().release(name)
        for added, (file, tensor, _) in self._added.items():
            if name in (None, added):
                file.release(tensor)


def adapt(graph: Graph, adapters: Sequence[AdapterFile], weights: AdaptedWeights) -> Graph:
    """The graph with the adapters in it; their matrices are added to ``weights``.

    Beside each product with a weight that is changed there are two narrow ones and between them a ``Scale`` that bears
    the number of its adapter, the place in ``adapters``.

    Raises:
        UnsupportedModelError: an adapter changes a weight in another way than a product uses it.
    """
    writer = _Writer(adapters, weights)
    for operation in graph.operations:
        writer.write(operation)
    writer.finish()
    return dataclasses.replace(graph, operations=tuple(writer.operations))


class _Writer:
    """Copies operations and adds to them.

    Products of one input, such as those of queries, keys and values, are followed by all their scales and then by all
    their sums: so the threads of an executor wait for one another twice, not twice for each product.
    """

    def __init__(self, adapters: Sequence[AdapterFile], weights: AdaptedWeights) -> None:
        self._adapters, self._weights = adapters, weights
        self.operations: list[Operation] = []
        self._used: set[str] = set()
        self._rounded: set[str] = set()
        self._input: Value | None = None
        self._scales: list[Operation] = []
        self._sums: list[Operation] = []

    def write(self, operation: Operation) -> None:
        """One operation as it is, or with what the adapters add to it."""
        if not isinstance(operation, Linear) or operation.x != self._input:
            self._flush()
        if isinstance(operation, RoundRows):
            self._rounded.add(operation.out.name)
        weight = operation.weight if isinstance(operation, Linear | StackedLinear | Embedding) else None
        numbers = [number for number, adapter in enumerate(self._adapters) if weight in adapter.deltas]
        if not numbers or weight is None:
            self.operations.append(operation)
            return
        # Each of these would need the sum in another place than right behind the product.
        scale = f"{weight.removesuffix('.weight')}.scale"
        if not isinstance(operation, Linear) or operation.x.name in self._rounded or self._weights.has(scale):
            raise UnsupportedModelError(
                f"adapter {self._adapters[numbers[0]].name} changes {weight}, which can only be merged into a file",
                "use edgellm merge",
            )
        self._used.add(weight)
        self._add_to(operation, numbers)

    def _add_to(self, operation: Linear, numbers: list[int]) -> None:
        """A product, and one sum for each adapter; the last has the name that the others read."""
        out = operation.out
        sums = [Value(f"{out.name}|{number}", out.width) for number in numbers] + [out]
        self.operations.append(dataclasses.replace(operation, out=sums[0]))
        rows = operation.rows or (0, out.width)
        for before, after, number in zip(sums, sums[1:], numbers, strict=False):
            adapter = self._adapters[number]
            delta = adapter.deltas[operation.weight]
            a, b = f"{number}|{delta.a}", f"{number}|{delta.b}|{rows[0]}"
            rank = adapter.file.tensors[delta.a].shape[0]
            self._weights.add(a, adapter.file, delta.a, (0, rank))
            self._weights.add(b, adapter.file, delta.b, rows)
            narrow, scaled = Value(f"{out.name}|{number}|a", rank), Value(f"{out.name}|{number}|scaled", rank)
            wide = Value(f"{out.name}|{number}|b", out.width)
            self.operations.append(Linear(narrow, operation.x, a))
            self._scales.append(Scale(scaled, narrow, delta.factor, number))
            self._sums += [Linear(wide, scaled, b), Add(after, before, wide)]
        self._input = operation.x

    def _flush(self) -> None:
        self.operations += [*self._scales, *self._sums]
        self._scales, self._sums, self._input = [], [], None

    def finish(self) -> None:
        """Raise UnsupportedModelError for a weight that no operation has read."""
        self._flush()
        for adapter in self._adapters:
            left = sorted(adapter.deltas.keys() - self._used)
            if left:
                raise UnsupportedModelError(f"adapter {adapter.name} changes {left[0]}, which no product uses")
