"""Calling the AMX kernels: in software everywhere, and on the hardware where there is some."""

from __future__ import annotations

from typing import Any

import numpy as np
from kernel_calls import Array, Kernels, Record, outlined, padded
from numpy.typing import NDArray

from edgellm.kernels import amx_layout
from edgellm.kernels.packing import PackedMatrix, aligned_empty
from edgellm.kernels.records import AMX_INPUT, MATMUL_AMX

JUNK = 0xFF  # what memory holds that nobody wrote: NaN, wherever it were taken for a number


def to_bfloats(values: Array) -> NDArray[np.float32]:
    """Rounded to bfloat16, to nearest even; denormal numbers count as zero."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)
    rounded = np.where(np.isnan(values), np.float32(np.nan), rounded)
    return np.where(np.abs(rounded) < 2.0**-126, np.float32(0), rounded)


def in_tiles(kernels: Kernels, x: NDArray[np.float32], threads: int = 1) -> NDArray[np.uint16]:
    """Activations (rows, columns) as the products take them."""
    rows, columns = x.shape
    made = np.full(amx_layout.input_bytes(rows, columns), JUNK, np.uint8).view(np.uint16)
    record = Record(
        AMX_INPUT, rows=np.array([rows]), columns=columns, input=x, input_stride=x.strides[0], output=made
    )  # fmt: skip
    kernels.call("amx_input.bfloat16", record, threads)
    return made


def multiply(
    kernels: Kernels, matrix: PackedMatrix, x: NDArray[np.float32], mode: str, threads: int = 1, bias: Any = None,
    before: Any = None,
) -> NDArray[np.float32]:  # fmt: skip
    """``x @ weights.T`` by the kernel of the weights' format; ``mode`` is "emulated" or "hardware"."""
    rows = len(x)
    output, untouched = outlined(rows, padded(matrix.rows))
    more: dict[str, int | Array] = {}
    if bias is not None:
        more["bias"] = np.zeros(padded(matrix.rows), np.float32)
        more["bias"][: matrix.rows] = bias
    if before is not None:
        output[:, : matrix.rows] = before
        more["accumulate"] = 1
    stride = -(-amx_layout.scratch_bytes(rows) // 64) * 64
    scratch = aligned_empty(threads * stride + 64)
    scratch[:] = JUNK
    record = Record(
        MATMUL_AMX, rows=np.array([rows]), weights=matrix.data, groups=matrix.groups, columns=matrix.columns,
        input=in_tiles(kernels, x, threads), output=output, output_stride=output.strides[0],
        group_bytes=matrix.format.group_bytes(matrix.blocks), scratch=scratch, scratch_stride=stride, **more,
    )  # fmt: skip
    kernels.call(amx_layout.kernel_name(matrix.format.name, mode == "emulated"), record, threads)
    assert untouched()
    assert (scratch[threads * stride :] == JUNK).all()
    return output[:, : matrix.rows]
