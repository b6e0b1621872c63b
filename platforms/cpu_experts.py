"""Planning of experts, of parts of rows, and of rounded rows."""

from __future__ import annotations

import numpy as np

from edgellm.errors import CorruptFileError
from edgellm.graph import Join, RoundRows, Route, Slice, StackedLinear, Value, WeightedSum
from edgellm.kernels import records
from edgellm.kernels.packing import FLOAT_FORMATS, PackedMatrix
from edgellm.platforms.cpu_parts import Buffer, make_record, padded, weight_key
from edgellm.platforms.cpu_plan_base import PlanBase

# As in `edgellm.kernels.experts`, which executors do not import: it needs Numba.
RESULT_BYTES, ROW_BLOCK = 256, 32


class ExpertPlanner(PlanBase):
    """Plans what plain transformers do not have."""

    def _plan_other(self, operation: Route | StackedLinear | Slice | Join | RoundRows) -> None:
        match operation:
            case Route():
                self._route(operation)
            case StackedLinear():
                self._stacked_linear(operation)
            case Slice():
                self._slice(operation)
            case Join():
                self._join(operation)
            case RoundRows():
                self._round_rows(operation)

    def _route(self, operation: Route) -> None:
        source, target = self._buffers[operation.x.name], self._new(operation.out)
        experts = operation.x.width
        scratch = self._thread_memory(20 * padded(experts))
        record = make_record(
            records.ROUTE,
            rows=self.inputs.count_address(self._count),
            experts=experts,
            chosen=operation.chosen,
            input=source.address,
            input_stride=source.stride,
            output=target.address,
            output_stride=target.stride,
            bias=self._vector(operation.bias),
            normalize=int(operation.normalize),
            scale=self._constant(operation.scale),
            groups=operation.groups,
            chosen_groups=operation.chosen_groups,
            best_of_group=operation.best_of_group,
            scratch=scratch.address,
            scratch_stride=scratch.stride,
        )
        self._emit(f"routing.{operation.scores}", record, [source], [target])

    def _thread_memory(self, size: int) -> Buffer:
        """Memory that each thread has for itself, so that no step need wait for another one's use of it."""
        stride = -(-size // 64) * 64
        if stride not in self._scratch:
            self._scratch[stride] = self.pool.take(self._threads, stride)
        return self._scratch[stride]

    def _lists(self, route: Value, matrices: int, parts: int) -> tuple[Buffer, Buffer]:
        """Where the pairs of each matrix begin, and all pairs; listed when first asked for."""
        if route.name not in self._route_lists:
            routes = self._buffers[route.name]
            starts = self.pool.take(1, 4 * padded(matrices + 1))
            pairs = self.pool.take(1, 4 * padded(self._rows() * parts))
            record = make_record(
                records.ROUTE_LISTS,
                rows=self.inputs.count_address(self._count),
                matrices=matrices,
                chosen=parts,
                routes=routes.address,
                routes_stride=routes.stride,
                starts=starts.address,
                pairs=pairs.address,
            )
            self._emit("routing.lists", record, [routes], [starts, pairs])
            self._route_lists[route.name] = starts, pairs
        return self._route_lists[route.name]

    def _check_stack(self, operation: StackedLinear, matrices: int) -> None:
        """Every number that a route may hold must be that of a matrix."""
        needed = operation.parts
        if operation.route is not None:
            routes = [op for op in self._graph.operations if op.out == operation.route]
            needed = max((op.x.width for op in routes if isinstance(op, Route)), default=0)
        if needed > matrices:
            raise CorruptFileError(f"tensor {operation.weight} holds {matrices} matrices, {needed} are needed")

    def _stacked_linear(self, operation: StackedLinear) -> None:
        matrix = self._matrices[weight_key(operation)]
        group_bytes = matrix.format.group_bytes(matrix.blocks)
        matrices = len(matrix.data) // (matrix.groups * group_bytes)
        self._check_stack(operation, matrices)
        fields, reads = self._stacked_input(operation, matrix)
        if operation.route is not None:
            starts, pairs = self._lists(operation.route, matrices, operation.parts)
            fields |= {"starts": starts.address, "pairs": pairs.address}
            reads += [starts, pairs]
        else:
            matrices = operation.parts
        if operation.bias is not None:
            bias = np.asarray(self._vectors[operation.bias]).reshape(-1, matrix.rows)
            wide = np.zeros((len(bias), 16 * matrix.groups), np.float32)
            wide[:, : matrix.rows] = bias
            fields |= {"bias": self._constant(wide), "bias_bytes": 64 * matrix.groups}
        target = self._new(operation.out)
        row_bytes, scale_bytes = fields["row_bytes"] + 64, fields["scale_bytes"] + 64
        scratch = self._thread_memory(RESULT_BYTES + ROW_BLOCK * (row_bytes + scale_bytes))
        record = make_record(
            records.EXPERTS,
            rows=self.inputs.count_address(self._count),
            weights=matrix.data.ctypes.data,
            groups=matrix.groups,
            blocks=matrix.blocks,
            group_bytes=group_bytes,
            matrices=matrices,
            matrix_bytes=matrix.groups * group_bytes,
            width=matrix.rows,
            parts=operation.parts,
            input_stride=row_bytes,
            scales_stride=scale_bytes,
            output_stride=64,
            result=target.address,
            result_stride=target.stride,
            scratch=scratch.address,
            scratch_stride=scratch.stride,
            **fields,
        )
        self._emit(f"experts.{matrix.format.name}", record, reads, [target])

    def _stacked_input(self, operation: StackedLinear, matrix: PackedMatrix) -> tuple[dict[str, int], list[Buffer]]:
        """What the products read: codes and scales, or float32."""
        own = int(not operation.shared)
        if matrix.format.name in FLOAT_FORMATS:
            source = self._buffers[operation.x.name]
            size = 4 * matrix.columns
            fields = {"row_bytes": size, "scale_bytes": 0, "source_part": own * size}
            return fields | {"input": source.address, "source_stride": source.stride}, [source]
        quantized = self._quantized_input(operation.x)
        codes, scales = quantized.codes, quantized.scales
        scale_bytes = matrix.columns // 32 * 16
        fields = {
            "input": codes.address,
            "source_stride": codes.stride,
            "source_part": own * matrix.columns,
            "row_bytes": matrix.columns,
            "scales": scales.address,
            "source_scales_stride": scales.stride,
            "source_scales_part": own * scale_bytes,
            "scale_bytes": scale_bytes,
        }
        return fields, [codes, scales]

    def _weighted_sum(self, operation: WeightedSum, target: Buffer, accumulate: bool) -> None:
        source, routes = self._buffers[operation.x.name], self._buffers[operation.route.name]
        record = make_record(
            records.WEIGHTED_SUM,
            rows=self.inputs.count_address(self._count),
            width=operation.out.width,
            parts=operation.route.width // 2,
            input=source.address,
            input_stride=source.stride,
            routes=routes.address,
            routes_stride=routes.stride,
            output=target.address,
            output_stride=target.stride,
            accumulate=int(accumulate),
        )
        self._emit("elements.weighted_sum", record, [source, routes], [target])

    def _slice(self, operation: Slice) -> None:
        source, target = self._buffers[operation.x.name], self._new(operation.out)
        record = make_record(
            records.JOIN,
            rows=self.inputs.count_address(self._count),
            heads=operation.heads,
            a=source.address + 4 * operation.first,
            a_stride=source.stride,
            a_head=4 * (operation.x.width // operation.heads),
            a_width=operation.out.width // operation.heads,
            output=target.address,
            output_stride=target.stride,
        )
        self._emit("elements.join", record, [source], [target], self._count, operation.heads)

    def _join(self, operation: Join) -> None:
        a, b = self._buffers[operation.a.name], self._buffers[operation.b.name]
        target = self._new(operation.out)
        heads = operation.heads
        a_width, b_width = operation.a.width // heads, operation.b.width // (1 if operation.shared else heads)
        record = make_record(
            records.JOIN,
            rows=self.inputs.count_address(self._count),
            heads=heads,
            a=a.address,
            a_stride=a.stride,
            a_head=4 * a_width,
            a_width=a_width,
            b=b.address,
            b_stride=b.stride,
            b_head=0 if operation.shared else 4 * b_width,
            b_width=b_width,
            output=target.address,
            output_stride=target.stride,
        )
        # A part for all heads is read by whoever has one of them.
        share = () if operation.shared and heads > 1 else (self._count, heads)
        self._emit("elements.join", record, [a, b], [target], *share)

    def _round_rows(self, operation: RoundRows) -> None:
        source, target = self._buffers[operation.x.name], self._new(operation.out)
        fields, written = self._quantize_fields(operation.out)
        record = make_record(
            records.ROUND_ROWS,
            rows=self.inputs.count_address(self._count),
            width=operation.x.width,
            input=source.address,
            input_stride=source.stride,
            output=target.address,
            output_stride=target.stride,
            **{name: address for name, address in fields.items() if not name.startswith("fine")},
        )
        self._emit("elements.round_rows", record, [source], [target, *written])
