"""Memory and records of attention to whole sources with int8 keys: see `edgellm.kernels.whole_attention`."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import OutOfMemoryError
from edgellm.graph import CacheLayer
from edgellm.kernels import sound_records
from edgellm.platforms.cpu_parts import Buffer, Int64Array, make_record

TILE, GROUP, MOST_WIDTH = 8, 32, 256
"""Queries of a tile, keys scored together, and the widest head: those of the kernel."""
VALUE_TYPES = ("f32", "q8")


def supports(layer: CacheLayer) -> bool:
    """Whether the kernels know heads of this width."""
    return layer.key_dim == layer.value_dim and layer.key_dim % 32 == 0 and layer.key_dim <= MOST_WIDTH


@dataclass(frozen=True)
class WholeLayout:
    """Where the parts of a head lie that has so many keys.

    Attributes:
        heads, width, keys: of a layer, of a head, of a source.
        values: their type, one of `VALUE_TYPES`.
    """

    heads: int
    width: int
    keys: int
    values: str

    @property
    def padded_keys(self) -> int:
        return -(-self.keys // GROUP) * GROUP

    @property
    def head_bytes(self) -> int:
        """Codes of keys, their scales, values, their scales."""
        return self.value_scales + 4 * self.padded_keys

    @property
    def scales(self) -> int:
        return self.padded_keys * self.width

    @property
    def values_at(self) -> int:
        return self.scales + 4 * self.padded_keys

    @property
    def value_scales(self) -> int:
        return self.values_at + self.padded_keys * self.width * (4 if self.values == "f32" else 1)

    @property
    def source_bytes(self) -> int:
        return self.heads * self.head_bytes

    @property
    def scratch_bytes(self) -> int:
        """Of one thread: codes, scales and addresses of a tile, and its scores."""
        return TILE * (MOST_WIDTH + 8) + 64 + TILE * (4 * self.padded_keys + 64)

    def record(
        self, rows: int, queries: Buffer, output: Buffer, sources: NDArray[np.int32], scratch: Buffer, constants: int
    ) -> Int64Array:
        """What the kernels are told, but for where the memory is; ``rows`` is the address of their number."""
        return make_record(
            sound_records.WHOLE, rows=rows, heads=self.heads, width=self.width, keys=self.keys, queries=queries.address,
            queries_stride=queries.stride, output=output.address, output_stride=output.stride,
            sources=sources.ctypes.data, source_bytes=self.source_bytes, head_bytes=self.head_bytes,
            scales=self.scales, values=self.values_at, value_scales=self.value_scales, constants=constants,
            scratch=scratch.address, scratch_stride=scratch.stride,
        )  # fmt: skip


class WholeMemory:
    """Keys and values of sources, a region for each of ``layers``; the system gives pages as they are first written."""

    def __init__(self, layers: int, layout: WholeLayout) -> None:
        self.layout = layout
        self._regions: list[NDArray[np.uint8]] = []
        self._layers = layers
        # Stand for a layer's region where the planner looks for conflicts between operations.
        self._markers: list[Any] = [SimpleNamespace(data=object()) for _ in range(layers)]

    def layer(self, number: int) -> Any:
        """The planner's name for a layer's region."""
        return self._markers[number]

    def reserve(self, sources: int) -> None:
        """Make room for so many sources, in place of those before."""
        self._regions = []
        size = sources * self.layout.source_bytes
        try:
            for _ in range(self._layers):
                self._regions.append(np.frombuffer(mmap.mmap(-1, max(1, size)), np.uint8))
        except (OSError, ValueError, OverflowError, MemoryError) as error:
            self._regions = []
            raise OutOfMemoryError(
                f"{sources} windows of sound need {size * self._layers:,} bytes", "choose a smaller batch_size"
            ) from error

    def address(self, layer: int) -> int:
        """Of a layer's region."""
        return self._regions[layer].ctypes.data

    def keys(self, layer: int, source: int, head: int) -> NDArray[np.float32]:
        """A head's keys (keys, width), as the kernels take them."""
        layout = self.layout
        start = source * layout.source_bytes + head * layout.head_bytes
        region = self._regions[layer]
        codes = region[start : start + layout.scales].reshape(-1, layout.width // 4, 16, 4)
        rows = codes.transpose(0, 2, 1, 3).reshape(layout.padded_keys, layout.width).astype(np.float32) - 128
        scales = region[start + layout.scales : start + layout.values_at].view(np.float32)
        return (rows * scales[:, None])[: layout.keys]

    @property
    def total_bytes(self) -> int:
        """Reserved."""
        return sum(map(len, self._regions))

    def clear(self) -> None:
        """Give the memory back."""
        self._regions = []
