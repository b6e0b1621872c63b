"""Writing a GGUF file tensor by tensor: nothing appears under its name before it is complete.

The layout is that of the gguf package's writer, which writes keys and descriptions; the data goes through here, so that
no tensor need be in memory as a whole.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgellm.convert.builder import Key
from edgellm.convert.encode import Bytes, EncodeError, encode
from edgellm.convert.tensors import LazyTensor
from edgellm.errors import EdgeLLMError
from edgellm.gguf import TensorType
from edgellm.memory import format_bytes

PIECE_VALUES = 4 << 20
"""Values that are loaded at once: 16 MB as float32."""
SPARE_BYTES = 64 << 20

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Planned:
    """A tensor with the type it gets."""

    name: str
    tensor: LazyTensor
    type: TensorType

    @property
    def shape(self) -> tuple[int, ...]:
        """In values: bytes of blocks are counted as the values they hold."""
        *lead, last = self.tensor.shape
        if self.tensor.kind == "U8":
            last = last // self.type.block_bytes * self.type.block_size
        return (*lead, last)

    @property
    def size_bytes(self) -> int:
        """Without padding."""
        count = 1
        for length in self.shape:
            count *= length
        return count // self.type.block_size * self.type.block_bytes

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Ranges of the first dimension that are loaded at once."""
        length = self.tensor.shape[0]
        item = max(1, self.tensor.size // max(1, length))
        step = self.tensor.step * max(1, PIECE_VALUES // (item * self.tensor.step))
        for start in range(0, length, step):
            yield start, min(length, start + step)

    def encoded(self, start: int, stop: int) -> Bytes:
        """The bytes of a range."""
        try:
            return encode(self.tensor.load(start, stop), self.tensor.kind, self.type)
        except EncodeError as error:
            raise EncodeError(f"tensor {self.name} {error.message}", error.hint) from None


@contextmanager
def new_file(path: Path, size: int, force: bool) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; when the block ends well, the file gets its own name.

    Args:
        path: the file to be.
        size: bytes it will take.
        force: replace a file that is there.

    Raises:
        EdgeLLMError: the file exists, there is no such folder, or the disk has too little room.
    """
    folder = path.parent
    if not folder.is_dir():
        raise EdgeLLMError(f"there is no folder {folder}", "make it, or choose another --output")
    refuse_existing(path, force)
    free = shutil.disk_usage(folder).free
    if free < size + SPARE_BYTES:
        raise EdgeLLMError(
            f"the file takes {format_bytes(size)}, {format_bytes(free)} are free in {folder}",
            "free some, or choose another --output or --type",
        )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        refuse_existing(path, force)
        temporary.replace(path)
        _sync_folder(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise EdgeLLMError(
                f"writing {path} failed: {os.strerror(error.errno)}", "free some, or choose another --output"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def refuse_existing(path: Path, force: bool) -> None:
    """Raise EdgeLLMError if there is a file and it must not be replaced."""
    if path.is_dir():
        raise EdgeLLMError(f"{path} is a folder", "name a file with --output")
    if path.exists() and not force:
        raise EdgeLLMError(f"{path} exists already", "choose another --output, or replace it with --force")


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_file(
    path: Path,
    architecture: str,
    keys: Mapping[str, Key],
    tensors: Sequence[Planned],
    threads: int,
    progress: Progress | None = None,
) -> int:
    """Write a file from beginning to end; return its size in bytes.

    Rows are read, converted and written some megabytes at a time, in ``threads`` threads.
    """
    import gguf

    writer: Any = gguf.GGUFWriter(path, architecture)
    for name, key in keys.items():
        _add(writer, name, key)
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType(int(tensor.type))
        # The element type is only looked at where the other is not given.
        writer.add_tensor_info(tensor.name, tensor.shape, _NO_TYPE, tensor.size_bytes, kind)
    stream = _Stream(tensors, threads, progress)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(_TensorData(tensor, stream))
        for file in writer.fout:
            file.flush()
            os.fsync(file.fileno())
    finally:
        stream.close()
        writer.close()
    return path.stat().st_size


_NO_TYPE: Any = None


class _TensorData:
    """Stands for a tensor's array where the writer wants one: makes its bytes as they are written."""

    def __init__(self, tensor: Planned, stream: _Stream) -> None:
        self.nbytes = tensor.size_bytes
        self._tensor, self._stream = tensor, stream

    def tofile(self, file: IO[bytes]) -> None:
        self._stream.write(self._tensor, file)


class _Stream:
    """Loads and encodes ahead of the writing, a few pieces at most."""

    def __init__(self, tensors: Sequence[Planned], threads: int, progress: Progress | None) -> None:
        self._work = ((tensor, start, stop) for tensor in tensors for start, stop in tensor.pieces())
        self._counts = {tensor.name: sum(1 for _ in tensor.pieces()) for tensor in tensors}
        self._total = sum(tensor.size_bytes for tensor in tensors)
        self._written = 0
        self._progress = progress
        self._pool = ThreadPoolExecutor(threads)
        self._ahead: deque[tuple[Future[Bytes], int]] = deque()
        self._threads = threads

    def _fill(self) -> None:
        """Begin pieces until one for each thread is under way; large ones only one at a time."""
        while len(self._ahead) <= self._threads:
            if self._ahead and sum(size for _, size in self._ahead) > self._threads * PIECE_VALUES:
                return
            work = next(self._work, None)
            if work is None:
                return
            tensor, start, stop = work
            size = (stop - start) * max(1, tensor.tensor.size // max(1, tensor.tensor.shape[0]))
            self._ahead.append((self._pool.submit(tensor.encoded, start, stop), size))

    def write(self, tensor: Planned, file: IO[bytes]) -> None:
        for _ in range(self._counts[tensor.name]):
            self._fill()
            data = self._ahead[0][0].result()
            self._ahead.popleft()
            file.write(data.data)
            self._written += data.nbytes
            if self._progress is not None:
                self._progress(self._written, self._total)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _add(writer: Any, name: str, key: Key) -> None:
    import gguf

    kinds = gguf.GGUFValueType
    scalars = {
        "u32": kinds.UINT32,
        "i32": kinds.INT32,
        "f32": kinds.FLOAT32,
        "string": kinds.STRING,
        "bool": kinds.BOOL,
    }
    arrays = {"strings": kinds.STRING, "i32s": kinds.INT32, "f32s": kinds.FLOAT32, "bools": kinds.BOOL}
    if key.type in scalars:
        writer.add_key_value(name, key.value, scalars[key.type])
    else:
        writer.add_key_value(name, key.value, kinds.ARRAY, sub_type=arrays[key.type])
