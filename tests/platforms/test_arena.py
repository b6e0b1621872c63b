"""Memory for packed weights."""

from __future__ import annotations

import gc
import re
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

from edgellm.platforms.arena import HUGE_PAGE, LINE, Arena


def test_pieces_begin_on_lines_and_do_not_overlap() -> None:
    sizes = [1, 64, 65, 0, 1000, 4096, 3]
    arena = Arena(sum(size + LINE for size in sizes))
    pieces = [arena.take(size) for size in sizes]
    assert pieces[0].ctypes.data % HUGE_PAGE == 0
    for number, (piece, size) in enumerate(zip(pieces, sizes, strict=True)):
        assert piece.nbytes == size
        assert piece.ctypes.data % LINE == 0 or size == 0
        assert not piece.any()
        piece[:] = number + 1
    assert all((piece == number + 1).all() for number, piece in enumerate(pieces))


def test_more_than_there_is_is_refused() -> None:
    arena = Arena(100)
    with pytest.raises(MemoryError):
        arena.take(3 * HUGE_PAGE)
    with pytest.raises(MemoryError):
        Arena(2**60)
    with pytest.raises(MemoryError):
        Arena(2**80)


def test_memory_is_given_back_with_the_last_piece() -> None:
    arena = Arena(HUGE_PAGE)
    piece = arena.take(100)
    held = weakref.ref(piece.base)
    del arena
    gc.collect()
    assert held() is not None
    piece[:] = 1
    assert np.count_nonzero(piece) == 100
    del piece
    gc.collect()
    assert held() is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's list of mappings")
def test_memory_is_on_huge_pages() -> None:
    switch = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not switch.is_file() or "[never]" in switch.read_text():
        pytest.skip("this system has no huge pages")
    arena = Arena(4 * HUGE_PAGE)
    piece = arena.take(4 * HUGE_PAGE)
    piece[:] = 1
    address = piece.ctypes.data
    huge, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first:
            begin, _, end = first.partition("-")
            inside = int(begin, 16) <= address < int(end, 16)
        elif inside and first == "AnonHugePages:":
            huge = int(line.split()[1]) * 1024
    assert huge >= 3 * HUGE_PAGE


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's list of mappings")
def test_memory_may_lie_on_huge_pages() -> None:
    arena = Arena(4 * HUGE_PAGE)
    piece = arena.take(4 * HUGE_PAGE)
    address, flags = piece.ctypes.data, ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("VmFlags"):
            flags = line
    # Shared memory ("sh") is asked for huge pages ("hg") in vain under the usual settings.
    assert " sh" not in flags
    if Path("/sys/kernel/mm/transparent_hugepage").exists():
        assert " hg" in flags
