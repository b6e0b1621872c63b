"""Calling one kernel at a time, outside any plan."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

KernelFunction = Callable[[int, int, int, int, int], int]


def kernel_function(address: int) -> KernelFunction:
    """A kernel at an address: Numba's convention is (result, error, record, thread, threads), giving a status."""
    kind = ctypes.CFUNCTYPE(
        ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64
    )
    function: KernelFunction = kind(address)
    return function


def call_kernel(function: KernelFunction, record: Any, arrays: Mapping[str, NDArray[Any]], **numbers: int) -> None:
    """Call a kernel as one thread of one, without the interpreter's lock.

    Args:
        function: of `kernel_function`.
        record: names the fields, see `edgellm.kernels.records`.
        arrays: whose addresses go into the fields of their names.
        numbers: what goes into the others.
    """
    values = np.zeros(len(record), np.int64)
    for name, array in arrays.items():
        values[getattr(record, name) // 8] = array.ctypes.data
    for name, number in numbers.items():
        values[getattr(record, name) // 8] = number
    room = np.zeros(2, np.int64)
    function(room.ctypes.data, room.ctypes.data + 8, values.ctypes.data, 0, 1)
