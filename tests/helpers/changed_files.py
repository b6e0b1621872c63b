"""Model files with keys or tensors changed in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.gguf import GGUFFile, TensorInfo


@dataclass(frozen=True)
class ChangedFile:
    """Stands in for an open file where only its description is read."""

    file: GGUFFile
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    contents: Mapping[str, NDArray[np.float32]]

    def decode(self, name: str, rows: Any = None) -> NDArray[np.float32]:
        """The values that a tensor was given here, else those of the file."""
        return self.contents[name] if name in self.contents else self.file.decode(name, rows)


def changed(
    file: GGUFFile,
    keys: Mapping[str, Any] | None = None,
    shapes: Mapping[str, tuple[int, ...] | None] | None = None,
    contents: Mapping[str, NDArray[np.float32]] | None = None,
) -> ChangedFile:
    """``file`` with other keys, tensor shapes or values; None takes a key or tensor away, new names are added."""
    metadata = {name: value for name, value in file.metadata.items() if not name.startswith("tokenizer.")}
    metadata = {name: value for name, value in (metadata | dict(keys or {})).items() if value is not None}
    contents = dict(contents or {})
    sample = next(iter(file.tensors.values()))
    tensors = dict(file.tensors)
    for name, shape in ({name: values.shape for name, values in contents.items()} | dict(shapes or {})).items():
        if shape is None:
            del tensors[name]
        else:
            tensors[name] = replace(tensors.get(name, sample), name=name, shape=shape)
    return ChangedFile(file, metadata, tensors, contents)
