"""Products of many rows on AMX tiles: the steps that take the place of the usual ones in a plan.

Each activation that such products read is written once more, as bfloat16 in the order of tiles. Products without a
kernel for tiles stay as they are.
"""

from __future__ import annotations

from edgellm.graph import Linear
from edgellm.kernels import amx_layout, records
from edgellm.kernels.packing import PackedMatrix
from edgellm.platforms.cpu_parts import (
    MANY_ROWS,
    MAX_ROWS,
    Buffer,
    BufferPool,
    Int64Array,
    Quantized,
    Step,
    make_record,
)


def tile_kernels(matrices: dict[str, PackedMatrix], mode: str) -> set[str]:
    """The kernels that products with these weights may call."""
    names = {
        amx_layout.kernel_name(matrix.format.name, mode == "emulated")
        for matrix in matrices.values()
        if amx_layout.supports(matrix.format.name, matrix.columns)
    }
    return names | {"amx_input.bfloat16"} if names else names


class AMXTiles:
    """Makes the steps; ``mode`` is "hardware" or "emulated"."""

    # Weights are unpacked once for all rows, which costs as much as multiplying some 20.
    fewest_rows = 16

    def __init__(self, mode: str, threads: int) -> None:
        self._emulated, self._threads = mode == "emulated", threads
        self._inputs: dict[str, Buffer] = {}
        self._scratch: Buffer | None = None

    def takes(self, matrix: PackedMatrix, rounded: bool) -> bool:
        """Whether there is a kernel for products with that matrix; not of rounded rows, which it would round again."""
        return not rounded and amx_layout.supports(matrix.format.name, matrix.columns)

    def steps(
        self,
        operation: Linear,
        usual: Int64Array,
        matrix: PackedMatrix,
        source: Buffer,
        target: Buffer,
        pool: BufferPool,
        fine: bool,
        rounded: Quantized | None,
    ) -> list[Step]:
        """One product, and before it the writing of its input if no other product has asked for it.

        Args:
            operation: the product.
            usual: the record of the kernel for few rows.
            matrix: the weights.
            source: the activations, float32.
            target: where the result goes.
            pool: gives the buffers.
            fine: of no account: bfloat16 has no remainders.
            rounded: of no account: rounded rows are not taken.
        """
        field = {name: int(usual[getattr(records.MATMUL, name) // 8]) for name in records.MATMUL._fields}
        steps = []
        name, columns = operation.x.name, matrix.columns
        if name not in self._inputs:
            self._inputs[name] = pool.take(1, amx_layout.input_bytes(MAX_ROWS, columns))
            record = make_record(
                records.AMX_INPUT, rows=field["rows"], columns=columns, input=source.address,
                input_stride=source.stride, output=self._inputs[name].address,
            )  # fmt: skip
            steps.append(Step("amx_input.bfloat16", record, [source], [self._inputs[name]], rows=MANY_ROWS))
        if self._scratch is None:
            self._scratch = pool.take(self._threads, -(-amx_layout.scratch_bytes(MAX_ROWS) // 64) * 64)
        copied = ("rows", "weights", "groups", "output", "output_stride", "bias", "accumulate", "group_bytes")
        record = make_record(
            records.MATMUL_AMX, columns=columns, input=self._inputs[name].address, scratch=self._scratch.address,
            scratch_stride=self._scratch.stride, **{key: field[key] for key in copied},
        )  # fmt: skip
        kernel = amx_layout.kernel_name(matrix.format.name, self._emulated)
        steps.append(Step(kernel, record, [self._inputs[name]], [target], rows=MANY_ROWS))
        return steps

    def release(self, name: str, pool: BufferPool) -> None:
        """The value of that name is dead."""
        if name in self._inputs:
            pool.give(self._inputs.pop(name))
