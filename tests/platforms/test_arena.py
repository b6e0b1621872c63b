"""Memory for packed weights."""

from __future__ import annotations

import gc
import weakref

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
