"""One stretch of memory for all packed weights, on huge pages where the system has them.

Decoding reads every weight once per token. On pages of 4 kB that means a look-up for each, and the processor's
prefetcher stops at every page's end.
"""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
from numpy.typing import NDArray

HUGE_PAGE = 2 << 20
LINE = 64


def _anonymous(size: int) -> mmap.mmap:
    """Fresh memory. Private where there is the choice: systems rarely give huge pages to shared memory."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)


def _private_memory(size: int) -> mmap.mmap:
    """Zeroed memory of this process alone: what Python maps otherwise is shared, which Linux keeps on small pages."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)


class Arena:
    """Hands out pieces of ``size`` bytes of memory, in order; each begins on a cache line.

    Raises:
        MemoryError: the system refuses that much.
    """

    def __init__(self, size: int) -> None:
        try:
            memory = _anonymous(size + HUGE_PAGE)
        except (OSError, ValueError, OverflowError) as error:
            raise MemoryError(f"{size} bytes") from error
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without them: works all the same
                memory.madvise(mmap.MADV_HUGEPAGE)
        whole = np.frombuffer(memory, np.uint8)
        self._memory = whole[-whole.ctypes.data % HUGE_PAGE :]
        self._used = 0

    def take(self, size: int) -> NDArray[np.uint8]:
        """The next piece, all zero."""
        piece = self._memory[self._used : self._used + size]
        if len(piece) < size:
            raise MemoryError(f"{size} bytes of an arena of {len(self._memory)}")
        self._used += -(-size // LINE) * LINE
        return piece
