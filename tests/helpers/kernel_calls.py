"""Calling compiled kernels one by one, in memory whose ends are guarded."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.errors import InvalidSettingError
from edgellm.folders import kernels_folder
from edgellm.kernels import tile_layout
from edgellm.kernels.library import KernelLibrary
from edgellm.kernels.packing import (
    FLOAT_FORMATS,
    FORMATS,
    LANES,
    RECIPES,
    PackedMatrix,
    aligned_empty,
    pack_matrix,
    packed_type,
    ternary_to_two_bits,
)
from edgellm.kernels.records import MATMUL, MATMUL_TILES, QUANTIZE, TILE_INPUT
from edgellm.kernels.target import target_for
from edgellm.platforms.threads import KERNELS as TEAM_KERNELS
from edgellm.platforms.threads import ThreadTeam

TIERS = ("plain", "avx2", "avx512", "native")
UNIT = 2.0**-24  # largest relative error of one float32 rounding
TINY = 2.0**-126  # smallest normal float32: what is below may count as zero
SENTINEL = 0x5A  # bytes that no kernel may touch

# Compiled in one go, by several processes, when an instruction set is first used: one by one would take much longer.
_ON_ALL_TIERS = (
    *(f"floats.{name}" if name in FLOAT_FORMATS else f"matmul.{name}" for name in FORMATS),
    *("quantize.all", *TEAM_KERNELS),
    *(f"pack.{name}" for name in RECIPES),
)
_TILES = (
    *(f"matmul_tiles.{name}" for name in FORMATS if name not in FLOAT_FORMATS),
    *("tile_input.int8", "tile_input.int8_fine", "tile_input.codes"),
)
_CACHE = ("cache.f16", "cache.q8_0", "attention.f16", "attention.q8_0")
_ELSEWHERE = {
    "plain": (*_CACHE, "activation.add"),
    "avx2": _TILES,
    "native": (
        *_CACHE,
        *_TILES,
        *(f"matmul_tiles.{name}_fine" for name in FORMATS if name not in FLOAT_FORMATS),
        *(f"matmul.{name}_fine" for name in FORMATS if name not in FLOAT_FORMATS),
        *(f"activation.{kind}" for kind in ("silu", "gelu_tanh", "relu_squared", "add", "scale", "softcap")),
        *("norm.rms", "norm.layer", "rope.interleaved", "rope.halves", "rows.select"),
    ),
}

Array = NDArray[Any]
_Function = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64
)


def gamma(roundings: int) -> float:
    """Largest relative error of a number that was rounded that often (Higham 2002, section 3.1)."""
    return roundings * UNIT / (1 - roundings * UNIT)


class Record:
    """A kernel's record. Fields are numbers or arrays, whose addresses are taken and which are kept alive."""

    def __init__(self, kind: Any, **fields: int | Array) -> None:
        self.values = np.zeros(len(kind), np.int64)
        self._kept = list(fields.values())
        for name, value in fields.items():
            number = value.ctypes.data if isinstance(value, np.ndarray) else int(value)
            self.values[getattr(kind, name) // 8] = number


@dataclass(frozen=True)
class Activations:
    """Quantized rows: the codes and, in a second part, those of the remainders, if there is one."""

    codes: NDArray[np.int8]  # (rows, parts, columns)
    scales: NDArray[np.float32]  # (rows, parts, blocks, 4): d and the block's sums

    @property
    def values(self) -> NDArray[np.float64]:
        """What the codes stand for, (rows, parts, columns)."""
        return self.codes * np.repeat(self.scales[..., 0].astype(np.float64), 32, axis=2)

    @property
    def fields(self) -> dict[str, int | Array]:
        """For the record of a kernel that writes or reads them."""
        return {
            "codes": self.codes, "codes_stride": self.codes.strides[0], "fine_codes": self._fine(self.codes),
            "scales": self.scales, "scales_stride": self.scales.strides[0], "fine_scales": self._fine(self.scales),
        }  # fmt: skip

    @staticmethod
    def _fine(array: Array) -> int:
        return array.strides[1] if array.shape[1] == 2 else 0

    @staticmethod
    def empty(rows: int, columns: int, fine: bool = False) -> Activations:
        """Room for rows of that width."""
        parts = 2 if fine else 1
        return Activations(
            np.zeros((rows, parts, columns), np.int8), np.zeros((rows, parts, columns // 32, 4), np.float32)
        )


class Kernels:
    """The kernels of one instruction set; what an earlier run compiled is taken from disk."""

    def __init__(self, instruction_set: str) -> None:
        self.library = KernelLibrary(target_for(instruction_set), kernels_folder())
        self.library.load(_ON_ALL_TIERS + _ELSEWHERE.get(instruction_set, ()))
        self._scratch = (ctypes.c_int64 * 8)()

    def call(self, name: str, record: Record | Array, threads: int = 1) -> None:
        """Call a kernel once for each thread number, one after the other."""
        values = record.values if isinstance(record, Record) else record
        address = self.library.load([name])[name]
        for thread in range(threads):
            self.call_at(address, values.ctypes.data, thread, threads)

    def call_at(self, address: int, record: int, thread: int, threads: int) -> None:
        """Call the kernel at an address with the record at another, as one of several threads."""
        place = ctypes.addressof(self._scratch)
        _Function(address)(place, place + 8, record, thread, threads)

    def call_flushing(self, name: str, record: Record) -> None:
        """Call a kernel as executors do: denormal numbers count as zero."""
        self.flushing_team.run(np.array([[self.library.load([name])[name], record.values.ctypes.data, 0, 0]], np.int64))

    @property
    def flushing_team(self) -> ThreadTeam:
        """A team of the calling thread alone."""
        return _team(self)

    def pack(self, raw: Array, type_name: str, columns: int, threads: int = 1) -> PackedMatrix:
        """Pack the rows of a matrix, in the encoding of a type of which a kernel exists."""
        if type_name == "TQ1_0":
            raw = ternary_to_two_bits(raw)
        run = lambda name, record: self.call(name, record, threads)  # noqa: E731
        return pack_matrix(raw, packed_type(type_name), len(raw), columns, run)

    def quantize(self, x: Array, fine: bool = False) -> Activations:
        """float32 activations (rows, columns) as codes and scales, with their remainders if ``fine``."""
        rows, columns = x.shape
        made = Activations.empty(rows, columns, fine)
        record = Record(
            QUANTIZE, rows=np.array([rows]), blocks=columns // 32, input=x, input_stride=x.strides[0], **made.fields
        )  # fmt: skip
        self.call("quantize.all", record)
        return made


def quantize_tiles(kernels: Kernels, x: Array, fine: bool = False) -> tuple[Array, Activations]:
    """float32 activations (rows, columns) as tiles, and what these hold as codes and scales."""
    rows, columns = x.shape
    parts, blocks = 2 if fine else 1, columns // 32
    whole = np.zeros((-(-rows // tile_layout.ROWS) * tile_layout.ROWS, columns), np.float32)
    whole[:rows] = x
    tiles, untouched = outlined(1, tile_layout.input_bytes(rows, columns, fine), np.uint8)
    record = Record(
        TILE_INPUT, rows=np.array([rows]), blocks=blocks, input=whole, input_stride=whole.strides[0], output=tiles
    )  # fmt: skip
    kernels.call(f"tile_input.int8{'_fine' if fine else ''}", record, threads=2)
    assert untouched()
    return tiles, held_by(tiles, rows, columns, parts)


def arrange_tiles(kernels: Kernels, made: Activations) -> tuple[Array, Activations]:
    """Codes and scales without remainders as tiles, and what these hold."""
    rows, columns = made.codes.shape[0], made.codes.shape[-1]
    whole = Activations.empty(-(-rows // tile_layout.ROWS) * tile_layout.ROWS, columns, False)
    whole.codes[:rows], whole.scales[:rows] = made.codes, made.scales
    tiles, untouched = outlined(1, tile_layout.input_bytes(rows, columns, False), np.uint8)
    record = Record(
        TILE_INPUT, rows=np.array([rows]), blocks=columns // 32, input=whole.codes, input_stride=whole.codes.strides[0],
        scales=whole.scales, scales_stride=whole.scales.strides[0], output=tiles,
    )  # fmt: skip
    kernels.call("tile_input.codes", record, threads=2)
    assert untouched()
    return tiles, held_by(tiles, rows, columns, 1)


def held_by(tiles: Array, rows: int, columns: int, parts: int) -> Activations:
    """The codes and scales in tiles, where each row has one part or two."""
    blocks = columns // 32
    pieces = tiles.reshape(-1, blocks, tile_layout.PIECE_BYTES)
    codes = pieces[..., : tile_layout.SCALES].reshape(len(pieces), blocks, tile_layout.ROWS, 32).view(np.int8)
    scales = pieces[..., tile_layout.SCALES :].copy().view(np.float32).reshape(len(pieces), blocks, 4, -1)
    return Activations(
        codes.transpose(0, 2, 1, 3).reshape(-1, parts, columns)[:rows],
        scales.transpose(0, 3, 1, 2).reshape(-1, parts, blocks, 4)[:rows],
    )


def matmul_tiles_record(matrix: PackedMatrix, tiles: Array, output: Array, rows: int, **more: int | Array) -> Record:
    """The record of ``output[row] = weights @ row`` for rows in tiles; ``output`` has room for whole tiles.

    It serves threads that run one after the other.
    """
    scratch = aligned_empty(tile_layout.SCRATCH_BYTES)
    return Record(
        MATMUL_TILES, rows=np.array([rows]), weights=matrix.data, groups=matrix.groups, blocks=matrix.blocks,
        input=tiles, tile_bytes=tile_layout.tile_bytes(matrix.columns), tiles_at_once=2, output=output,
        output_stride=output.strides[0], group_bytes=matrix.format.group_bytes(matrix.blocks), scratch=guarded(scratch),
        **more,
    )  # fmt: skip


@cache
def _team(kernels: Kernels) -> ThreadTeam:
    return ThreadTeam(kernels.library.load(TEAM_KERNELS), 1, keep_alive=kernels.library)


@cache
def _kernels(instruction_set: str) -> Kernels:
    return Kernels(instruction_set)


def load_kernels(instruction_set: str = "native") -> Kernels:
    """The kernels of an instruction set; skips the test where the CPU lacks it."""
    try:
        return _kernels(instruction_set)
    except InvalidSettingError as error:
        pytest.skip(str(error))


@cache
def load_kernel(instruction_set: str, name: str) -> tuple[int, KernelLibrary]:
    """The address of one kernel, and what keeps it; skips the test where the CPU lacks the instruction set."""
    try:
        library = KernelLibrary(target_for(instruction_set), kernels_folder())
    except InvalidSettingError as error:
        pytest.skip(str(error))
    return library.load([name])[name], library


def matmul_kernel(type_name: str, fine: bool = False) -> str:
    """The kernel that multiplies by weights of a tensor type."""
    kind = RECIPES[packed_type(type_name)].format
    if kind in FLOAT_FORMATS:
        return f"floats.{kind}"
    return f"matmul.{kind}_fine" if fine else f"matmul.{kind}"


def matmul_record(matrix: PackedMatrix, inputs: Array | Activations, output: Array, **more: int | Array) -> Record:
    """The record of ``output[row] = weights @ inputs[row]``; the float formats take float32 inputs."""
    fields: dict[str, int | Array] = {}
    if isinstance(inputs, Activations):
        fields = inputs.fields
        fields["input"], fields["input_stride"] = fields.pop("codes"), fields.pop("codes_stride")
    else:
        fields["input"], fields["input_stride"] = inputs, inputs.strides[0]
    return Record(
        MATMUL, rows=np.array([len(output)]), weights=matrix.data, groups=matrix.groups, blocks=matrix.blocks,
        output=output, output_stride=output.strides[0], group_bytes=matrix.format.group_bytes(matrix.blocks),
        **fields, **more,
    )  # fmt: skip


def product_extras(output: Array, weight_rows: int, bias: Array | None, before: Array | None) -> dict[str, int | Array]:
    """Fields of a product's record for a bias, and for what ``output`` holds, which is put there."""
    fields: dict[str, int | Array] = {}
    if bias is not None:
        fields["bias"] = np.zeros(padded(weight_rows), np.float32)
        fields["bias"][:weight_rows] = bias
    if before is not None:
        output[:, :weight_rows] = before
        fields["accumulate"] = 1
    return fields


def padded(width: int) -> int:
    """Whole vectors."""
    return -(-width // LANES) * LANES


# Guarded memory


def outlined(rows: int, width: int, dtype: Any = np.float32, margin: int = 16) -> tuple[Array, Callable[[], bool]]:
    """A zeroed (rows, width) part of a larger array, and a function that tells whether the rest is as it was."""
    size = np.dtype(dtype).itemsize
    whole = np.full((rows + 2, (width + 2 * margin) * size), SENTINEL, np.uint8)
    inside = slice(1, rows + 1), slice(margin * size, (margin + width) * size)
    whole[inside] = 0

    def untouched() -> bool:
        copy = whole.copy()
        copy[inside] = SENTINEL
        return bool((copy == SENTINEL).all())

    return whole.view(dtype)[1 : rows + 1, margin : margin + width], untouched


def guarded(array: Array) -> Array:
    """A copy that ends where memory may not be touched: reading one byte further ends the process."""
    page = mmap.PAGESIZE
    size = -(-max(array.nbytes, 1) // page) * page
    memory = mmap.mmap(-1, size + page)
    raw = np.frombuffer(memory, np.uint8)  # keeps the mapping
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(raw.ctypes.data + size), ctypes.c_size_t(page), 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = raw[size - array.nbytes : size].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def exit_status(work: Callable[[], None], seconds: int = 300) -> int:
    """Do something in a forked child: 0 if it returned, 1 if it raised, minus the signal that ended it.

    A child that hangs is ended by the alarm signal after some seconds.
    """
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there may be other threads: the child needs none of them
        child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(seconds)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
