"""Rows of weights to rows of blocks: the compiled quantizers, and what NumPy does as well."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from edgellm.convert.encode import encode
from edgellm.errors import EdgeLLMError
from edgellm.folders import kernels_folder
from edgellm.gguf import TensorType, decode
from edgellm.kernels.library import KernelLibrary
from edgellm.kernels.packing import aligned_empty
from edgellm.kernels.quantizer_memory import KINDS, SCRATCH_BYTES
from edgellm.kernels.target import current_target
from edgellm.quantize.mixtures import FLOAT_TYPES

Bytes = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Progress = Callable[[str, int, int], None]

# Numba's calling convention: result, error, arguments; returns a status.
_Function = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64
)
_NOT_FINITE, _TOO_LARGE = 1, 2


class ValueRangeError(EdgeLLMError):
    """Weights that the wanted type cannot hold; the message begins where the tensor's name ends."""


class RowQuantizer:
    """Quantizes rows; several threads may use it at once.

    Args:
        types: those that rows will be quantized to, and whether with importance; kernels that are missing are compiled.
        progress: told about that.

    Raises:
        KernelError: a kernel did not compile.
    """

    def __init__(self, types: Iterable[tuple[TensorType, bool]], progress: Progress | None = None) -> None:
        names = sorted({kernel_name(kind, weighted) for kind, weighted in types if kind not in FLOAT_TYPES})
        self._library = KernelLibrary(current_target(), kernels_folder(), progress)
        self._functions = {name: _Function(address) for name, address in self._library.load(names).items()}
        self._local = threading.local()

    def quantize(self, raw: Bytes, source: TensorType, target: TensorType, importance: Float32 | None = None) -> Bytes:
        """Rows in another type.

        Args:
            raw: (rows, bytes of a row) as the type ``source`` has them.
            source: any type.
            target: one of ``mixtures.WEIGHT_TYPES``; a row is a whole number of its blocks.
            importance: (columns,), how much a column's errors count; all the same by default.

        Returns:
            uint8, (rows, bytes of a row).

        Raises:
            ValueRangeError: a value is not finite, or too large for the type.
        """
        rows = len(raw)
        columns = raw.shape[1] // source.block_bytes * source.block_size
        if target in FLOAT_TYPES:
            return self._floats(raw, source, target).reshape(rows, -1)
        if source.name not in KINDS or not raw.flags.c_contiguous or raw.ctypes.data % 4:
            raw, source = decode(raw, source).view(np.uint8), TensorType.F32
        out = np.empty((rows, columns // target.block_size * target.block_bytes), np.uint8)
        if not out.size:
            return out
        if importance is not None:
            importance = np.ascontiguousarray(importance, np.float32)
            if importance.shape != (columns,):
                raise ValueError(f"an importance of {importance.shape} for rows of {columns}")
        problem = np.zeros(1, np.int64)
        memory = self._memory()
        record = np.array(
            [
                raw.ctypes.data, KINDS[source.name], rows * columns // target.block_size, columns,
                0 if importance is None else importance.ctypes.data,
                out.ctypes.data, memory.ctypes.data, problem.ctypes.data,
            ],
            np.int64,
        )  # fmt: skip
        result = (ctypes.c_int64 * 2)()
        place = ctypes.addressof(result)
        function = self._functions[kernel_name(target, importance is not None)]
        function(place, place + 8, record.ctypes.data, 0, 1)
        _complain(int(problem[0]), target)
        return out

    def _memory(self) -> Bytes:
        """Scratch memory of the calling thread."""
        memory = getattr(self._local, "memory", None)
        if memory is None:
            memory = self._local.memory = aligned_empty(SCRATCH_BYTES)
        return memory

    def _floats(self, raw: Bytes, source: TensorType, target: TensorType) -> Bytes:
        try:
            return encode(decode(raw, source), "F32", target)
        except EdgeLLMError as error:
            raise ValueRangeError(error.message, "quantize to BF16 or F32") from None


def kernel_name(kind: TensorType, weighted: bool) -> str:
    """The name of the kernel that quantizes to a type, with an importance of columns or without."""
    return f"quantizer.{kind.name}{'_weighted' if weighted else ''}"


def _complain(problem: int, target: TensorType) -> None:
    if problem & _NOT_FINITE:
        raise ValueRangeError("holds values that are not finite numbers", "the model is damaged: fetch it again")
    if problem & _TOO_LARGE:
        raise ValueRangeError(f"holds values that are too large for {target.name}", "give it BF16 with --tensor-type")
