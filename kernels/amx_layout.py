"""Sizes of what the AMX kernels read and write; no Numba here, so that executors can use it cheaply."""

from __future__ import annotations

from edgellm.kernels.packing import FORMATS

TILE_BYTES = 1024
STEP = 32  # values along a row that one product of bfloat16 tiles covers
ROW_BLOCK = 32  # activation rows of two tiles
STATE_BYTES = 64 + 8 * TILE_BYTES  # a configuration and, for the emulation, the tiles
CHUNK = 512  # values of a panel of weights that are unpacked at once: 32 kB, which the first-level cache holds
LARGEST_CHUNK = 576  # the last one may be somewhat larger, so that no small one remains
BFLOAT_FORMATS = frozenset(FORMATS) - {"f32", "f16"}  # those would lose more than their user expects


def padded_rows(rows: int) -> int:
    """Whole blocks of rows."""
    return -(-rows // ROW_BLOCK) * ROW_BLOCK


def input_bytes(rows: int, columns: int) -> int:
    """Of activations as bfloat16 in the order of tiles (see `edgellm.kernels.amx_input`)."""
    return 2 * padded_rows(rows) * columns


def scratch_bytes(rows: int) -> int:
    """Of each thread's memory for products of up to so many rows: state, results of a panel, unpacked panel."""
    return STATE_BYTES + 2 * ROW_BLOCK * 2 * padded_rows(rows) + 2 * 2 * 16 * LARGEST_CHUNK


def supports(packed_format: str, columns: int) -> bool:
    """Whether the AMX kernels multiply by weights of that format and row length."""
    return packed_format in BFLOAT_FORMATS and columns % STEP == 0


def kernel_name(packed_format: str, emulated: bool) -> str:
    """The kernel that multiplies by weights of a packed format."""
    return f"matmul_amx.{packed_format}_emulated" if emulated else f"matmul_amx.{packed_format}"
