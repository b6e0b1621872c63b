"""From a checkpoint's folder to a GGUF file."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgellm.convert.builder import Builder, Key, Output
from edgellm.convert.checkpoint import Checkpoint, open_checkpoint
from edgellm.convert.encode import FLOATS
from edgellm.convert.metadata import general_keys
from edgellm.convert.quantized import unquantized
from edgellm.convert.registry import find_family
from edgellm.convert.safetensors import shown
from edgellm.convert.settings import ConvertSettings
from edgellm.convert.source import find_checkpoint
from edgellm.convert.vocabulary import TokenizerFiles, tokenizer_keys
from edgellm.convert.writer import Planned, new_file, refuse_existing, write_file
from edgellm.errors import CorruptFileError, UnsupportedModelError
from edgellm.gguf import TensorType, open_gguf
from edgellm.models import build_graph

Progress = Callable[[str, int, int], None]
"""Called with the stage ("download", "convert"), bytes done and bytes in all."""

FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32, "tq1_0": 36, "tq2_0": 37, "mxfp4": 38}
"""``general.file_type`` of llama.cpp for each type of the matrices."""

_ALWAYS_FLOAT32 = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "position_embd.weight")
_OUTER = ("token_embd.weight", "output.weight")


@dataclass(frozen=True)
class Converted:
    """What a conversion made.

    Attributes:
        path: the file.
        architecture: its ``general.architecture``.
        type: of its matrices, in lower case.
        tensors: how many.
        parameters: values in them.
        size_bytes: of the file.
        seconds: the conversion took.
        notices: what the user should know.
    """

    path: Path
    architecture: str
    type: str
    tensors: int
    parameters: int
    size_bytes: int
    seconds: float
    notices: tuple[str, ...]


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    settings: ConvertSettings | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Convert a checkpoint in Hugging Face's format into a GGUF file, with llama.cpp's names and layout.

    Args:
        source: the folder with config.json, the tokenizer and the weights in safetensors files; or ``hf:owner/repo``.
        output: the file to write, or a folder for it; by default ``NAME-TYPE.gguf`` in the current folder.
        settings: type of the weights and so on.
        progress: told how far it is.

    Memory is bounded by the largest tensor, and mostly far below: rows are converted some megabytes at a time.

    Raises:
        ModelNotFoundError: there is no such folder or repository, or it holds no checkpoint.
        DownloadError: the repository cannot be fetched.
        CorruptFileError: a file breaks the rules of its format, or tensors are missing.
        UnsupportedModelError: an architecture, tensor, tokenizer or quantization that is not known.
        EdgeLLMError: the file exists, or cannot be written.
    """
    settings = settings or ConvertSettings()
    began = time.monotonic()
    folder = find_checkpoint(source, progress, settings.offline)
    with open_checkpoint(folder) as checkpoint:
        model = describe(checkpoint)
        kind = _wanted_type(settings, checkpoint, model)
        planned = [_plan(output_tensor, kind) for output_tensor in model.outputs]
        notices = [*checkpoint.notices, *model.notices]
        path = output_path(output, checkpoint.folder, settings, kind)
        refuse_existing(path, settings.force)
        keys = _all_keys(checkpoint, model, planned, kind, settings, notices)
        report = None if progress is None else lambda done, total: progress("convert", done, total)
        with new_file(path, sum(tensor.size_bytes for tensor in planned), settings.force) as temporary:
            threads = settings.threads or min(8, os.cpu_count() or 1)
            size = write_file(temporary, model.architecture, keys, planned, threads, report)
            notices += _check_file(temporary)
    return Converted(
        path,
        model.architecture,
        kind,
        len(planned),
        sum(math.prod(tensor.shape) for tensor in planned),
        size,
        time.monotonic() - began,
        tuple(notices),
    )


def _check_file(path: Path) -> list[str]:
    """Describe the file as a graph, as loading it does; return notices.

    Raises:
        CorruptFileError: a tensor has a shape that does not go with the others.
    """
    with open_gguf(path) as file:
        try:
            build_graph(file)
        except UnsupportedModelError as error:
            return [f"edgellm itself cannot run this model: {error}"]
    return []


def describe(checkpoint: Checkpoint) -> Builder:
    """The keys and tensors of the file to be.

    Raises:
        UnsupportedModelError: an architecture, tensor or quantization that is not known.
    """
    tensors = unquantized(checkpoint)
    model = Builder(checkpoint.config, tensors)
    find_family(checkpoint.architecture)(model)
    model.finish()
    return model


def _wanted_type(settings: ConvertSettings, checkpoint: Checkpoint, model: Builder) -> str:
    """The type of the matrices; ``auto`` is what most of them are stored as."""
    is_ternary = any(output.tensor.is_ternary for output in model.outputs)
    if settings.type.startswith("tq") and not is_ternary:
        raise UnsupportedModelError(
            f"type {settings.type} is for models with ternary weights, which {checkpoint.architecture} here has not",
            "choose another --type",
        )
    if settings.type != "auto":
        return settings.type
    if is_ternary:
        return "tq2_0"
    if checkpoint.config.part("quantization_config").get("quant_method") == "fp8":
        return "bf16"
    counts = dict.fromkeys(FLOATS, 0)
    for output in model.outputs:
        if output.type is None and len(output.tensor.shape) > 1 and output.tensor.kind in counts:
            counts[output.tensor.kind] += output.tensor.size
    stored = max(counts, key=lambda kind: counts[kind])
    return "f32" if stored == "F64" else stored.lower()


def _plan(output: Output, kind: str) -> Planned:
    """Which type a tensor gets: the rules of llama.cpp's converter."""
    name, tensor = output.name, output.tensor
    if not 1 <= len(tensor.shape) <= 4 or 0 in tensor.shape:
        raise CorruptFileError(f"tensor {name} would have the shape {tensor.shape}, which no GGUF file can hold")
    if output.type is not None:
        return Planned(name, tensor, output.type)
    if tensor.kind not in FLOATS:
        raise UnsupportedModelError(
            f"tensor {name} is stored as {tensor.kind}, which is no known kind of weight",
            "convert the unquantized model",
        )
    if len(tensor.shape) < 2 or name.endswith(("_norm.weight", *_ALWAYS_FLOAT32)) or not name.endswith(".weight"):
        return Planned(name, tensor, TensorType.F32)
    if kind.startswith("tq") and (name in _OUTER or not output.tensor.is_ternary):
        return Planned(name, tensor, TensorType.F16)
    wanted = TensorType[kind.upper()]
    return Planned(name, tensor, wanted if tensor.shape[-1] % wanted.block_size == 0 else TensorType.F16)


def _all_keys(
    checkpoint: Checkpoint,
    model: Builder,
    planned: Sequence[Planned],
    kind: str,
    settings: ConvertSettings,
    notices: list[str],
) -> dict[str, Key]:
    files = TokenizerFiles(checkpoint.folder)
    shapes = {tensor.name: tensor.shape for tensor in planned}
    parameters = sum(map(math.prod, shapes.values()))
    keys = general_keys(checkpoint.folder, settings.name, files.generation, parameters, _expert_sizes(shapes))
    keys.update(model.keys)
    if any(tensor.type is TensorType.MXFP4 for tensor in planned) and kind in ("f32", "f16", "bf16"):
        kind = "mxfp4"
    keys["general.file_type"] = Key(FILE_TYPES[kind], "u32")
    keys["general.quantization_version"] = Key(2, "u32")
    rows = shapes["token_embd.weight"][0]
    keys.update(
        tokenizer_keys(files, checkpoint.config, rows, model.pre_tokenizer_hint, settings.pre_tokenizer, notices)
    )
    keys.update(model.token_keys)
    _check_texts(keys)
    return keys


def _check_texts(keys: dict[str, Key]) -> None:
    """Raise for text that cannot be written: JSON can spell halves of characters."""
    for name, key in keys.items():
        for text in key.value if key.type == "strings" else [key.value]:
            try:
                if isinstance(text, str):
                    text.encode()
            except UnicodeEncodeError:
                raise CorruptFileError(f"{name} has the text {shown(text)}, which is not valid Unicode") from None


def _expert_sizes(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int, int]:
    """Values outside the experts, values of one expert of all layers, and the number of experts."""
    mixed = {name: shape for name, shape in shapes.items() if "_exps." in name and len(shape) == 3}
    shared = sum(math.prod(shape) for name, shape in shapes.items() if name not in mixed)
    return shared, sum(math.prod(shape[1:]) for shape in mixed.values()), max((s[0] for s in mixed.values()), default=0)


def output_path(output: str | os.PathLike[str] | None, folder: Path, settings: ConvertSettings, kind: str) -> Path:
    """The file to write: as named, or named after the model and the type in the folder given or the current one."""
    path = Path() if output is None else Path(output)
    if output is not None and not path.is_dir():
        return path
    name = settings.name or folder.resolve().name
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip("-.") or "model"
    return path / f"{safe}-{kind.upper()}.gguf"
