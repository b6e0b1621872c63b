"""How fast this machine reads memory: the yardstick of decoding, which reads all weights for every token.

    python -m edgellm.tools.bench_bandwidth 1 2

prints bytes a second for each number of threads as one JSON object. A plain loop of the kernels' own vector loads runs
over a buffer much larger than usual caches, each thread over its part, with and without asking for lines ahead; the
fastest pass counts. It needs Numba, so the measurement has a process of its own.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgellm.memory import available_bytes

METHOD = "plain vector loads over 512 MiB, best pass"
BUFFER_BYTES = 512 << 20
_SMALLEST_BYTES = 16 << 20
_LINES_AHEAD = (0, 2048, 4096)
_SECONDS = 0.4
"""How long passes are repeated for one setting."""

Read = Callable[[int, int, int], int]


def read_loop() -> Read:
    """The compiled loop: ``read(address, size, ahead)``; size in multiples of 256 bytes."""
    import numba

    from edgellm.kernels.memory import load_ints, prefetch
    from edgellm.kernels.simd import splat_int, sum_int_lanes

    @numba.njit("int64(int64, int64, int64)", nogil=True)
    def read(address, size, ahead):  # type: ignore[no-untyped-def]
        a = b = c = d = splat_int(0)
        for place in range(address, address + size, 256):
            if ahead:
                for line in range(4):
                    prefetch(place + ahead + 64 * line)
            a = a ^ load_ints(place)
            b = b ^ load_ints(place + 64)
            c = c ^ load_ints(place + 128)
            d = d ^ load_ints(place + 192)
        return sum_int_lanes((a ^ b) ^ (c ^ d))

    loop: Read = read
    return loop


def measure(threads: int, read: Read, buffer: NDArray[np.uint64]) -> float:
    """Bytes a second that so many threads read together."""
    part = buffer.nbytes // threads // 256 * 256
    best = 0.0
    for ahead in _LINES_AHEAD:
        end = time.perf_counter() + _SECONDS
        while time.perf_counter() < end:
            best = max(best, threads * part / _one_pass(threads, read, buffer.ctypes.data, part, ahead))
    return best


def _one_pass(threads: int, read: Read, address: int, part: int, ahead: int) -> float:
    """Seconds from the first thread's start to the last one's end."""
    begins, ends = [0.0] * threads, [0.0] * threads
    barrier = threading.Barrier(threads)

    def run(thread: int) -> None:
        barrier.wait()
        begins[thread] = time.perf_counter()
        read(address + thread * part, part, ahead)
        ends[thread] = time.perf_counter()

    team = [threading.Thread(target=run, args=(thread,)) for thread in range(1, threads)]
    for member in team:
        member.start()
    run(0)
    for member in team:
        member.join()
    return max(ends) - min(begins)


def main(arguments: list[str]) -> None:
    """Measure for each number of threads given."""
    free = available_bytes()
    size = BUFFER_BYTES if free is None else max(_SMALLEST_BYTES, min(BUFFER_BYTES, free // 4))
    buffer = np.ones(size // 8, np.uint64)
    read = read_loop()
    print(json.dumps({threads: round(measure(int(threads), read, buffer)) for threads in arguments}))


if __name__ == "__main__":
    main(sys.argv[1:])
