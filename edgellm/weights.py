"""The weight store: the tensors of a model as they lie in its file, decoded or handed out raw on demand."""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgellm.gguf import GGUFFile, TensorInfo


class WeightStore:
    """Weights by name. It keeps no copies: what it decodes belongs to the caller.

    What does stay in memory are pages of the mapped file that were read; ``release`` gives them back, and
    ``resident_bytes`` counts those of tensors read since.
    """

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self._touched: dict[str, int] = {}  # tensor name: bytes of it that were read
        self._lock = threading.Lock()

    @property
    def names(self) -> Collection[str]:
        """Names of all tensors."""
        return self._file.tensors.keys()

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._file.tensors

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor; KeyError if there is none."""
        return self._file.tensors[name]

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The tensor's bytes as they lie in the file: (rows, bytes of a row), a read-only view of the mapping."""
        self._note(name, self.info(name).size_bytes)
        return self._file.raw(name)

    def scale(self, name: str) -> float:
        """What the values of a tensor are multiplied by beyond what its rows say: see `GGUFFile.scale`."""
        return self._file.scale(name)

    def float32(self, name: str) -> NDArray[np.float32]:
        """The whole tensor decoded, in its shape."""
        self._note(name, self.info(name).size_bytes)
        return self._file.decode(name)

    def rows(self, name: str, ids: NDArray[np.integer]) -> NDArray[np.float32]:
        """Chosen rows decoded: (len(ids), width)."""
        self._note(name, len(ids) * self.info(name).row_bytes)
        return self._file.decode(name, ids)

    def reader(self, name: str) -> RowReader:
        """What decodes rows of a tensor again and again."""
        return RowReader(self, name)

    def release(self, name: str | None = None) -> None:
        """Give the pages of a tensor, or of all, back to the system; reading it again still works."""
        self._file.release(name)
        with self._lock:
            if name is None:
                self._touched.clear()
            else:
                self._touched.pop(name, None)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the mapped file that reading has brought into memory and ``release`` has not given back.

        An upper bound: the system may have dropped clean pages by itself.
        """
        with self._lock:
            return sum(self._touched.values())

    def _note(self, name: str, count: int) -> None:
        size = self.info(name).size_bytes
        with self._lock:
            self._touched[name] = min(size, self._touched.get(name, 0) + count)


class RowReader:
    """Decodes rows of one tensor into memory that is there already; a single row, as each token needs, in few calls.

    Args:
        store: holds the tensor.
        name: of the tensor, (rows, columns).

    Attributes:
        name, rows, columns: of the tensor.

    Raises:
        KeyError: no such tensor.
    """

    def __init__(self, store: WeightStore, name: str) -> None:
        from edgellm.gguf.codecs import block_decoder

        info = store.info(name)
        self._store, self.name = store, name
        self.rows, self.columns = info.rows, info.shape[-1]
        self._decode = block_decoder(info.type)
        self._scale = np.float32(store.scale(name))
        self._block = info.type.block_size
        self._blocks = store.raw(name).reshape(info.rows, -1, info.type.block_bytes)

    def read(self, ids: NDArray[np.integer], out: NDArray[np.float32]) -> None:
        """Decode rows.

        Args:
            ids: which rows, (n,).
            out: float32, (n, columns), its rows contiguous.
        """
        if len(ids) != 1:
            out[:] = self._store.rows(self.name, ids)
            return
        row = out[0]
        with np.errstate(all="ignore"):  # see `edgellm.gguf.codecs.decode`
            self._decode(self._blocks[ids[0]], row.reshape(-1, self._block))
            if self._scale != 1:
                row *= self._scale
