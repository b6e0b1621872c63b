"""The first operations of an encoder in float64: which they are, and how they are planned.

In single rows Whisper's blocks make what the convolutions and the first blocks were wrong by ten thousand times larger:
with float32 the result of tiny.en was off by up to 2.5e-3 where numbers reach 15, and by 1.0e-3 if nothing but stored
values was rounded. Behind two blocks roundings do no such harm (3.4e-4 at most, in 400 windows of speech), and the rest
runs in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgellm.graph import Activation, Add, Attention, Embedding, Graph, Input, Linear, Norm, Operation, Unfold
from edgellm.kernels import records, sound_records
from edgellm.kernels.double_layout import scores_bytes, scratch_bytes
from edgellm.kernels.packing import FLOAT_FORMATS
from edgellm.platforms.cpu_parts import Buffer, Int64Array, make_record, padded, weight_key
from edgellm.platforms.cpu_plan import Planner

DOUBLE_BLOCKS = 2
"""Blocks that are computed in float64."""
_NORMS = 2  # of a block

_DOUBLE_KERNELS = {
    **{f"floats.{name}": f"double_products.{name}" for name in FLOAT_FORMATS},
    "norm.layer": "norm.layer_double",
    "activation.gelu": "double_rows.gelu",
    "activation.add": "double_rows.add",
    "unfold.rows": "unfold.rows",
}
"""What does in float64 what another does in float32; both take the same records."""
OWN_KERNELS = frozenset({"double_rows.widen", "double_rows.narrow", "double_attention.keys", "double_attention.attend"})


def double_operations(graph: Graph, formats: Mapping[str, str]) -> int:
    """How many operations, from the first on, an encoder computes in float64; 0 if it must not.

    They end before the norm of the first block that is not among them; of a small model, before the last norm. Weights
    that are quantized are further from what they stand for than roundings are, so that float64 would only take time.

    Args:
        graph: the encoder.
        formats: the packed format of each weight.
    """
    norms = [number for number, operation in enumerate(graph.operations) if isinstance(operation, Norm)]
    if not norms:
        return 0
    count = norms[min(_NORMS * DOUBLE_BLOCKS, len(norms) - 1)]
    return count if all(_has_doubles(operation, graph, formats) for operation in graph.operations[:count]) else 0


def _has_doubles(operation: Operation, graph: Graph, formats: Mapping[str, str]) -> bool:
    match operation:
        case Linear():
            return formats[weight_key(operation)] in FLOAT_FORMATS
        case Norm(kind=kind):
            return kind == "layer"
        case Activation(kind=kind, up=up):
            return kind == "gelu" and up is None
        case Attention(heads=heads, window=None, softcap=None, sinks=None, causal=False):
            kept = graph.cache[operation.layer]
            return kept.kv_heads == heads and kept.key_dim == kept.value_dim and kept.key_dim % 16 == 0
        case _:
            return isinstance(operation, Input | Unfold | Embedding | Add)


def double_kernels(graph: Graph, formats: Mapping[str, str]) -> set[str]:
    """The kernels that the operations in float64 may call."""
    if double_operations(graph, formats) == 0:
        return set()
    products = {f"floats.{name}" for name in formats.values()} & _DOUBLE_KERNELS.keys()
    others = {kernel for kernel in _DOUBLE_KERNELS if not kernel.startswith("floats.")}
    return {*OWN_KERNELS} | {_DOUBLE_KERNELS[kernel] for kernel in products | others}


class DoublePlanner(Planner):
    """Plans operations in float64 as long as ``value_bytes`` is 8, and what leads there and back."""

    def _emit(self, kernel: str, record: Int64Array, reads: list[Buffer], writes: list[Buffer], *share: object) -> None:
        if self.value_bytes == 8 and kernel not in OWN_KERNELS:
            kernel = _DOUBLE_KERNELS[kernel]
        super()._emit(kernel, record, reads, writes, *share)

    def _widen(self, source: Buffer, operation: Input) -> None:
        """The input, which is float32, as float64."""
        target = self._new(operation.out)
        self._convert("double_rows.widen", operation.out.width, source, target)
        self.pool.give(source)

    def _narrow_all(self) -> None:
        """What is float64 becomes float32; so does all that follows."""
        assert self.value_bytes == 8
        for name, source in list(self._buffers.items()):
            target = self.pool.take(self._rows(), source.stride // 2)
            self._convert("double_rows.narrow", source.stride // 8, source, target)
            self._buffers[name] = target
            self.pool.give(source)
        self.value_bytes = 4

    def _convert(self, kernel: str, width: int, source: Buffer, target: Buffer) -> None:
        record = make_record(
            records.ACTIVATION, rows=self._count_address(), width=width, a=source.address, a_stride=source.stride,
            output=target.address, output_stride=target.stride,
        )  # fmt: skip
        self._emit(kernel, record, [source], [target])

    def _count_address(self) -> int:
        """Of the number of rows."""
        return self.inputs.count_address(self._count)

    def _double_attention(self, operation: Attention) -> None:
        """Attention of all rows to all."""
        assert operation.k is not None
        assert operation.v is not None
        q, k, v = (self._buffers[value.name] for value in (operation.q, operation.k, operation.v))
        heads, rows = operation.heads, padded(self._graph.source_length)
        width = operation.q.width // heads
        target = self._new(operation.out)
        arranged = [self.pool.take(heads, 8 * width * rows) for _ in range(2)]
        scratch = self.pool.take(self._threads, scratch_bytes(rows))
        scale = np.array([operation.scale], np.float64)
        self._constants.append(scale)
        fields: dict[str, Any] = {
            "rows": self._count_address(), "heads": heads, "width": width, "queries": q.address,
            "queries_stride": q.stride, "keys": k.address, "keys_stride": k.stride, "values": v.address,
            "values_stride": v.stride, "output": target.address, "output_stride": target.stride,
            "arranged_keys": arranged[0].address, "arranged_values": arranged[1].address,
            "head_bytes": arranged[0].stride, "scale": scale.ctypes.data, "scores_bytes": scores_bytes(rows),
            "scratch": scratch.address, "scratch_stride": scratch.stride,
        }  # fmt: skip
        self._emit("double_attention.keys", make_record(sound_records.DOUBLE_ATTENTION, **fields), [k, v], arranged)
        attend = make_record(sound_records.DOUBLE_ATTENTION, **fields)
        self._emit("double_attention.attend", attend, [q, *arranged], [target, scratch])
        for buffer in (*arranged, scratch):
            self.pool.give(buffer)
