"""A thin layer on the ``onnx`` package, with which the two networks are written down in one page each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

OPSET = 17
_IR_VERSION = 8


class OnnxWriter:
    """Collects nodes and weights; values are known by name."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def weight(self, values: NDArray[Any]) -> str:
        """Add a constant; float64 is stored as float32."""
        from onnx import numpy_helper

        values = values.astype(np.float32) if values.dtype == np.float64 else values
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def apply(self, operation: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output that is used."""
        from onnx import helper

        name = f"v{len(self._nodes)}"
        self._nodes.append(helper.make_node(operation, list(inputs), [name], **attributes))
        return name

    def affine(self, x: str, scale: NDArray[Any], shift: NDArray[Any]) -> str:
        """x * scale + shift for each channel of (batch, channels, time)."""
        product = self.apply("Mul", x, self.weight(scale.reshape(1, -1, 1)))
        return self.apply("Add", product, self.weight(shift.reshape(1, -1, 1)))

    def finish(
        self, name: str, inputs: Mapping[str, Sequence[int | str]], result: str, shape: Sequence[int | str]
    ) -> bytes:
        """The model with float32 inputs of the given shapes and one output, as the bytes of an ONNX file."""
        from onnx import TensorProto, helper

        self._nodes.append(helper.make_node("Identity", [result], ["output"]))
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info(key, TensorProto.FLOAT, inputs[key]) for key in inputs],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
            self._weights,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="edgellm", ir_version=_IR_VERSION
        )
        serialized: bytes = model.SerializeToString()
        return serialized
