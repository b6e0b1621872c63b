"""How activations lie for products of many rows; no Numba here, so that executors can use it cheaply.

Rows are cut in tiles of eight. A tile holds, for each 32 columns, one piece of 384 bytes: 32 int8 codes of each row,
then float32 of each row: scale, scale times the sum of the codes, and the same of the first 16 and the last 16 codes
(see `edgellm.kernels.quantize`). A kernel so reaches all it needs from one address that moves on through memory. Where
remainders are wanted, a tile holds four rows, each followed by its remainder.
"""

from __future__ import annotations

from dataclasses import dataclass

ROWS = 8
FEWEST_ROWS = 9  # of steps for which tiles pay: the last one is filled up with zeros
PIECE_BYTES = 384
SCALES = 32 * ROWS  # where the scales of the first row stand in a piece, and how far the next kind is from them
KIND = 4 * ROWS
CACHED_BYTES = 400 << 10  # of activations that stay in the second-level cache while all weights pass, roughly
# What is multiplied at a time, see `edgellm.kernels.matmul_tiles`:
TILES = 16  # or fewer: with eight, unpacking took a twentieth more,
PIECES = 8  # or fewer at the end of a row: of panels of unpacked weights,
GROUPS = 2  # or one, where a processor has few registers,
PANEL_PIECE = 12 * 64  # bytes of the longest piece of a panel
PANEL_BYTES = PIECES * PANEL_PIECE
SUMS_BYTES = TILES * ROWS * GROUPS * 64
SCRATCH_BYTES = GROUPS * PANEL_BYTES + SUMS_BYTES  # of each thread


@dataclass(frozen=True)
class InputLayout:
    """Where activations lie: bytes from one block of 32 columns to the next, of codes and of scales, and where among
    the scales a block's sum is, that of its first half, and that of its second."""

    codes_step: int
    scales_step: int
    total: int
    first_half: int
    second_half: int


BY_ROW = InputLayout(32, 16, 4, 8, 12)
BY_TILE = InputLayout(PIECE_BYTES, PIECE_BYTES, KIND, 2 * KIND, 3 * KIND)


def rows_of_tile(fine: bool) -> int:
    """Activation rows that one tile holds."""
    return ROWS // 2 if fine else ROWS


def tile_bytes(columns: int) -> int:
    """From one tile to the next."""
    return columns // 32 * PIECE_BYTES


def input_bytes(rows: int, columns: int, fine: bool) -> int:
    """Of the tiles of so many rows, and those that fill them up to a multiple of eight."""
    return -(-rows // ROWS) * ROWS // rows_of_tile(fine) * tile_bytes(columns)


def tiles_at_once(columns: int) -> int:
    """Tiles that are multiplied by a group of weights before the next group comes."""
    return max(CACHED_BYTES // tile_bytes(columns), TILES)
