"""Reading the tensors of the networks' checkpoints, which are pickles that are not executed: see `open_torch_file`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgellm.convert.tensors import LazyTensor
from edgellm.convert.torch_file import open_torch_file
from edgellm.errors import CorruptFileError

Tensors = dict[str, NDArray[Any]]


def read_checkpoint(path: Path) -> Tensors:
    """The tensors of a ``.pt`` file by name: of a state dictionary, or of one under the key ``state_dict``.

    Counters, which have no dimensions, are left out.

    Raises:
        CorruptFileError: it is damaged, or no dictionary of tensors.
        UnsupportedModelError: its pickle names anything but tensors.
    """
    with open_torch_file(path) as content:
        if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
            content = content["state_dict"]
        if not isinstance(content, Mapping) or not content:
            raise CorruptFileError(f"{path.name} holds no dictionary of tensors", "edgellm pull diarization --force")
        for name, value in content.items():
            if not isinstance(name, str) or not isinstance(value, LazyTensor):
                raise CorruptFileError(f"{path.name} holds something under {name!r} that is not a tensor")
        return {name: tensor.load(0, tensor.shape[0]) for name, tensor in content.items() if tensor.shape}
