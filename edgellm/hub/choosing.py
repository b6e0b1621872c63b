"""Which of a repository's files a name means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgellm.errors import ModelNotFoundError
from edgellm.hub.files import FileGroup, group_model_files
from edgellm.hub.names import HuggingFaceName

DEFAULT_QUANTIZATION = "Q4_K_M"


def choose_group(name: HuggingFaceName, paths: Iterable[str]) -> FileGroup:
    """The files that a name means, among those of the repository.

    Without a choice: Q4_K_M, or the only model there is.

    Raises:
        ModelNotFoundError: none fits, or several do; what there is gets listed.
    """
    groups = [group for group in group_model_files(paths) if _is_model(group.name)]
    if not groups:
        raise ModelNotFoundError(
            f"{name.repository} has no .gguf file", "look for a repository of the model whose name ends in -GGUF"
        )
    if name.choice is None and len(groups) == 1:
        return groups[0]
    wanted = name.choice or DEFAULT_QUANTIZATION
    fitting = _fitting(groups, wanted)
    if len(fitting) == 1:
        fitting[0].require_complete()
        return fitting[0]
    if fitting:
        files = ", ".join(group.name for group in fitting)
        message = f"{name.repository} has several files for {wanted}: {files}"
        raise ModelNotFoundError(message, "name one: hf:owner/repo:FILE")
    labels = sorted({group.quantization or group.name for group in groups})
    message = f"{name.repository} has no {wanted}; it has {', '.join(labels)}"
    raise ModelNotFoundError(message, f"choose one, such as hf:{name.repository}:{labels[0]}")


def _fitting(groups: Sequence[FileGroup], wanted: str) -> list[FileGroup]:
    """By file name, else by quantization exactly, else with a maker's prefix (UD-Q4_K_XL for Q4_K_XL)."""
    lowered = wanted.lower()
    exact = [group for group in groups if lowered in (group.name.lower(), *map(str.lower, group.members))]
    same = [group for group in groups if (group.quantization or "").lower() == lowered]
    prefixed = [group for group in groups if (group.quantization or "").lower() == f"ud-{lowered}"]
    return exact or same or prefixed


def _is_model(path: str) -> bool:
    """Leaves out the image projectors and importance matrices that lie beside models."""
    base = path.rpartition("/")[2].lower()
    return not base.startswith("mmproj") and "imatrix" not in base
