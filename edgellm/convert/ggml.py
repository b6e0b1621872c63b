"""whisper.cpp's model files ("ggml"): hyper-parameters, mel filters, vocabulary and tensors, one after another.

Source: the format as whisper.cpp reads it (``src/whisper.cpp``, whisper_model_load); all numbers little-endian.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from edgellm.convert.array_file import MAX_NAME_BYTES, ArrayFile, check_shape
from edgellm.convert.tensors import LazyTensor
from edgellm.gguf import TensorType
from edgellm.gguf.cursor import Cursor, printable

MAGIC = 0x67676D6C
_FIELDS = (
    "n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer", "n_text_ctx", "n_text_state",
    "n_text_head", "n_text_layer", "n_mels", "ftype",
)  # fmt: skip
_MOST_TOKENS = 1 << 20
_LONGEST_TOKEN = 1024
_PLAIN = {TensorType.F32: "F32", TensorType.F16: "F16"}


@dataclass(frozen=True)
class GgmlModel:
    """What such a file holds: hyper-parameters by whisper.cpp's names, tokens as bytes, tensors."""

    parameters: dict[str, int]
    tokens: list[bytes]
    tensors: dict[str, LazyTensor]


def is_ggml(path: Path) -> bool:
    """Whether a file begins like one of whisper.cpp's."""
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC.to_bytes(4, "little")
    except OSError:
        return False


def read_ggml(file: ArrayFile) -> GgmlModel:
    """The whole model; tensors are read when they are needed.

    Raises:
        CorruptFileError: the file breaks the rules of its format.
    """
    cursor = file.cursor
    if cursor.u32("the magic number") != MAGIC:
        raise cursor.error("the magic number", "is not that of a ggml file", 0)
    parameters = {name: cursor.u32(name) for name in _FIELDS}
    filters = cursor.u32("the number of mel filters") * cursor.u32("the width of the mel filters")
    cursor.skip(4 * filters, "the mel filters")
    count = cursor.u32("the number of tokens")
    if count > _MOST_TOKENS:
        raise cursor.error("the number of tokens", f"is {count}")
    tokens = [_token(cursor) for _ in range(count)]
    tensors: dict[str, LazyTensor] = {}
    while cursor.remaining:
        name, tensor = _tensor(file, cursor)
        if name in tensors:
            raise cursor.error(f"tensor {printable(name)}", "is there twice")
        tensors[name] = tensor
    return GgmlModel(parameters, tokens, tensors)


def _token(cursor: Cursor) -> bytes:
    length = cursor.u32("a token's length")
    if length > _LONGEST_TOKEN:
        raise cursor.error("a token's length", f"is {length}")
    return cursor.take(length, "a token")


def _tensor(file: ArrayFile, cursor: Cursor) -> tuple[str, LazyTensor]:
    dimensions, length, code = (cursor.u32("a tensor's description") for _ in range(3))
    if not 1 <= dimensions <= 4 or not 1 <= length <= MAX_NAME_BYTES:
        raise cursor.error("a tensor's description", f"has {dimensions} dimensions and a name of {length} bytes")
    shape = tuple(cursor.u32("a tensor's shape") for _ in range(dimensions))[::-1]
    name = cursor.take(length, "a tensor's name").decode("utf-8", "replace")
    check_shape(cursor, name, shape)
    try:
        kind = TensorType(code)
    except ValueError:
        raise cursor.error(f"the type of {printable(name)}", f"is {code}") from None
    offset = cursor.position
    if kind in _PLAIN:
        tensor = file.plain(offset, shape, _PLAIN[kind])
    elif len(shape) == 2 and shape[1] % kind.block_size == 0:
        tensor = file.blocks(offset, shape, kind)
    else:
        raise cursor.error(f"tensor {printable(name)}", f"of the shape {shape} cannot be {kind.name}")
    cursor.skip(math.prod(shape) // kind.block_size * kind.block_bytes, f"the data of {printable(name)}")
    return name, tensor
