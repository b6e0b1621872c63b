"""The reference codec against the gguf package, and against loops over the block structures where it has none."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.gguf import TensorType, decode, open_gguf
from edgellm.gguf.codecs import CHUNK_VALUES

# Half floats that have broken decoders: zeros, denormals, the largest, infinities, quiet and signalling NaN.
SPECIAL_HALVES = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0x7D01]


def _decoded_by_package(tensor_type: TensorType) -> bool:
    try:
        quants.dequantize(np.zeros((1, tensor_type.block_bytes), np.uint8), GGMLQuantizationType(tensor_type))
    except (NotImplementedError, ValueError):
        return False
    return True


KNOWN_TO_PACKAGE = [member for member in TensorType if _decoded_by_package(member)]


def _assert_same_bits(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal bit for bit; any NaN equals any other."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == np.float32
    numbers = ~np.isnan(theirs)
    np.testing.assert_array_equal(np.isnan(ours), ~numbers)
    np.testing.assert_array_equal(ours.view(np.uint32)[numbers], theirs.view(np.uint32)[numbers])


def _random_rows(tensor_type: TensorType, seed: int, rows: int, blocks: int, specials: float) -> np.ndarray:
    """Random blocks in which a share of all aligned pairs of bytes are special half floats."""
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (rows, blocks * tensor_type.block_bytes), dtype=np.uint8)
    by_block = raw.reshape(rows * blocks, tensor_type.block_bytes)
    pairs = by_block[:, : tensor_type.block_bytes // 2 * 2].copy().view("<u2")
    chosen = random.random(pairs.shape) < specials
    pairs[chosen] = random.choice(SPECIAL_HALVES, int(chosen.sum()))
    by_block[:, : pairs.shape[1] * 2] = pairs.view(np.uint8)
    return raw


def test_package_decodes_what_it_is_asked_for() -> None:
    assert len(KNOWN_TO_PACKAGE) >= 24


@pytest.mark.parametrize("tensor_type", KNOWN_TO_PACKAGE, ids=lambda member: member.name)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 5),
    blocks=st.integers(1, 4),
    specials=st.sampled_from([0.0, 0.2, 1.0]),
)
@settings(deadline=None, max_examples=25)
def test_equals_package(tensor_type: TensorType, seed: int, rows: int, blocks: int, specials: float) -> None:
    raw = _random_rows(tensor_type, seed, rows, blocks, specials)
    with np.errstate(all="ignore"):
        theirs = quants.dequantize(raw.copy(), GGMLQuantizationType(tensor_type))
    _assert_same_bits(decode(raw, tensor_type), theirs)


@pytest.mark.parametrize("tensor_type", [TensorType.MXFP4, TensorType.NVFP4], ids=lambda member: member.name)
def test_every_scale_byte_of_the_small_floats(tensor_type: TensorType) -> None:
    if tensor_type not in KNOWN_TO_PACKAGE:
        pytest.skip(f"this version of the gguf package does not decode {tensor_type.name}")
    raw = np.random.default_rng(0).integers(0, 256, (256, tensor_type.block_bytes), dtype=np.uint8)
    raw[:, 0] = np.arange(256)
    with np.errstate(over="ignore"):
        theirs = quants.dequantize(raw, GGMLQuantizationType(tensor_type))
    _assert_same_bits(decode(raw, tensor_type), theirs)


def test_block_sizes_are_those_of_the_package() -> None:
    differing = [
        member.name
        for member in TensorType
        if member.name in GGMLQuantizationType.__members__
        and GGML_QUANT_SIZES[GGMLQuantizationType(member)] != (member.block_size, member.block_bytes)
    ]
    # The package's size of Q8_1 dates from when ggml kept its scale and sum as float32.
    assert differing in ([], ["Q8_1"])


def _half(data: bytes) -> np.float32:
    return np.float32(np.frombuffer(data, "<f2")[0])


def _q8_1(block: bytes) -> list[np.float32]:
    return [_half(block[:2]) * np.float32(q) for q in struct.unpack("<32b", block[4:36])]


def _q8_k(block: bytes) -> list[np.float32]:
    scale = np.frombuffer(block[:4], "<f4")[0]
    return [scale * np.float32(q) for q in struct.unpack("<256b", block[4:260])]


def _q1_0(block: bytes) -> list[np.float32]:
    scale = _half(block[:2])
    return [scale if block[2 + i // 8] >> (i % 8) & 1 else -scale for i in range(128)]


@pytest.mark.parametrize(
    ("tensor_type", "reference"), [(TensorType.Q8_1, _q8_1), (TensorType.Q8_K, _q8_k), (TensorType.Q1_0, _q1_0)]
)
@pytest.mark.parametrize("specials", [0.0, 0.3])
def test_types_without_a_decoder_in_the_package(tensor_type: TensorType, reference, specials: float) -> None:
    raw = _random_rows(tensor_type, 7, 6, 1, specials)
    with np.errstate(all="ignore"):
        expected = np.array([reference(row.tobytes()) for row in raw], np.float32)
    _assert_same_bits(decode(raw, tensor_type), expected)


@pytest.mark.parametrize("name", ["F64", "I8", "I16", "I32", "I64"])
def test_wide_numbers_are_rounded_to_float32(name: str) -> None:
    dtype = np.dtype(f"<{name[0].lower()}{int(name[1:]) // 8}")
    raw = np.random.default_rng(3).integers(0, 256, (4, 16 * dtype.itemsize), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = raw.view(dtype).astype(np.float32)
    _assert_same_bits(decode(raw, TensorType[name]), expected)


@pytest.mark.parametrize("tensor_type", [TensorType.Q4_0, TensorType.Q6_K, TensorType.IQ3_S, TensorType.F16])
def test_pieces_and_strides_do_not_matter(tensor_type: TensorType) -> None:
    """More values than are decoded at once, rows picked with a step, and further leading dimensions."""
    blocks = 2 * CHUNK_VALUES // tensor_type.block_size // 6 + 3
    raw = _random_rows(tensor_type, 5, 6, blocks, 0.0)
    whole = decode(raw, tensor_type)
    by_row = np.concatenate([decode(raw[i : i + 1], tensor_type) for i in range(6)])
    _assert_same_bits(whole, by_row)
    _assert_same_bits(decode(raw[::-2], tensor_type), whole[::-2])
    _assert_same_bits(decode(raw.reshape(3, 2, -1), tensor_type), whole.reshape(3, 2, -1))
    assert decode(raw[:0], tensor_type).shape == (0, whole.shape[1])
    assert decode(raw[0], tensor_type).shape == whole[0].shape


def test_result_belongs_to_the_caller() -> None:
    raw = np.zeros((2, 16), np.uint8)
    values = decode(raw, TensorType.F32)
    values += 1
    assert not raw.any()


def test_partial_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rows of 20 bytes .* Q8_0 blocks of 34 bytes"):
        decode(np.zeros((2, 20), np.uint8), TensorType.Q8_0)
    with pytest.raises(ValueError, match="uint8"):
        decode(np.zeros((2, 34), np.int8), TensorType.Q8_0)


@pytest.mark.parametrize("tensor_type", [TensorType.Q4_K, TensorType.IQ2_XXS, TensorType.TQ1_0])
def test_memory_beside_the_result_is_bounded(tensor_type: TensorType) -> None:
    raw = np.zeros((4096, 4 * tensor_type.block_bytes), np.uint8)
    decode(raw[:1], tensor_type)
    tracemalloc.start()
    try:
        values = decode(raw, tensor_type)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - values.nbytes < 4 << 20


def test_real_tensors_equal_package(gemma3_path: Path) -> None:
    """The first rows of one tensor of every type in a published file."""
    with open_gguf(gemma3_path) as file:
        by_type = {info.type: info for info in file.tensors.values()}
        assert len(by_type) >= 4
        for info in by_type.values():
            ours = file.decode(info.name, slice(0, 64))
            theirs = quants.dequantize(file.raw(info.name)[:64], GGMLQuantizationType(info.type))
            _assert_same_bits(ours, theirs)
            assert np.isfinite(ours).all()
