"""Whisper's checkpoints to GGUF: of Hugging Face, OpenAI, CTranslate2 and whisper.cpp."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.convert.array_file import open_array_file
from edgellm.convert.builder import Key
from edgellm.convert.checkpoint import Checkpoint, open_checkpoint, read_json
from edgellm.convert.config import Config
from edgellm.convert.conversion import FILE_TYPES, Converted, Progress, output_path
from edgellm.convert.ctranslate2 import is_ctranslate2, read_variables
from edgellm.convert.encode import FLOATS
from edgellm.convert.ggml import is_ggml, read_ggml
from edgellm.convert.metadata import general_keys
from edgellm.convert.safetensors import parse_json
from edgellm.convert.settings import ConvertSettings
from edgellm.convert.tensors import LazyTensor
from edgellm.convert.torch_file import open_torch_file
from edgellm.convert.whisper_finer import finer
from edgellm.convert.whisper_names import IGNORED, from_hugging_face, our_name
from edgellm.convert.whisper_tokens import vocabulary_keys
from edgellm.convert.writer import Planned, new_file, refuse_existing, write_file
from edgellm.errors import CorruptFileError, UnsupportedModelError
from edgellm.gguf import TensorType, open_gguf
from edgellm.models.whisper import build_whisper

_ARCHITECTURE = "WhisperForConditionalGeneration"
_EPSILON = 1e-5
_CONVOLUTION_TAPS = 3


@dataclass(frozen=True)
class WhisperSource:
    """A checkpoint, whatever its format.

    Attributes:
        folder: where it lies, with what describes its vocabulary.
        tensors: under OpenAI's names.
        encoder_heads: attention heads of the encoder's layers.
        decoder_heads: of the decoder's.
        tokens: the vocabulary's text tokens by rank, where the weights' own file has them.
        alignment_heads: (layer, head) of the cross-attention that follows the speech; None if it is not known.
    """

    folder: Path
    tensors: dict[str, LazyTensor]
    encoder_heads: int
    decoder_heads: int
    tokens: Sequence[bytes] | None = None
    alignment_heads: tuple[tuple[int, int], ...] | None = None


def is_whisper(source: str | os.PathLike[str]) -> bool:
    """Whether something is a Whisper checkpoint of a format that is known."""
    path = Path(source)
    if path.is_file():
        return path.suffix == ".pt" or is_ggml(path)
    if is_ctranslate2(path / "model.bin"):
        return True
    config = path / "config.json"
    if not config.is_file() or config.stat().st_size > 1 << 20:
        return False
    try:
        return _ARCHITECTURE in (parse_json(config.read_bytes(), "config.json").get("architectures") or [])
    except (CorruptFileError, TypeError):
        return False


def convert_whisper(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    settings: ConvertSettings | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Convert a checkpoint of Whisper into a GGUF file.

    Args:
        source: a folder in Hugging Face's or CTranslate2's format, OpenAI's .pt file (nothing in it is executed; the
            model's tokenizer.json must lie beside it) or a file of whisper.cpp's.
        output: the file to write, or a folder for it; by default ``NAME-TYPE.gguf`` in the current folder.
        settings: type of the weights and so on.
        progress: told how far it is.

    Raises:
        ModelNotFoundError: there is no such file or folder.
        CorruptFileError: a file breaks the rules of its format, or tensors are missing.
        UnsupportedModelError: a tensor, vocabulary or format that is not known.
        EdgeLLMError: the file exists, or cannot be written.
    """
    settings = settings or ConvertSettings()
    began = time.monotonic()
    with open_whisper(Path(source)) as model:
        kind = _wanted_type(settings, model)
        own = [_plan(name, tensor, kind) for name, tensor in model.tensors.items() if name not in IGNORED]
        planned = finer(own) if kind == "q8_0" else own
        path = output_path(output, _named(Path(source)), settings, kind)
        refuse_existing(path, settings.force)
        keys = _keys(model, own, kind, settings.name or _named(Path(source)).name)
        report = None if progress is None else lambda done, total: progress("convert", done, total)
        with new_file(path, sum(tensor.size_bytes for tensor in planned), settings.force) as temporary:
            threads = settings.threads or min(8, os.cpu_count() or 1)
            size = write_file(temporary, "whisper", keys, planned, threads, report)
            with open_gguf(temporary) as file:
                build_whisper(file)
    parameters = sum(math.prod(tensor.shape) for tensor in own)
    return Converted(path, "whisper", kind, len(planned), parameters, size, time.monotonic() - began, ())


def convert_for_hub(folder: Path, output: Path, progress: Progress | None) -> None:
    """Make the file of a model that was fetched as a checkpoint: Q8_0, named after the file."""
    name = output.stem.removesuffix("-Q8_0")
    convert_whisper(folder, output, ConvertSettings("q8_0", force=True, name=name), progress)


def _named(source: Path) -> Path:
    return source.resolve() if source.is_dir() else source.resolve().with_suffix("")


@contextmanager
def open_whisper(path: Path) -> Iterator[WhisperSource]:
    """Open a checkpoint of any format; it stays open as long as the block runs."""
    if path.is_file() and is_ggml(path):
        with open_array_file(path) as file:
            model = read_ggml(file)
            parameters = model.parameters
            yield WhisperSource(
                path.parent, model.tensors, parameters["n_audio_head"], parameters["n_text_head"], model.tokens
            )
    elif path.is_file():
        with open_torch_file(path) as content:
            yield _from_openai(path, content)
    elif is_ctranslate2(path / "model.bin"):
        with open_array_file(path / "model.bin") as file:
            variables = read_variables(file)
            listed = read_json(path, "config.json").get("alignment_heads") if (path / "config.json").is_file() else None
            yield WhisperSource(
                path, variables.tensors, variables.encoder_heads, variables.decoder_heads, None, _pairs(listed)
            )
    else:
        with open_checkpoint(path) as checkpoint:
            yield _from_hugging_face(checkpoint)


def _from_openai(path: Path, content: Any) -> WhisperSource:
    dims, state = (content.get(name) if isinstance(content, dict) else None for name in ("dims", "model_state_dict"))
    if not isinstance(dims, dict) or not isinstance(state, dict):
        raise UnsupportedModelError(f"{path.name} has no dims and model_state_dict, so it is not one of OpenAI's")
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, LazyTensor)}
    sizes = Config(dims, path.name)
    return WhisperSource(path.parent, tensors, sizes.integer("n_audio_head"), sizes.integer("n_text_head"))


def _from_hugging_face(checkpoint: Checkpoint) -> WhisperSource:
    config = checkpoint.config
    generation = checkpoint.folder / "generation_config.json"
    listed = read_json(checkpoint.folder, generation.name).get("alignment_heads") if generation.is_file() else None
    return WhisperSource(
        checkpoint.folder,
        {from_hugging_face(name): tensor for name, tensor in checkpoint.tensors.items()},
        config.integer("encoder_attention_heads"),
        config.integer("decoder_attention_heads"),
        None,
        _pairs(listed),
    )


def _pairs(listed: Any) -> tuple[tuple[int, int], ...] | None:
    """(layer, head) pairs of a JSON file; None if there are none."""
    if not isinstance(listed, list):
        return None
    pairs = []
    for entry in listed:
        if not isinstance(entry, list) or len(entry) != 2 or not all(type(number) is int for number in entry):
            raise CorruptFileError("alignment_heads is no list of pairs of a layer and a head")
        pairs.append((entry[0], entry[1]))
    return tuple(pairs)


def _wanted_type(settings: ConvertSettings, model: WhisperSource) -> str:
    if settings.type.startswith("tq"):
        raise UnsupportedModelError(f"type {settings.type} is for ternary weights, which Whisper has not")
    if settings.type != "auto":
        return settings.type
    kinds = {tensor.kind for tensor in model.tensors.values() if len(tensor.shape) > 1}
    return "f32" if kinds <= {"F32", "F64"} else "bf16" if "BF16" in kinds else "f16"


def _plan(name: str, tensor: LazyTensor, kind: str) -> Planned:
    """The tensor under its new name, in the shape and type of the file."""
    if tensor.kind not in FLOATS:
        raise UnsupportedModelError(f"tensor {name} is stored as {tensor.kind}, which is no known kind of weight")
    ours = our_name(name)
    if ours.startswith("enc.conv"):
        tensor = _convolution(name, tensor) if ours.endswith(".weight") else _flat(tensor)
    if len(tensor.shape) == 1 or ours.endswith(("position_embd.weight", "_norm.weight")):
        return Planned(ours, tensor, TensorType.F32)
    if len(tensor.shape) != 2:
        raise CorruptFileError(f"tensor {name} has the shape {tensor.shape}, expected a matrix")
    wanted = TensorType[kind.upper()]
    return Planned(ours, tensor, wanted if tensor.shape[1] % wanted.block_size == 0 else TensorType.F16)


def _convolution(name: str, tensor: LazyTensor) -> LazyTensor:
    """(out, in, taps) to (out, taps * in): the matrix that multiplies neighbouring frames side by side."""
    if len(tensor.shape) != 3 or tensor.shape[2] != _CONVOLUTION_TAPS:
        raise CorruptFileError(f"tensor {name} has the shape {tensor.shape}, expected a convolution of 3")
    out, width, taps = tensor.shape

    def load(start: int, stop: int) -> NDArray[Any]:
        return np.ascontiguousarray(tensor.load(start, stop).swapaxes(1, 2)).reshape(stop - start, taps * width)

    return LazyTensor((out, taps * width), tensor.kind, load)


def _flat(tensor: LazyTensor) -> LazyTensor:
    """whisper.cpp's biases of convolutions are matrices of one column."""
    return LazyTensor(tensor.shape[:1], tensor.kind, lambda start, stop: tensor.load(start, stop).reshape(-1))


def _keys(model: WhisperSource, planned: Sequence[Planned], kind: str, name: str) -> dict[str, Key]:
    shapes = {tensor.name: tensor.shape for tensor in planned}

    def shape(tensor: str, dimensions: int) -> tuple[int, ...]:
        found = shapes.get(tensor)
        if found is None or len(found) != dimensions:
            raise CorruptFileError(f"the checkpoint has no tensor {tensor} of {dimensions} dimensions")
        return found

    rows, width = shape("token_embd.weight", 2)
    parameters = sum(map(math.prod, shapes.values()))
    keys = general_keys(model.folder, name, Config({}), parameters, (0, 0, 0))
    keys["general.file_type"] = Key(FILE_TYPES[kind], "u32")
    keys["general.quantization_version"] = Key(2, "u32")
    sizes = {
        "context_length": shape("position_embd.weight", 2)[0],
        "embedding_length": width,
        "block_count": _layers(shapes, "blk."),
        "attention.head_count": model.decoder_heads,
        "feed_forward_length": shape("blk.0.ffn_up.weight", 2)[0],
        "encoder.context_length": shape("enc.position_embd.weight", 2)[0],
        "encoder.embedding_length": shape("enc.conv2.weight", 2)[0],
        "encoder.block_count": _layers(shapes, "enc.blk."),
        "encoder.attention.head_count": model.encoder_heads,
        "encoder.feed_forward_length": shape("enc.blk.0.ffn_up.weight", 2)[0],
        "encoder.mel_bins": shape("enc.conv1.weight", 2)[1] // _CONVOLUTION_TAPS,
    }
    keys.update({f"whisper.{key}": Key(value, "u32") for key, value in sizes.items()})
    for prefix in ("whisper", "whisper.encoder"):
        keys[f"{prefix}.attention.layer_norm_epsilon"] = Key(_EPSILON, "f32")
    if model.alignment_heads:
        keys["whisper.alignment_heads"] = Key([number for pair in model.alignment_heads for number in pair], "i32s")
    keys.update(vocabulary_keys(model.folder, model.tokens, rows))
    return keys


def _layers(shapes: dict[str, tuple[int, ...]], prefix: str) -> int:
    count = 0
    while f"{prefix}{count}.attn_q.weight" in shapes:
        count += 1
    return count
