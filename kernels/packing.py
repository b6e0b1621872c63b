"""How weights lie in memory for the kernels: rows in groups of 16, one SIMD lane a row.

A group is a sequence of blocks along the rows, read from its first byte to its last, so that a processor's own
prefetcher sees one stream: with the scales of all blocks behind all codes, reading was half as fast. Each block is
its codes and then its scales; where that is no multiple of a cache line, two blocks share a unit, codes before scales:

- codes: vectors of 64 bytes; lane r (4 bytes) of a vector has four neighbouring bytes of row r's code section. The
  bytes are those of the file, so unpacking a vector gives the same four values of 16 rows.
- scales: for each scale of a block, 16 lanes of half precision or of bytes.

Rows beyond the last have scales of zero. Nothing is rounded: what a packed weight means is bit for bit what the file
says, but for the types in `CONVERSIONS`, which no kernel reads and which become Q8_0 or F32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
LANES = 16


@dataclass(frozen=True)
class Format:
    """A packed layout; sizes are per block of ``values`` values of 16 rows."""

    name: str
    values: int
    code_bytes: int
    scale_bytes: int
    table: tuple[int, ...] = ()

    @property
    def paired(self) -> bool:
        """Whether two blocks share a unit, so that units are whole cache lines and vectors straddle none."""
        return self.scale_bytes > 0 and (self.code_bytes + self.scale_bytes) % 64 > 0

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit: the codes of one block or of two, then their scales."""
        return (self.code_bytes + self.scale_bytes) * (2 if self.paired else 1)

    def group_bytes(self, blocks: int) -> int:
        """Bytes of a group of 16 rows, a multiple of 64."""
        units = -(-blocks // 2) if self.paired else blocks
        return -(-units * self.unit_bytes // 64) * 64

    def places(self) -> tuple[Callable[[int], int], Callable[[int], int]]:
        """Where in a group the codes of a block are, and where its scales: functions of the block's number.

        They are plain enough to be compiled into a kernel.
        """
        unit, code_bytes, scale_bytes = self.unit_bytes, self.code_bytes, self.scale_bytes
        if self.paired:
            return (
                lambda block: (block >> 1) * unit + (block & 1) * code_bytes,
                lambda block: (block >> 1) * unit + 2 * code_bytes + (block & 1) * scale_bytes,
            )
        return lambda block: block * unit, lambda block: block * unit + code_bytes


# The non-linear 4-bit codes of IQ4_NL and IQ4_XS, plus 128 to make them unsigned.
_IQ4_TABLE = tuple(value + 128 for value in (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))

FORMATS: Mapping[str, Format] = {
    layout.name: layout
    for layout in (
        Format("q8", 32, 512, 32),
        Format("q4", 32, 256, 32),
        Format("q4m", 32, 256, 64),
        Format("q5", 32, 320, 32),
        Format("q5m", 32, 320, 64),
        Format("iq4", 32, 256, 32, _IQ4_TABLE),
        Format("k2", 256, 1024, 320),
        Format("k3", 256, 1536, 320),
        Format("k4", 256, 2048, 320),
        Format("k5", 256, 2560, 320),
        Format("k6", 256, 3072, 320),
        Format("iq4x", 256, 2048, 160, _IQ4_TABLE),
        Format("t2", 256, 1024, 32),
        Format("f32", 1, 64, 0),
        Format("f16", 1, 32, 0),
        Format("bf16", 1, 32, 0),
    )
}
FLOAT_FORMATS = frozenset({"f32", "f16", "bf16"})


@dataclass(frozen=True)
class Section:
    """Bytes of a file's block that are interleaved: ``count`` elements of ``size`` bytes, as they are.

    ``to_scales`` says whether they go to the block's scales or to its codes, ``target`` where there. ``flip`` is
    exclusive-ored to every four bytes. ``unpack`` names what `edgellm.kernels.pack` does where the file holds them in
    a tighter form; count and size are then of no account.
    """

    source: int
    count: int
    target: int
    size: int = 4
    to_scales: bool = False
    flip: int = 0
    unpack: str = ""


@dataclass(frozen=True)
class Recipe:
    """How a tensor type of the file becomes a packed format."""

    format: str
    block_bytes: int
    sections: tuple[Section, ...]


def _half(source: int, target: int) -> Section:
    return Section(source, 1, target, size=2, to_scales=True)


def _small_scales(source: int, target: int, unpack: str = "") -> Section:
    return Section(source, 16, target, size=1, to_scales=True, unpack=unpack)


_FIFTH = 256  # where the fifth bits lie among the codes of q5 and q5m
RECIPES: Mapping[str, Recipe] = {
    "F32": Recipe("f32", 4, (Section(0, 1, 0),)),
    "F16": Recipe("f16", 2, (Section(0, 1, 0, size=2),)),
    "BF16": Recipe("bf16", 2, (Section(0, 1, 0, size=2),)),
    "Q8_0": Recipe("q8", 34, (Section(2, 8, 0, flip=0x80808080), _half(0, 0))),
    "Q4_0": Recipe("q4", 18, (Section(2, 4, 0), _half(0, 0))),
    "Q4_1": Recipe("q4m", 20, (Section(4, 4, 0), _half(0, 0), _half(2, 32))),
    "Q5_0": Recipe("q5", 22, (Section(6, 4, 0), Section(2, 1, _FIFTH, unpack="fifth"), _half(0, 0))),
    "Q5_1": Recipe("q5m", 24, (Section(8, 4, 0), Section(4, 1, _FIFTH, unpack="fifth"), _half(0, 0), _half(2, 32))),
    "IQ4_NL": Recipe("iq4", 18, (Section(2, 4, 0), _half(0, 0))),
    "Q2_K": Recipe("k2", 84, (Section(16, 16, 0), _half(80, 0), _half(82, 32), _small_scales(0, 64))),
    "Q3_K": Recipe("k3", 110, (Section(32, 16, 0), Section(0, 8, 1024), _half(108, 0), _small_scales(96, 64, "k3"))),
    "Q4_K": Recipe("k4", 144, (Section(16, 32, 0), _half(0, 0), _half(2, 32), _small_scales(4, 64, "k4"))),
    "Q5_K": Recipe(
        "k5", 176, (Section(48, 32, 0), Section(16, 8, 2048), _half(0, 0), _half(2, 32), _small_scales(4, 64, "k4"))
    ),
    "Q6_K": Recipe("k6", 210, (Section(0, 32, 0), Section(128, 16, 2048), _half(208, 0), _small_scales(192, 64))),
    "IQ4_XS": Recipe("iq4x", 136, (Section(8, 32, 0), _half(0, 0), _small_scales(2, 32, "iq4_xs"))),
    "TQ2_0": Recipe("t2", 66, (Section(0, 16, 0), _half(64, 0))),
}


def ternary_to_two_bits(raw: Bytes) -> Bytes:
    """TQ1_0 blocks (rows, blocks * 54) as TQ2_0 blocks (rows, blocks * 66): the same values, two bits each.

    A byte b holds base-3 digits as a fixed-point fraction b / 256: digit n is the whole part of 3 * (b * 3^n mod 256)
    / 256. Unpacking that in the inner loop costs more than the bandwidth it saves.
    """
    rows = raw.shape[0]
    blocks = raw.reshape(-1, 54)
    powers = np.array([1, 3, 9, 27, 81], np.uint8).reshape(1, -1, 1)

    def digits(part: Bytes, count: int) -> Bytes:
        scaled = (part[:, None, :] * powers[:, :count]).astype(np.uint16) * 3
        return (scaled >> 8).astype(np.uint8).reshape(len(part), -1)

    codes = np.concatenate(
        [digits(blocks[:, :32], 5), digits(blocks[:, 32:48], 5), digits(blocks[:, 48:52], 4)], axis=1
    )
    quarters = codes.reshape(-1, 2, 4, 32)  # (block, half, position of the two bits, byte)
    packed = quarters[:, :, 0] | (quarters[:, :, 1] << 2) | (quarters[:, :, 2] << 4) | (quarters[:, :, 3] << 6)
    return np.concatenate([packed.reshape(-1, 64), blocks[:, 52:54]], axis=1).reshape(rows, -1)


def i2_s_to_two_bits(raw: Bytes, scale: float) -> Bytes:
    """I2_S rows (rows, columns / 4) as TQ2_0 blocks, with the tensor's scale in half precision in every block.

    Both hold 32 values of two bits in 32 bytes at each of four places; I2_S has the first in the highest bits.
    """
    rows = raw.shape[0]
    codes = raw.reshape(-1, 64)
    turned = (codes >> 6) | ((codes >> 2) & 0x0C) | ((codes << 2) & 0x30) | (codes << 6)
    scales = np.full((len(codes), 1), scale, np.float16).view(np.uint8)
    return np.concatenate([turned, scales], axis=1).reshape(rows, -1)


# Types that no kernel reads: the integer codes, up to the largest, of which their values are multiples. With the right
# one Q8_0 holds them exactly but for the rounding of its half-precision scale.
_IQ2, _IQ3 = (8, 25, 43), (4, 12, 20, 28, 36, 44, 52, 62)
CONVERSIONS: Mapping[str, tuple[int, ...]] = {
    "IQ2_XXS": _IQ2, "IQ2_XS": _IQ2, "IQ2_S": _IQ2, "IQ3_XXS": _IQ3, "IQ3_S": (1, 3, 5, 7, 9, 11, 13, 15),
    "IQ1_S": (1, 7, 9), "IQ1_M": (1, 7, 9), "MXFP4": (1, 2, 3, 4, 6, 8, 12), "NVFP4": (1, 2, 3, 4, 6, 8, 12),
    "Q8_1": (127,), "Q8_K": (127,), "Q1_0": (1,),
}  # fmt: skip


def to_q8_0(values: NDArray[np.float32], largest: tuple[int, ...]) -> Bytes:
    """Rows of float32 (rows, columns), columns a multiple of 32, as Q8_0 blocks.

    Per block the code of the largest value is chosen among ``largest`` and 127 so that the error is least. Blocks that
    Q8_0 cannot hold, with values that are too large or no numbers, become NaN, so that they are seen in the result.
    """
    blocks = values.reshape(-1, 32)
    peak = np.abs(blocks).max(axis=1)
    best_error = np.full(len(blocks), np.inf, np.float32)
    best_scale = np.where(peak < 1, 0, np.nan).astype(np.float16)  # what stays if no scale is usable
    best_codes = np.zeros(blocks.shape, np.int8)
    for code in dict.fromkeys((*largest, 127)):
        with np.errstate(over="ignore"):
            scale = (peak / code).astype(np.float16)
        usable = np.isfinite(scale) & (scale > 0)
        wide = np.where(usable, scale, 1).astype(np.float32)[:, None]
        with np.errstate(invalid="ignore"):
            codes = np.clip(np.rint(blocks / wide), -127, 127)
            error = np.where(usable, np.abs(codes * wide - blocks).max(axis=1), np.inf)
        better = error < best_error
        best_error[better], best_scale[better] = error[better], scale[better]
        best_codes[better] = codes[better].astype(np.int8)
    packed = np.concatenate([best_scale[:, None].view(np.uint8), best_codes.view(np.uint8)], axis=1)
    return packed.reshape(values.shape[0], -1)


def aligned_empty(size: int, alignment: int = 64) -> Bytes:
    """Uninitialised bytes whose address is a multiple of ``alignment``."""
    return _aligned(np.empty(size + alignment, np.uint8), size, alignment)


def aligned_zeros(size: int, alignment: int = 64) -> Bytes:
    """The same, all zero; takes physical memory only where it is written to."""
    return _aligned(np.zeros(size + alignment, np.uint8), size, alignment)


def _aligned(memory: Bytes, size: int, alignment: int) -> Bytes:
    start = -memory.ctypes.data % alignment
    return memory[start : start + size]


@dataclass(frozen=True)
class PackedMatrix:
    """A weight matrix (rows, columns) as the kernels read it."""

    format: Format
    rows: int
    columns: int
    data: Bytes

    @property
    def groups(self) -> int:
        """Groups of 16 rows."""
        return -(-self.rows // LANES)

    @property
    def blocks(self) -> int:
        """Blocks along a row."""
        return self.columns // self.format.values


Run = Callable[[str, NDArray[np.int64]], None]
"""Runs a kernel by name on a record, on all threads."""


@dataclass(frozen=True)
class PackCall:
    """A kernel call that packs some groups of rows; ``source`` is kept, whose address stands in the record."""

    kernel: str
    record: NDArray[np.int64]
    source: Bytes


def pack_calls(raw: Bytes, type_name: str, columns: int, target: Bytes) -> list[PackCall]:
    """What packs rows ``raw`` (rows, bytes) into ``target``; the calls may run in any order and at once."""
    recipe = RECIPES[type_name]
    layout = FORMATS[recipe.format]
    blocks = columns // layout.values
    group_bytes = layout.group_bytes(blocks)
    whole = len(raw) // LANES
    parts = [(raw, whole, target.ctypes.data)] if whole else []
    if len(raw) > whole * LANES:  # the kernels know whole groups only
        last = np.zeros((LANES, raw.shape[1]), np.uint8)
        last[: len(raw) - whole * LANES] = raw[whole * LANES :]
        parts.append((last, 1, target.ctypes.data + whole * group_bytes))
    return [
        PackCall(
            f"pack.{type_name}",
            np.array([source.ctypes.data, source.strides[0], groups, blocks, address, group_bytes], np.int64),
            source,
        )
        for source, groups, address in parts
    ]


def pack_kernels(type_name: str) -> set[str]:
    """Names of the kernels that `pack_matrix` runs for a tensor type."""
    return {f"pack.{packed_type(type_name)}"}


def packed_type(type_name: str) -> str:
    """The tensor type whose packed format serves a type of the file: itself, or the one it is converted to."""
    if type_name in RECIPES:
        return type_name
    if type_name in ("TQ1_0", "I2_S"):
        return "TQ2_0"
    return "Q8_0" if type_name in CONVERSIONS else "F32"


def packed_bytes(type_name: str, rows: int, columns: int) -> int:
    """Bytes that a matrix of a type in `RECIPES` takes when packed."""
    layout = FORMATS[RECIPES[type_name].format]
    return -(-rows // LANES) * layout.group_bytes(columns // layout.values)


def pack_matrix(
    raw: Bytes,
    type_name: str,
    rows: int,
    columns: int,
    run: Run,
    allocate: Callable[[int], Bytes] = aligned_empty,
) -> PackedMatrix:
    """Pack a matrix whose rows are ``raw`` (rows, bytes), in the file's own encoding of a type in `RECIPES`.

    ``allocate`` gives memory for the result, on a cache line.
    """
    recipe = RECIPES[type_name]
    layout = FORMATS[recipe.format]
    blocks = columns // layout.values
    if blocks * layout.values != columns or raw.shape != (rows, blocks * recipe.block_bytes):
        raise ValueError(f"{rows} rows of {columns} {type_name} values do not fit {raw.shape} bytes")
    matrix = PackedMatrix(layout, rows, columns, allocate(packed_bytes(type_name, rows, columns)))
    for call in pack_calls(raw, type_name, columns, matrix.data):
        run(call.kernel, call.record)
    return matrix
