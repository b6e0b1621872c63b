"""Memory of the paged cache, as `edgellm.kernels.cache` lays it out."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import InvalidSettingError, OutOfMemoryError
from edgellm.graph import CacheLayer
from edgellm.platforms.batch import BLOCK_TOKENS

CACHE_TYPES = ("f16", "q8_0", "f32")
_BYTES = {"f16": 2, "f32": 4}


@dataclass(frozen=True)
class BlockLayout:
    """Sizes in bytes of one layer's part of a block of 32 tokens."""

    key_width: int
    value_width: int
    head_key_bytes: int
    head_value_bytes: int
    values_offset: int
    block_bytes: int

    @staticmethod
    def of(layer: CacheLayer, cache_type: str) -> BlockLayout:
        """The layout of a layer; InvalidSettingError if the type does not fit its head size."""
        if cache_type not in CACHE_TYPES:
            raise InvalidSettingError(f"cache_type is {cache_type!r}", f"use one of {', '.join(CACHE_TYPES)}")
        key, value = layer.key_dim, layer.value_dim
        if layer.values_in_keys:
            return BlockLayout._of_rows(layer, cache_type)
        if cache_type != "q8_0":
            size = BLOCK_TOKENS * _BYTES[cache_type]
            head_key, head_value = size * key, size * (-(-value // 16) * 16)
        else:
            if key % 32 or value % 32:
                raise InvalidSettingError(
                    f"cache_type q8_0 needs heads that are multiples of 32, this model's are {key} and {value}",
                    "use cache_type f16",
                )
            head_key, head_value = 34 * key * BLOCK_TOKENS // 32, 34 * value * BLOCK_TOKENS // 32
        offset = layer.kv_heads * head_key
        return BlockLayout(key, value, head_key, head_value, offset, offset + layer.kv_heads * head_value)

    @staticmethod
    def _of_rows(layer: CacheLayer, cache_type: str) -> BlockLayout:
        """Keys alone, as rows, whose first numbers are the values: both are read at the same place."""
        key = layer.key_dim
        if cache_type == "q8_0" and key % 32:
            raise InvalidSettingError(
                f"cache_type q8_0 needs heads that are multiples of 32, this model's are {key}", "use cache_type f16"
            )
        row = 34 * key // 32 if cache_type == "q8_0" else _BYTES[cache_type] * (-(-key // 16) * 16)
        head = BLOCK_TOKENS * row
        return BlockLayout(key, layer.value_dim, head, head, 0, layer.kv_heads * head)


class CacheMemory:
    """One region per layer, reserved at once; the system gives pages as they are first written."""

    def __init__(self, layers: tuple[CacheLayer, ...], cache_type: str) -> None:
        self._layouts = [BlockLayout.of(layer, cache_type) for layer in layers]
        self._regions: list[NDArray[np.uint8]] = []
        self.blocks = 0
        # Stand for a layer's region where the planner looks for conflicts between operations.
        self._markers: list[Any] = [SimpleNamespace(data=object()) for _ in layers]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, all layers."""
        return sum(layout.block_bytes for layout in self._layouts)

    @property
    def total_bytes(self) -> int:
        """Bytes reserved."""
        return self.blocks * self.block_bytes

    def layer(self, number: int) -> Any:
        """The planner's name for a layer's region."""
        return self._markers[number]

    def reserve(self, blocks: int) -> None:
        """Replace the cache by an empty one."""
        self._regions = []
        self.blocks = 0
        try:
            for layout in self._layouts:
                memory = mmap.mmap(-1, max(1, blocks * layout.block_bytes))
                self._regions.append(np.frombuffer(memory, np.uint8))
        except (OSError, ValueError, OverflowError, MemoryError) as error:
            self._regions = []
            raise OutOfMemoryError(
                f"a cache of {blocks * BLOCK_TOKENS} tokens needs {blocks * self.block_bytes:,} bytes",
                "choose a smaller --context or --cache-type q8_0",
            ) from error
        self.blocks = blocks

    def address(self, layer: int) -> int:
        """Of a layer's first block."""
        return self._regions[layer].ctypes.data

    def keys(self, layer: int, first: int, blocks: int, head: int) -> NDArray[np.float32]:
        """A head's keys (tokens, key width) of neighbouring blocks; not of type q8_0."""
        layout = self._layouts[layer]
        kind = np.float16 if layout.head_key_bytes == 2 * BLOCK_TOKENS * layout.key_width else np.float32
        size = layout.block_bytes
        region = self._regions[layer][first * size : (first + blocks) * size].reshape(blocks, size)
        part = region[:, head * layout.head_key_bytes : (head + 1) * layout.head_key_bytes]
        columns = np.ascontiguousarray(part).view(kind).reshape(blocks, layout.key_width, BLOCK_TOKENS)
        return columns.transpose(0, 2, 1).reshape(-1, layout.key_width).astype(np.float32)

    def copy(self, source: int, destination: int) -> None:
        """Copy one block, all layers."""
        for layout, region in zip(self._layouts, self._regions, strict=True):
            size = layout.block_bytes
            region[destination * size : (destination + 1) * size] = region[source * size : (source + 1) * size]

    def clear(self) -> None:
        """Give the memory back."""
        self._regions = []
        self.blocks = 0
