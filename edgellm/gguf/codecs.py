"""The reference codec: stored blocks to float32, for every tensor type, bit for bit as the format defines it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.gguf.types import TensorType

Bytes = NDArray[np.uint8]
Float32 = NDArray[np.float32]

BlockDecoder = Callable[[Bytes, Float32], None]
"""Decodes blocks (uint8, (n, block_bytes), C order) into the float32 array (n, block_size) given as second argument."""

# Values decoded at once: large enough to hide the cost of each NumPy call,
# small enough for the intermediate arrays to stay in the second-level cache.
CHUNK_VALUES = 1 << 16

_MODULES: dict[str, tuple[TensorType, ...]] = {
    "codecs_plain": (
        TensorType.F32,
        TensorType.F16,
        TensorType.BF16,
        TensorType.F64,
        TensorType.I8,
        TensorType.I16,
        TensorType.I32,
        TensorType.I64,
    ),
    "codecs_legacy": (
        TensorType.Q4_0,
        TensorType.Q4_1,
        TensorType.Q5_0,
        TensorType.Q5_1,
        TensorType.Q8_0,
        TensorType.Q8_1,
    ),
    "codecs_k": (
        TensorType.Q2_K,
        TensorType.Q3_K,
        TensorType.Q4_K,
        TensorType.Q5_K,
        TensorType.Q6_K,
        TensorType.Q8_K,
    ),
    "codecs_iq": (
        TensorType.IQ1_S,
        TensorType.IQ1_M,
        TensorType.IQ2_XXS,
        TensorType.IQ2_XS,
        TensorType.IQ2_S,
        TensorType.IQ3_XXS,
        TensorType.IQ3_S,
        TensorType.IQ4_NL,
        TensorType.IQ4_XS,
    ),
    "codecs_small": (
        TensorType.Q1_0,
        TensorType.TQ1_0,
        TensorType.TQ2_0,
        TensorType.I2_S,
        TensorType.MXFP4,
        TensorType.NVFP4,
    ),
}

_MODULE_OF = {tensor_type: module for module, types in _MODULES.items() for tensor_type in types}


def block_decoder(tensor_type: TensorType) -> BlockDecoder:
    """The decoder of whole blocks of one type; its module is imported at first use."""
    module = import_module(f"edgellm.gguf.{_MODULE_OF[tensor_type]}")
    decoder: BlockDecoder = getattr(module, f"decode_{tensor_type.name.lower()}")
    return decoder


def decode(raw: NDArray[Any], tensor_type: TensorType) -> Float32:
    """Decode stored rows into float32.

    Args:
        raw: uint8, (rows, row_bytes) or any other leading dimensions; each row is a whole number of blocks.
        tensor_type: how the rows are stored.

    Returns:
        float32, (rows, columns), freshly allocated; of I2_S without the tensor's scale, which is not in its rows.
        Intermediate arrays stay below a few megabytes, whatever the size of the input.

    Raises:
        ValueError: the rows are not bytes or not whole blocks.
    """
    tensor_type = TensorType(tensor_type)
    if raw.dtype != np.uint8 or raw.ndim < 1:
        raise ValueError(f"decode() takes rows of uint8, not {raw.dtype} with {raw.ndim} dimensions")
    row_bytes = raw.shape[-1]
    if row_bytes % tensor_type.block_bytes:
        raise ValueError(
            f"rows of {row_bytes} bytes are not whole {tensor_type.name} blocks of {tensor_type.block_bytes} bytes"
        )
    columns = row_bytes // tensor_type.block_bytes * tensor_type.block_size
    out = np.empty((*raw.shape[:-1], columns), np.float32)
    if out.size == 0:
        return out
    # Values that are not numbers are legal here: an infinite scale times a
    # zero is a quiet NaN, as in every other implementation of the format.
    with np.errstate(all="ignore"):
        if raw.flags.c_contiguous:
            _decode_blocks(raw, out, tensor_type)
        else:
            # Some rows of a larger array: copied a few at a time.
            rows, values = raw.reshape(-1, row_bytes), out.reshape(-1, columns)
            step = max(1, CHUNK_VALUES // columns)
            for start in range(0, len(rows), step):
                piece = np.ascontiguousarray(rows[start : start + step])
                _decode_blocks(piece, values[start : start + step], tensor_type)
    return out


def _decode_blocks(raw: Bytes, out: Float32, tensor_type: TensorType) -> None:
    decoder = block_decoder(tensor_type)
    blocks = raw.reshape(-1, tensor_type.block_bytes)
    values = out.reshape(-1, tensor_type.block_size)
    step = max(1, CHUNK_VALUES // tensor_type.block_size)
    for start in range(0, blocks.shape[0], step):
        decoder(blocks[start : start + step], values[start : start + step])
