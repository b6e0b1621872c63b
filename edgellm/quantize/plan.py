"""What a quantized model will look like, before anything is computed: types, sizes and keys of the files to be."""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import EdgeLLMError, InvalidSettingError
from edgellm.gguf import GGUFFile, TensorInfo, TensorType
from edgellm.quantize.mixtures import FLOAT_TYPES, choose_types, describe, find_mixture, is_quantized
from edgellm.quantize.settings import QuantizeSettings
from edgellm.splitting import SPLIT_KEYS, Shard, shard_stem, split_keys

_UINT32, _STRING = 4, 8
_QUANTIZATION_VERSION = 2
_OWN_KEYS = (
    "general.quantization_version",
    "general.file_type",
    "quantize.imatrix.file",
    "quantize.imatrix.dataset",
    "quantize.imatrix.entries_count",
    "quantize.imatrix.chunks_count",
    "quantize.gptq.dataset",
)


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor as it is in the model, and as it will be."""

    source: TensorInfo
    target: TensorInfo
    may_change: bool

    @property
    def changes(self) -> bool:
        return self.source.type != self.target.type


@dataclass(frozen=True)
class Plan:
    """The files to be.

    Attributes:
        paths: where they go.
        shards: what each holds.
        tensors: of all, in their order.
    """

    paths: tuple[Path, ...]
    shards: tuple[Shard, ...]
    tensors: tuple[PlannedTensor, ...]

    @property
    def size_bytes(self) -> int:
        """Of all files together, to the byte."""
        return sum(shard.size for shard in self.shards)

    @property
    def parameters(self) -> int:
        return sum(math.prod(tensor.source.shape) for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensors' data for each of their values."""
        return 8 * sum(tensor.target.size_bytes for tensor in self.tensors) / max(1, self.parameters)


def make_plan(file: GGUFFile, output: Path, settings: QuantizeSettings, more_keys: Mapping[str, str | int]) -> Plan:
    """Choose types and places.

    Args:
        file: the model.
        output: the file to be, or with ``keep_split`` the path before ``-00001-of-0000N.gguf``.
        settings: how to quantize.
        more_keys: what the file will say of the importance matrix or text that was used.

    Raises:
        InvalidSettingError: a type is wanted for tensors that the model does not have.
        EdgeLLMError: weights are quantized already, and must not be quantized again.
    """
    mixture = find_mixture(settings.type)
    for pattern, _ in settings.overrides().patterns:
        if not any(map(pattern.search, file.tensors)):
            what = f"no tensor's name has {pattern.pattern!r} in it"
            raise InvalidSettingError(what, "edgellm show --tensors lists the names")
    model = describe(file, settings.importance is not None)
    types = choose_types(tuple(file.tensors.values()), mixture, model, settings.overrides())
    tensors = tuple(
        PlannedTensor(tensor, _retyped(tensor, types[tensor.name]), is_quantized(tensor))
        for tensor in file.tensors.values()
    )
    if not settings.allow_requantize:
        _refuse_requantizing(tensors)
    keys = _keys(file, mixture.file_type, more_keys)
    if settings.keep_split and len(file.paths) > 1:
        paths, shards = _split(file, output, keys, tensors)
    else:
        paths = (output / file.path.name if output.is_dir() else output,)
        shards = (Shard(file.version, file.alignment, keys, tuple(tensor.target for tensor in tensors)),)
    return Plan(paths, shards, tensors)


def _retyped(tensor: TensorInfo, kind: TensorType) -> TensorInfo:
    if kind == tensor.type:
        return tensor
    row_bytes = tensor.columns // kind.block_size * kind.block_bytes
    return dataclasses.replace(tensor, type=kind, row_bytes=row_bytes, size_bytes=tensor.rows * row_bytes)


def _refuse_requantizing(tensors: Sequence[PlannedTensor]) -> None:
    for tensor in tensors:
        if tensor.changes and tensor.source.type not in (*FLOAT_TYPES, TensorType.F64):
            raise EdgeLLMError(
                f"tensor {tensor.source.name} is quantized already, as {tensor.source.type.name}; "
                "quantizing again adds to its errors",
                "name the F16 or BF16 file of the model, or do so nevertheless with --allow-requantize",
            )


def _keys(file: GGUFFile, file_type: int, more_keys: Mapping[str, str | int]) -> tuple[bytes, ...]:
    """The keys of the model, and those that say how it was quantized, as they will stand in the file."""
    kept = tuple(file.stored_key(name) for name in file.metadata if name not in (*SPLIT_KEYS, *_OWN_KEYS))
    own = {_OWN_KEYS[0]: _QUANTIZATION_VERSION, _OWN_KEYS[1]: file_type, **more_keys}
    return (*kept, *(stored_key(name, value) for name, value in own.items()))


def stored_key(name: str, value: str | int) -> bytes:
    """A key as it stands in a file: text, or an integer of 32 bits."""
    start = struct.pack("<Q", len(name.encode())) + name.encode()
    if isinstance(value, int):
        return start + struct.pack("<II", _UINT32, value)
    text = value.encode()
    return start + struct.pack("<IQ", _STRING, len(text)) + text


def _split(
    file: GGUFFile, output: Path, keys: tuple[bytes, ...], tensors: Sequence[PlannedTensor]
) -> tuple[tuple[Path, ...], tuple[Shard, ...]]:
    """As many files as the model has, each with the tensors of one of them."""
    count, stem = len(file.paths), shard_stem(output, file.path)
    aligned = (file.stored_key("general.alignment"),) if "general.alignment" in file.metadata else ()
    paths = tuple(stem.with_name(f"{stem.name}-{part + 1:05d}-of-{count:05d}.gguf") for part in range(count))
    shards = tuple(
        Shard(
            file.version,
            file.alignment,
            (*(aligned if part else keys), *split_keys(part, count, len(tensors))),
            tuple(tensor.target for tensor in tensors if tensor.source.part == part),
        )
        for part in range(count)
    )
    return paths, shards
