"""Try out AMX: ``python -m edgellm.platforms.amx_probe`` prints the state as JSON; see `edgellm.platforms.amx`.

It asks the system for the tile registers, multiplies weights of 4 bits and random activations with AMX and with the
other kernels of this CPU, compares, and takes the time of both.
"""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.folders import kernels_folder
from edgellm.kernels import amx_layout, records
from edgellm.kernels.library import KernelLibrary
from edgellm.kernels.packing import FORMATS, aligned_empty
from edgellm.kernels.target import current_target
from edgellm.platforms.amx import AMXStatus, request_permission
from edgellm.platforms.cpu_parts import make_record

ROWS, WEIGHT_ROWS, COLUMNS = 128, 512, 1024
LARGEST_DIFFERENCE = 0.03
"""Of both products, relative, in the mean of squares. Activations of 8 bits alone make it 0.006."""
GAIN = 1.2  # less is not worth the coarser results
REPEATS = 7

_Function = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64
)


@dataclass(frozen=True)
class Measured:
    """The difference of both products, relative, and how many times faster the one on tiles was."""

    difference: float
    gain: float


class _Caller:
    """Calls kernels by name, on one thread."""

    def __init__(self, names: list[str]) -> None:
        self._library = KernelLibrary(current_target(), kernels_folder())
        self._addresses = self._library.load(names)
        self._result = (ctypes.c_int64 * 2)()

    def __call__(self, name: str, record: NDArray[np.int64]) -> None:
        place = ctypes.addressof(self._result)
        _Function(self._addresses[name])(place, place + 8, record.ctypes.data, 0, 1)


def _weights(generator: np.random.Generator) -> tuple[NDArray[np.uint8], int]:
    """Random packed 4-bit weights, and the bytes of a group of 16 rows."""
    layout, blocks = FORMATS["q4"], COLUMNS // 32
    stride = layout.group_bytes(blocks)
    data = aligned_empty(WEIGHT_ROWS // 16 * stride)
    data[:] = generator.integers(0, 256, len(data), dtype=np.uint8)
    groups, scales_at = data.reshape(-1, stride), layout.places()[1]
    for block in range(blocks):
        halves = generator.uniform(0.005, 0.02, (len(groups), layout.scale_bytes // 2)).astype(np.float16)
        groups[:, scales_at(block) :][:, : layout.scale_bytes] = halves.view(np.uint8)
    return data, stride


def measure(emulated: bool = False) -> Measured:
    """Multiply both ways. Without ``emulated`` the system must have granted the tile registers."""
    generator = np.random.default_rng(0)
    product = amx_layout.kernel_name("q4", emulated)
    call = _Caller(["quantize.all", "matmul.q4", "amx_input.bfloat16", product])
    weights, group_bytes = _weights(generator)
    x = generator.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    codes, scales = np.zeros((ROWS, COLUMNS), np.int8), np.zeros((ROWS, COLUMNS // 32, 4), np.float32)
    tiles = aligned_empty(amx_layout.input_bytes(ROWS, COLUMNS))
    scratch = aligned_empty(amx_layout.scratch_bytes(ROWS))
    outputs = np.zeros((2, ROWS, WEIGHT_ROWS), np.float32)
    rows = np.array([ROWS], np.int64)
    shared: dict[str, Any] = {
        "rows": rows.ctypes.data, "weights": weights.ctypes.data, "groups": WEIGHT_ROWS // 16,
        "output_stride": outputs.strides[1], "group_bytes": group_bytes,
    }  # fmt: skip
    quantize = make_record(
        records.QUANTIZE, rows=rows.ctypes.data, blocks=COLUMNS // 32, input=x.ctypes.data, input_stride=x.strides[0],
        codes=codes.ctypes.data, codes_stride=codes.strides[0], scales=scales.ctypes.data,
        scales_stride=scales.strides[0],
    )  # fmt: skip
    usual = make_record(
        records.MATMUL, blocks=COLUMNS // 32, input=codes.ctypes.data, input_stride=codes.strides[0],
        scales=scales.ctypes.data, scales_stride=scales.strides[0], output=outputs[0].ctypes.data, **shared,
    )  # fmt: skip
    order = make_record(
        records.AMX_INPUT, rows=rows.ctypes.data, columns=COLUMNS, input=x.ctypes.data, input_stride=x.strides[0],
        output=tiles.ctypes.data,
    )  # fmt: skip
    tiled = make_record(
        records.MATMUL_AMX, columns=COLUMNS, input=tiles.ctypes.data, output=outputs[1].ctypes.data,
        scratch=scratch.ctypes.data, scratch_stride=len(scratch), **shared,
    )  # fmt: skip
    call("quantize.all", quantize)
    call("amx_input.bfloat16", order)
    usual_seconds = _best(lambda: call("matmul.q4", usual))
    tiled_seconds = _best(lambda: call(product, tiled))
    first, second = outputs.astype(np.float64)
    difference = np.sqrt(np.mean((first - second) ** 2) / np.mean(first**2))
    return Measured(float(difference), usual_seconds / tiled_seconds)


def _best(work: Callable[[], None]) -> float:
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def judge(measured: Measured) -> AMXStatus:
    """What the figures mean."""
    if not measured.difference <= LARGEST_DIFFERENCE:  # nor if it is NaN
        return AMXStatus("wrong")
    return AMXStatus("works" if measured.gain >= GAIN else "slower", measured.gain)


def main() -> None:
    """Print what this process may do."""
    status = judge(measure()) if request_permission() else AMXStatus("refused")
    print(json.dumps(asdict(status)))


if __name__ == "__main__":
    main()
