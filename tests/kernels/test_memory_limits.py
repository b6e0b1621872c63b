"""No kernel reads or writes beyond its buffers: each ends where memory may not be touched, in a child process."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import sys

import numpy as np
import pytest
from kernel_calls import (
    TIERS,
    Activations,
    Kernels,
    Record,
    exit_status,
    guarded,
    load_kernels,
    matmul_kernel,
    matmul_record,
    padded,
)
from weight_blocks import FLOAT_TYPES, QUANTIZED_TYPES, random_blocks, random_floats

from edgellm.gguf import TensorType
from edgellm.graph import CacheLayer
from edgellm.kernels.attention_layout import scratch_bytes
from edgellm.kernels.packing import PackedMatrix
from edgellm.kernels.records import ACTIVATION, ATTENTION, CACHE, NORM, QUANTIZE, ROPE, ROWS
from edgellm.platforms.cpu_cache import BlockLayout

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork") or sys.platform == "win32", reason="needs fork and memory protection"
)


def limited(made: Activations) -> Activations:
    return Activations(guarded(made.codes), guarded(made.scales))


def test_the_limit_itself_ends_a_process() -> None:
    array = guarded(np.zeros(100, np.uint8))

    def read(count: int) -> None:
        faulthandler.disable()  # its report of what is meant to happen would only worry readers
        ctypes.string_at(array.ctypes.data, count)

    def write(count: int) -> None:
        faulthandler.disable()
        ctypes.memset(array.ctypes.data, 1, count)

    for access in (read, write):
        assert exit_status(lambda access=access: access(100)) == 0  # type: ignore[misc]
        assert exit_status(lambda access=access: access(101)) < 0  # type: ignore[misc]


@pytest.mark.parametrize("tier", TIERS)
def test_products_and_packing(tier: str) -> None:
    """The file's rows, packed weights, activations, scales, bias and results."""
    kernels = load_kernels(tier)

    def work() -> None:
        generator = np.random.default_rng(1)
        for type_name in (*QUANTIZED_TYPES, *FLOAT_TYPES):
            floats = type_name in FLOAT_TYPES
            for blocks in (1, 3):
                count = 33 * blocks if floats else blocks
                make = random_floats if floats else random_blocks
                raw = guarded(make(type_name, 17, count, "ordinary", generator))
                columns = count * TensorType[type_name].block_size
                packed = kernels.pack(raw, type_name, columns)
                matrix = PackedMatrix(packed.format, packed.rows, packed.columns, guarded(packed.data))
                for rows in (1, 4, 5):
                    x = guarded(generator.standard_normal((rows, columns)).astype(np.float32))
                    inputs = x if floats else limited(kernels.quantize(x))
                    output = guarded(np.zeros((rows, 32), np.float32))
                    record = matmul_record(matrix, inputs, output, bias=guarded(np.zeros(32, np.float32)))
                    kernels.call(matmul_kernel(type_name), record, 2)

    assert exit_status(work) == 0


def test_products_with_remainders() -> None:
    kernels = load_kernels()

    def work() -> None:
        generator = np.random.default_rng(2)
        for type_name in QUANTIZED_TYPES:
            columns = 2 * TensorType[type_name].block_size
            packed = kernels.pack(random_blocks(type_name, 17, 2, "ordinary", generator), type_name, columns)
            matrix = PackedMatrix(packed.format, packed.rows, packed.columns, guarded(packed.data))
            inputs = limited(kernels.quantize(generator.standard_normal((5, columns)).astype(np.float32), fine=True))
            output = guarded(np.zeros((5, 32), np.float32))
            kernels.call(matmul_kernel(type_name, fine=True), matmul_record(matrix, inputs, output), 2)

    assert exit_status(work) == 0


@pytest.mark.parametrize("tier", TIERS)
def test_quantizing(tier: str) -> None:
    kernels = load_kernels(tier)

    def work() -> None:
        for blocks in (1, 5):
            x = guarded(np.ones((3, 32 * blocks), np.float32))
            made = limited(Activations.empty(3, 32 * blocks, fine=True))
            record = Record(
                QUANTIZE, rows=np.array([3]), blocks=blocks, input=x, input_stride=x.strides[0], **made.fields
            )  # fmt: skip
            kernels.call("quantize.all", record, 2)

    assert exit_status(work) == 0


def elementwise(kernels: Kernels) -> None:
    for width in (1, 17, 96):
        whole = guarded(np.ones((3, padded(width)), np.float32))
        output = guarded(np.zeros((3, padded(width)), np.float32))
        for kind in ("silu", "gelu_tanh", "relu_squared", "add", "scale", "softcap"):
            fields = limited(Activations.empty(3, width)).fields if width % 32 == 0 else {}
            record = Record(
                ACTIVATION, rows=np.array([3]), width=width, a=whole, a_stride=whole.strides[0], b=whole,
                b_stride=whole.strides[0], output=output, output_stride=output.strides[0],
                factor=guarded(np.ones(1, np.float32)), **fields,
            )  # fmt: skip
            kernels.call(f"activation.{kind}", record, 2)
        record = Record(
            ROWS, rows=np.array([3]), width=padded(width), input=whole, input_stride=whole.strides[0], output=output,
            output_stride=output.strides[0], index=guarded(np.array([2, 2, 0], np.int32)),
        )  # fmt: skip
        kernels.call("rows.select", record, 2)


def norms_and_rotations(kernels: Kernels) -> None:
    for width in (1, 17, 96):
        x = guarded(np.ones((3, 2 * width), np.float32))
        output = guarded(np.zeros((3, 2 * width), np.float32))
        weight = guarded(np.ones(width, np.float32))
        for kind in ("rms", "layer"):
            for parts, vector in ((2, weight), (1, guarded(np.ones(2 * width, np.float32)))):
                fields = limited(Activations.empty(3, 2 * width)).fields if parts == 1 and width % 16 == 0 else {}
                record = Record(
                    NORM, rows=np.array([3]), parts=parts, width=2 * width // parts, input=x,
                    input_stride=x.strides[0], output=output, output_stride=output.strides[0], weight=vector,
                    bias=vector, epsilon=guarded(np.ones(1, np.float32)), accumulate=1, by_column=int(parts == 1),
                    **fields,
                )  # fmt: skip
                kernels.call(f"norm.{kind}", record, 2)
                kernels.call(f"norm.{kind}", record, 4)
        for name in ("rope.interleaved", "rope.halves"):
            angles = guarded(np.ones((3, width), np.float32))
            record = Record(
                ROPE, rows=np.array([3]), heads=1, width=2 * width, pairs=width, values=x, stride=x.strides[0],
                cosines=angles, sines=angles,
            )  # fmt: skip
            kernels.call(name, record, 2)


@pytest.mark.parametrize("work", [elementwise, norms_and_rotations])
def test_row_operations(work: object) -> None:
    kernels = load_kernels()
    assert callable(work)
    assert exit_status(lambda: work(kernels)) == 0


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
@pytest.mark.parametrize("tier", ["plain", "native"])
def test_cache_and_attention(tier: str, kind: str) -> None:
    """Keys, values, queries, the last block of the cache, tables, results and scratch."""
    kernels = load_kernels(tier)

    def work() -> None:
        for width in (32, 96) if kind == "q8_0" else (1, 17, 80):
            layout = BlockLayout.of(CacheLayer(2, width, width), kind)
            cache = guarded(np.zeros(2 * layout.block_bytes, np.uint8))
            shared = {
                "heads": 2, "key_width": width, "value_width": width, "cache": cache,
                "block_bytes": layout.block_bytes, "head_key_bytes": layout.head_key_bytes,
                "head_value_bytes": layout.head_value_bytes, "values_offset": layout.values_offset,
            }  # fmt: skip
            rows = 33
            new = guarded(np.ones((rows, 2 * width), np.float32))
            tables = guarded(np.array([[0, 1]], np.int32))
            positions = guarded(np.arange(31, 64, dtype=np.int32))
            store = Record(
                CACHE, rows=np.array([rows]), keys=new, keys_stride=new.strides[0], values=new,
                values_stride=new.strides[0], slots=positions, **shared,
            )  # fmt: skip
            kernels.call(f"cache.{kind}", store, 2)
            queries = guarded(np.ones((rows, 6 * width), np.float32))
            output = guarded(np.zeros((rows, 6 * width), np.float32))
            scratch = guarded(np.zeros((2, scratch_bytes(width) // 4), np.float32))
            attend = Record(
                ATTENTION, rows=np.array([rows]), group=3, queries=queries, queries_stride=queries.strides[0],
                output=output, output_stride=output.strides[0], positions=positions,
                sequences=guarded(np.zeros(rows, np.int32)), tables=tables, tables_stride=np.array([8]), window=40,
                constants=guarded(np.array([1, 0], np.float32)), sinks=guarded(np.zeros(6, np.float32)),
                scratch=scratch, scratch_stride=scratch.strides[0], **shared,
            )  # fmt: skip
            kernels.call(f"attention.{kind}", attend, 2)

    assert exit_status(work) == 0
