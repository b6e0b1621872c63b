"""The weight store: the same numbers as the file's, and an honest account of what is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgellm.gguf import open_gguf
from edgellm.weights import WeightStore

NAME = "blk.0.ffn_up.weight"


@pytest.fixture
def path(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", weight_types=("Q8_0", "Q4_1", "F16"), embedding_type="Q8_0")


@pytest.fixture
def store(path: Path) -> Iterator[WeightStore]:
    with open_gguf(path) as file:
        yield WeightStore(file)


def test_weights_are_those_of_the_file(store: WeightStore, path: Path) -> None:
    tensors = gguf.GGUFReader(path).tensors
    assert sorted(store.names) == sorted(tensor.name for tensor in tensors)
    for tensor in tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert store.info(tensor.name).shape == expected.shape
        assert np.array_equal(store.float32(tensor.name), expected)
        assert store.raw(tensor.name).tobytes() == tensor.data.tobytes()


def test_rows(store: WeightStore) -> None:
    ids = np.array([7, 0, 270, 7], np.int32)
    assert np.array_equal(store.rows("token_embd.weight", ids), store.float32("token_embd.weight")[ids])


@pytest.mark.parametrize("ids", [[7], [0, 270, 7]])
@pytest.mark.parametrize("name", ["token_embd.weight", NAME])
def test_a_reader_writes_rows_into_memory(store: WeightStore, name: str, ids: list[int]) -> None:
    rows = np.array(ids, np.int32) % store.info(name).shape[0]
    columns = store.info(name).shape[1]
    out = np.full((len(ids), columns + 3), 5, np.float32)
    store.reader(name).read(rows, out[:, :columns])
    assert np.array_equal(out[:, :columns], store.rows(name, rows)) and (out[:, columns:] == 5).all()


def test_missing_weights(store: WeightStore) -> None:
    assert store.has(NAME) and not store.has("blk.0.ffn_up")
    with pytest.raises(KeyError):
        store.float32("blk.0.ffn_up")


def test_resident_bytes_count_what_was_read_until_it_is_released(store: WeightStore) -> None:
    assert store.resident_bytes == 0
    embedding = store.info("token_embd.weight")
    store.rows("token_embd.weight", np.arange(3))
    assert store.resident_bytes == 3 * embedding.row_bytes
    store.raw("token_embd.weight")
    store.float32(NAME)
    assert store.resident_bytes == embedding.size_bytes + store.info(NAME).size_bytes
    before = store.float32(NAME)
    store.release("token_embd.weight")
    assert store.resident_bytes == store.info(NAME).size_bytes
    store.release()
    assert store.resident_bytes == 0
    assert np.array_equal(store.float32(NAME), before)
