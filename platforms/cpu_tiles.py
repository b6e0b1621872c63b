"""Products of many rows on tiles of int8: the steps that take the place of the usual ones in a plan.

Each activation that such products read is quantized once more than for few rows, into tiles (see
`edgellm.kernels.tile_layout`), and by a step of its own.
"""

from __future__ import annotations

from edgellm.graph import Linear
from edgellm.kernels import records, tile_layout
from edgellm.kernels.packing import FLOAT_FORMATS, PackedMatrix
from edgellm.platforms.cpu_amx import AMXTiles
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

assert MAX_ROWS % tile_layout.ROWS == 0, "buffers must hold whole tiles of rows"


def int8_tile_kernels(usual: set[str]) -> set[str]:
    """The kernels that take the place of the usual ones, of those named, when there are many rows."""
    products = {name for name in usual if name.startswith("matmul.")}
    inputs = {f"tile_input.int8{'_fine' if name.endswith('_fine') else ''}" for name in products}
    if products and "elements.round_rows" in usual:
        inputs.add("tile_input.codes")
    return inputs | {name.replace("matmul.", "matmul_tiles.") for name in products}


def tiles_for(mode: str | None, threads: int) -> list[AMXTiles | Int8Tiles]:
    """What makes the steps for many rows, the preferred first; ``mode``: of AMX, see `edgellm.platforms.amx`."""
    return [*([AMXTiles(mode, threads)] if mode else []), Int8Tiles(threads)]


class Int8Tiles:
    """Makes the steps, for up to ``rows`` rows; see `edgellm.platforms.cpu_amx.AMXTiles` for those on AMX."""

    fewest_rows = tile_layout.FEWEST_ROWS

    def __init__(self, threads: int, rows: int = MAX_ROWS) -> None:
        self._threads = threads
        self._rows = -(-rows // tile_layout.ROWS) * tile_layout.ROWS
        self._inputs: dict[tuple[str, bool], Buffer] = {}
        self._scratch: Buffer | None = None

    def takes(self, matrix: PackedMatrix, rounded: bool) -> bool:
        """Whether there is a kernel for products with that matrix."""
        return matrix.format.name not in FLOAT_FORMATS

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
            fine: whether activations are wanted with their remainders.
            rounded: codes that stand for the activations exactly, which must not be rounded again.
        """
        field = {name: int(usual[getattr(records.MATMUL, name) // 8]) for name in records.MATMUL._fields}
        steps = []
        key, columns = (operation.x.name, fine), matrix.columns
        variant = "_fine" if fine else ""
        if key not in self._inputs:
            self._inputs[key] = pool.take(1, tile_layout.input_bytes(self._rows, columns, fine))
            sources = [source] if rounded is None else [rounded.codes, rounded.scales]
            record = make_record(
                records.TILE_INPUT, rows=field["rows"], blocks=columns // 32, input=sources[0].address,
                input_stride=sources[0].stride, output=self._inputs[key].address, scales=sources[-1].address,
                scales_stride=sources[-1].stride,
            )  # fmt: skip
            name = f"tile_input.int8{variant}" if rounded is None else "tile_input.codes"
            steps.append(Step(name, record, sources, [self._inputs[key]], rows=MANY_ROWS))
        copied = ("rows", "weights", "groups", "blocks", "output", "output_stride", "bias", "accumulate", "group_bytes")
        if self._scratch is None:
            self._scratch = pool.take(self._threads, tile_layout.SCRATCH_BYTES)
        record = make_record(
            records.MATMUL_TILES, scratch=self._scratch.address, scratch_stride=self._scratch.stride,
            input=self._inputs[key].address, tile_bytes=tile_layout.tile_bytes(columns),
            tiles_at_once=tile_layout.tiles_at_once(columns), **{name: field[name] for name in copied},
        )  # fmt: skip
        kernel = f"matmul_tiles.{matrix.format.name}{variant}"
        steps.append(Step(kernel, record, [self._inputs[key]], [target], rows=MANY_ROWS))
        return steps

    def release(self, name: str, pool: BufferPool) -> None:
        """The value of that name is dead."""
        for key in ((name, False), (name, True)):
            if key in self._inputs:
                pool.give(self._inputs.pop(key))
