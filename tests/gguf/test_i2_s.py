"""bitnet.cpp's I2_S: two bits a value in the order of its kernels, one scale after the last row of a tensor."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf_bytes import Parts, tensor

from edgellm.errors import CorruptFileError
from edgellm.gguf import TensorType, open_gguf
from edgellm.weights import WeightStore


def _packed(ternary: np.ndarray, scale: float) -> bytes:
    """Written out value by value: value j of a block of 128 is in byte j % 32, at bit 6 - 2 * (j // 32)."""
    flat = ternary.reshape(-1)
    data = bytearray(len(flat) // 4)
    for number, value in enumerate(flat):
        block, place = divmod(number, 128)
        data[block * 32 + place % 32] |= (int(value) + 1) << (6 - 2 * (place // 32))
    return bytes(data) + struct.pack("<f", scale) + bytes(28)


def _file(folder: Path, shape: tuple[int, ...], data: bytes) -> Path:
    return Parts(tensors=[tensor("w", list(reversed(shape)), 36)], data=data).write(folder / "model.gguf")


@pytest.mark.parametrize("shape", [(1, 128), (5, 256), (2, 3, 384)])
def test_values_and_scale(tmp_path: Path, shape: tuple[int, ...]) -> None:
    ternary = np.random.default_rng(0).integers(-1, 2, shape)
    with open_gguf(_file(tmp_path, shape, _packed(ternary, 0.375))) as file:
        info = file.tensors["w"]
        assert info.type is TensorType.I2_S
        assert (info.shape, info.size_bytes) == (shape, ternary.size // 4 + 32)
        assert file.raw("w").shape == (ternary.size // shape[-1], shape[-1] // 4)
        assert file.scale("w") == 0.375
        assert np.array_equal(file.decode("w"), ternary * np.float32(0.375))
        rows = np.array([0, ternary.size // shape[-1] - 1])
        expected = ternary.reshape(-1, shape[-1])[rows] * np.float32(0.375)
        assert np.array_equal(file.decode("w", rows), expected)
        assert np.array_equal(WeightStore(file).rows("w", rows), expected)


def test_other_types_have_no_scale(tmp_path: Path) -> None:
    path = Parts(tensors=[tensor("w", [4])], data=bytes(16)).write(tmp_path / "model.gguf")
    with open_gguf(path) as file:
        assert file.scale("w") == 1.0


def test_the_tail_must_be_there(tmp_path: Path) -> None:
    path = _file(tmp_path, (1, 128), _packed(np.zeros((1, 128)), 1.0)[:-4])
    with pytest.raises(CorruptFileError, match="takes 64 bytes"):
        open_gguf(path)


def test_a_scale_that_is_no_number_is_named(tmp_path: Path) -> None:
    path = _file(tmp_path, (1, 128), _packed(np.zeros((1, 128)), float("nan")))
    with open_gguf(path) as file, pytest.raises(CorruptFileError, match="tensor 'w' has the scale nan"):
        file.decode("w")


def test_rows_are_whole_blocks(tmp_path: Path) -> None:
    path = _file(tmp_path, (2, 64), _packed(np.zeros((1, 128)), 1.0))
    with pytest.raises(CorruptFileError, match="not whole I2_S blocks of 128"):
        open_gguf(path)
