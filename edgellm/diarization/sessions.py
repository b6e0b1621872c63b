"""Running the two networks with ONNX Runtime, one thread for each call and several calls at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import EdgeLLMError


class Network:
    """An ONNX model of float32 inputs and one output; may be called from several threads at once."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of many kinds, none of them public
            raise EdgeLLMError(f"ONNX Runtime cannot load {path.name}: {error}", "report this") from error

    def __call__(self, **inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """The output for inputs by name."""
        result: Any = self._session.run(None, inputs)[0]
        return np.asarray(result, np.float32)
