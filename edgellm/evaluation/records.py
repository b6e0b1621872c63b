"""Perplexities that were measured, kept so that ``edgellm fit`` can show what a type costs.

One small JSON file beside the models' cache; a damaged one counts as empty, and a measurement that cannot be kept is
only a notice: the figure itself was shown.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.evaluation.perplexity import Perplexity
from edgellm.folders import home_folder

if TYPE_CHECKING:
    from edgellm.gguf import GGUFFile
    from edgellm.inspection import Summary

MOST_RECORDS = 1000
LOCK_SECONDS = 10
log = logging.getLogger("edgellm.evaluation")


@dataclass(frozen=True)
class Record:
    """A perplexity that was measured.

    Attributes:
        model: identity of the model, equal for all its quantized files (see ``model_identity``).
        type: what the file calls its mix of types, such as Q4_K_M.
        size_bytes: of the file or all shards.
        text: the beginning of the SHA-256 of the text.
        context, windows, perplexity, standard_error: as for ``Perplexity``.
    """

    model: str
    type: str
    size_bytes: int
    text: str
    context: int
    windows: int
    perplexity: float
    standard_error: float

    @property
    def key(self) -> tuple[object, ...]:
        """A later measurement of the same replaces an earlier one."""
        return self.model, self.type, self.size_bytes, self.text, self.context, self.windows

    @property
    def measure(self) -> tuple[str, int, int]:
        """Only figures of one text, cut in one way, compare."""
        return self.text, self.context, self.windows


def records_file() -> Path:
    """Where the measurements are."""
    return home_folder() / "measurements.json"


def model_identity(file: GGUFFile) -> str:
    """The same for all files that were quantized from one model: name, architecture, and shapes of all tensors."""
    digest = hashlib.sha256()
    for key in ("general.architecture", "general.name", "general.basename", "general.finetune"):
        digest.update(f"{key}={file.metadata.get(key)!r}\n".encode("utf-8", "replace"))
    for tensor in sorted(file.tensors.values(), key=lambda tensor: tensor.name):
        if tensor.name != "output.weight":  # left out where it is the embedding
            digest.update(f"{tensor.name}{tuple(tensor.shape)}\n".encode("utf-8", "replace"))
    return digest.hexdigest()[:24]


def file_type(summary: Summary) -> str:
    """The name of a file's mix of types: what it says, or the type that takes most of it."""
    if summary.quantization:
        return summary.quantization[:24]
    return summary.types[0].type if summary.types else "unknown"


def remember(file: GGUFFile, text: str, found: Perplexity) -> None:
    """Keep a measurement of a file."""
    from edgellm.inspection import summarize

    summary = summarize(file)
    text_digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
    record = Record(
        model_identity(file),
        file_type(summary),
        summary.size_bytes,
        text_digest,
        found.context,
        found.windows,
        found.perplexity,
        found.standard_error,
    )
    try:
        _add(record)
    except (OSError, TimeoutError) as error:
        log.warning("the measurement was not kept for edgellm fit: %s", error)


def _add(record: Record) -> None:
    from filelock import FileLock

    from edgellm.hub.files import write_atomically

    path = records_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_SECONDS):
        for leftover in path.parent.glob(f".{path.name}.*.tmp"):  # of a process that was killed
            leftover.unlink(missing_ok=True)
        kept = [other for other in read_records() if other.key != record.key][-(MOST_RECORDS - 1) :]
        write_atomically(path, json.dumps([asdict(one) for one in [*kept, record]], indent=1, allow_nan=False))


def read_records(model: str | None = None) -> list[Record]:
    """The measurements, of one model or all; what cannot be read is left out."""
    try:
        with records_file().open("rb") as file:
            entries = json.loads(file.read(MOST_RECORDS * 1000))
    except (OSError, ValueError, RecursionError):
        return []
    found = []
    for entry in entries if isinstance(entries, list) else []:
        with suppress(TypeError, ValueError):
            found.append(_record(entry))
    return [record for record in found if model in (None, record.model)]


def _record(entry: Mapping[str, Any]) -> Record:
    """Raises TypeError or ValueError where an entry is damaged."""
    if not isinstance(entry, dict):
        raise TypeError("not an object")
    record = Record(**entry)
    kinds = {"str": str, "int": int, "float": (int, float)}
    for field in fields(Record):
        value = getattr(record, field.name)
        if not isinstance(value, kinds[str(field.type)]) or isinstance(value, bool):  # type: ignore[arg-type]
            raise TypeError(field.name)
    if not record.perplexity > 0:
        raise ValueError("perplexity")
    return record
