"""Adapters merged into a model: a file whose weights are ``W + scale * alpha / rank * B @ A``.

Everything else is copied as it stands: keys, their order and types, and all tensors that no adapter changes.
"""

from __future__ import annotations

import dataclasses
import math
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from edgellm.convert.conversion import Converted
from edgellm.convert.encode import EncodeError, encode
from edgellm.convert.writer import PIECE_VALUES, new_file, refuse_existing
from edgellm.errors import EdgeLLMError, InvalidSettingError, UnsupportedModelError
from edgellm.gguf import GGUFFile, TensorInfo, TensorType, open_gguf
from edgellm.lora import Adapter, AdapterFile, open_adapters
from edgellm.splitting import SPLIT_KEYS

Progress = Callable[[str, int, int], None]
"""Called with the stage "merge", bytes done and bytes in all."""

MERGE_TYPES = ("auto", "f32", "f16", "bf16", "q8_0")
"""Types of the weights that change; ``auto``: the type they have."""


def merge(
    model: str | os.PathLike[str],
    adapters: Sequence[Adapter],
    output: str | os.PathLike[str],
    kind: str = "auto",
    force: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Write a model with adapters merged into it.

    Args:
        model: the GGUF file, or any part of a split one.
        adapters: in GGUF files, with their scales; several that change one weight are added up.
        output: the file to write.
        kind: type of the weights that change, one of ``MERGE_TYPES``.
        force: replace a file that is there.
        progress: told how far it is.

    Memory is bounded by the matrices of the adapters and some rows of the model.

    Raises:
        ModelNotFoundError: a file is not there.
        CorruptFileError: a file breaks the rules of its format.
        UnsupportedModelError: an adapter does not fit, or weights are of a type that cannot be written.
        EdgeLLMError: the output exists, or cannot be written.
    """
    if kind not in MERGE_TYPES:
        raise InvalidSettingError(f"type {kind!r} is not known here", f"known: {', '.join(MERGE_TYPES)}")
    if not adapters:
        raise InvalidSettingError("no adapter to merge was given", "name one or more after the model")
    began, path = time.monotonic(), Path(output)
    refuse_existing(path, force)
    with ExitStack() as cleanup:
        file = cleanup.enter_context(open_gguf(model))
        opened = open_adapters(adapters, file, cleanup)
        tensors = [_planned(info, file, opened, kind) for info in file.tensors.values()]
        size = _data_bytes(tensors, file.alignment)
        with new_file(path, size, force) as temporary, temporary.open("xb") as out:
            for piece in _pieces(file, opened, tensors):
                out.write(piece)
                if progress is not None:
                    progress("merge", min(out.tell(), size), size)
            out.flush()
            os.fsync(out.fileno())
        changed = {tensor.type.name.lower() for tensor, by in tensors if by}
        count = sum(math.prod(tensor.shape) for tensor, _ in tensors)
        architecture = str(file.metadata.get("general.architecture"))
    seconds = time.monotonic() - began
    return Converted(
        path, architecture, "/".join(sorted(changed)), len(tensors), count, path.stat().st_size, seconds, ()
    )


_Planned = tuple[TensorInfo, list[AdapterFile]]
"""A tensor as it will be, and the adapters that change it."""


def _planned(info: TensorInfo, file: GGUFFile, adapters: Sequence[AdapterFile], kind: str) -> _Planned:
    changing = [adapter for adapter in adapters if info.name in adapter.deltas]
    if not changing:
        return info, []
    if info.type.name.lower() not in MERGE_TYPES and kind == "auto":
        raise UnsupportedModelError(
            f"weights of type {info.type.name}, such as {info.name}, can be read but not written",
            "give --type q8_0 (or f16, bf16, f32) for the weights that change",
        )
    if file.tensors.get(f"{info.name.removesuffix('.weight')}.scale") is not None:
        raise UnsupportedModelError(f"{info.name} has a scale of its own, into which nothing can be merged")
    wanted = info.type if kind == "auto" else TensorType[kind.upper()]
    if info.columns % wanted.block_size:
        wanted = TensorType.F16
    row_bytes = info.columns // wanted.block_size * wanted.block_bytes
    return dataclasses.replace(info, type=wanted, row_bytes=row_bytes, size_bytes=info.rows * row_bytes), changing


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _data_bytes(tensors: Sequence[_Planned], alignment: int) -> int:
    return sum(_padded(tensor.size_bytes, alignment) for tensor, _ in tensors)


def _header(file: GGUFFile, tensors: Sequence[_Planned]) -> bytes:
    keys = [file.stored_key(name) for name in file.metadata if name not in SPLIT_KEYS]
    parts = [b"GGUF" + struct.pack("<IQQ", file.version, len(tensors), len(keys)), *keys]
    offset = 0
    for tensor, _ in tensors:
        name, lengths = tensor.name.encode(), tensor.shape[::-1]
        parts.append(struct.pack("<Q", len(name)) + name)
        parts.append(struct.pack(f"<I{len(lengths)}QIQ", len(lengths), *lengths, int(tensor.type), offset))
        offset += _padded(tensor.size_bytes, file.alignment)
    return b"".join(parts)


def _pieces(file: GGUFFile, adapters: Sequence[AdapterFile], tensors: Sequence[_Planned]) -> Iterator[bytes]:
    """The bytes of the file from beginning to end."""
    header = _header(file, tensors)
    yield header + bytes(_padded(len(header), file.alignment) - len(header))
    for tensor, changing in tensors:
        step = max(1, PIECE_VALUES // max(1, tensor.columns))
        for first in range(0, tensor.rows, step):
            end = min(tensor.rows, first + step)
            if changing:
                yield _merged_rows(file, tensor, changing, first, end)
            else:
                yield file.raw(tensor.name)[first:end].tobytes()
        if tensor.type.tail_bytes:  # of I2_S: the scale of the whole tensor, which raw() leaves out
            tail = struct.pack("<f", file.scale(tensor.name))
            yield tail + bytes(tensor.type.tail_bytes - len(tail))
        file.release(tensor.name)
        yield bytes(_padded(tensor.size_bytes, file.alignment) - tensor.size_bytes)


def _merged_rows(file: GGUFFile, tensor: TensorInfo, changing: Sequence[AdapterFile], first: int, end: int) -> bytes:
    values = file.decode(tensor.name, slice(first, end))
    for adapter in changing:
        values += adapter.product(tensor.name, slice(first, end)) * adapter.scale
    try:
        return encode(values, "F32", tensor.type).tobytes()
    except EncodeError as error:
        raise EdgeLLMError(f"tensor {tensor.name} {error.message}", "give --type bf16 or f32") from None
