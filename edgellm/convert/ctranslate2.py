"""CTranslate2's model.bin: a list of named variables, and the names that Whisper's have in OpenAI's checkpoints.

Source: the format as CTranslate2 4 writes it (``specs/model_spec.py``): version, name and revision of the
specification, the variables one after another, then aliases of them; all numbers little-endian.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from edgellm.convert.array_file import MAX_NAME_BYTES, ArrayFile, check_shape, scaled_rows
from edgellm.convert.encode import to_float32
from edgellm.convert.safetensors import KINDS
from edgellm.convert.tensors import LazyTensor, rows
from edgellm.errors import CorruptFileError, UnsupportedModelError
from edgellm.gguf.cursor import Cursor, printable

_KINDS = ("F32", "I8", "I16", "I32", "F16", "BF16")
_VERSIONS = range(4, 7)
_MOST_VARIABLES = 100_000
_SPECIFICATION = "WhisperSpec"
_LAYER = re.compile(r"(encoder|decoder)/layer_(\d+)/(self_attention|attention|ffn)/(.+)")
_OUTER = {
    "encoder/conv1": "encoder.conv1",
    "encoder/conv2": "encoder.conv2",
    "encoder/layer_norm": "encoder.ln_post",
    "decoder/layer_norm": "decoder.ln",
}
_ENDINGS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}


@dataclass(frozen=True)
class Variables:
    """What model.bin holds.

    Attributes:
        tensors: of Whisper, under OpenAI's names.
        encoder_heads: attention heads of the encoder's layers.
        decoder_heads: of the decoder's.
    """

    tensors: dict[str, LazyTensor]
    encoder_heads: int
    decoder_heads: int


def is_ctranslate2(path: Path) -> bool:
    """Whether a file begins like a model.bin."""
    try:
        with path.open("rb") as file:
            head = file.read(6)
    except OSError:
        return False
    return len(head) == 6 and struct.unpack_from("<I", head)[0] in _VERSIONS and 1 < head[4] < 64 and head[5] == 0


def read_variables(file: ArrayFile) -> Variables:
    """The variables of a Whisper model.

    Raises:
        CorruptFileError: the file breaks the rules of its format, or something is missing.
        UnsupportedModelError: it is another kind of model.
    """
    found = _read_all(file)
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in found.items():
        if len(tensor.shape) and not name.endswith("_scale"):
            scales = found.get(f"{name}_scale")
            whole = tensor if scales is None else scaled_rows(tensor, _by_row(scales, tensor, name))
            if whole.kind not in ("F32", "F16", "BF16", "F64"):
                continue  # lists of heads
            tensors.update(_renamed(name, whole))
    return Variables(tensors, _number(found, "encoder/num_heads"), _number(found, "decoder/num_heads"))


def _by_row(scales: LazyTensor, tensor: LazyTensor, name: str) -> LazyTensor:
    if scales.shape != tensor.shape[:1]:
        raise UnsupportedModelError(f"the scales of {name} have the shape {scales.shape}, expected one for each row")
    return scales


def _read_all(file: ArrayFile) -> dict[str, LazyTensor]:
    cursor = file.cursor
    version = cursor.u32("the version")
    if version not in _VERSIONS:
        raise cursor.error("the version", f"is {version}, known are {_VERSIONS.start} to {_VERSIONS.stop - 1}", 0)
    kind = _string(cursor, "the specification")
    if kind != _SPECIFICATION:
        raise UnsupportedModelError(
            f"{file.path.name} is a {printable(kind)} of CTranslate2", f"only a {_SPECIFICATION} can be converted"
        )
    cursor.u32("the revision")
    count = cursor.u32("the number of variables")
    if count > _MOST_VARIABLES:
        raise cursor.error("the number of variables", f"is {count}")
    found: dict[str, LazyTensor] = {}
    for _ in range(count):
        name, tensor = _variable(file, cursor)
        if name in found:
            raise cursor.error(f"variable {printable(name)}", "is there twice")
        found[name] = tensor
    return found


def _string(cursor: Cursor, what: str) -> str:
    length = int.from_bytes(cursor.take(2, what), "little")
    if not 0 < length <= MAX_NAME_BYTES:
        raise cursor.error(what, f"has a length of {length} bytes")
    try:
        return cursor.take(length, what).rstrip(b"\0").decode()
    except UnicodeDecodeError:
        raise cursor.error(what, "is not valid UTF-8") from None


def _variable(file: ArrayFile, cursor: Cursor) -> tuple[str, LazyTensor]:
    name = _string(cursor, "a variable's name")
    rank = cursor.take(1, f"the rank of {name}")[0]
    shape = tuple(cursor.u32(f"the shape of {name}") for _ in range(min(rank, 9)))
    check_shape(cursor, name, shape)
    code = cursor.take(1, f"the type of {name}")[0]
    if code >= len(_KINDS):
        raise cursor.error(f"the type of {printable(name)}", f"is {code}")
    kind = _KINDS[code]
    size = cursor.u32(f"the size of {name}")
    if size != math.prod(shape) * KINDS[kind].itemsize:
        raise cursor.error(f"the size of {printable(name)}", f"is {size}, which does not go with {shape} {kind}")
    tensor = file.plain(cursor.position, shape or (1,), kind)
    cursor.skip(size, f"the data of {name}")
    return name, tensor if shape else LazyTensor((), kind, tensor.load)


def _number(found: dict[str, LazyTensor], name: str) -> int:
    tensor = found.get(name)
    if tensor is None or tensor.shape not in ((), (1,)):
        raise CorruptFileError(f"model.bin has no {name}", "fetch it again")
    return int(to_float32(tensor.load(0, 1), tensor.kind).reshape(-1)[0])


def _renamed(name: str, tensor: LazyTensor) -> dict[str, LazyTensor]:
    """A variable under OpenAI's names: projections that are stored together are taken apart."""
    stem, _, ending = name.rpartition("/")
    if name.endswith("position_encodings/encodings"):
        return {f"{name.split('/')[0]}.positional_embedding": tensor}
    if name == "decoder/embeddings/weight":
        return {"decoder.token_embedding.weight": tensor}
    if stem in _OUTER:
        return {f"{_OUTER[stem]}.{_ENDINGS.get(ending, ending)}": tensor}
    match = _LAYER.fullmatch(stem)
    if match is None:
        return {name: tensor}  # the caller says that it is not known
    block, part, rest = f"{match[1]}.blocks.{match[2]}", match[3], match[4]
    ending = _ENDINGS.get(ending, ending)
    if part == "ffn":
        names = {"layer_norm": "mlp_ln", "linear_0": "mlp.0", "linear_1": "mlp.2"}
        return {f"{block}.{names.get(rest, rest)}.{ending}": tensor}
    own = "attn" if part == "self_attention" else "cross_attn"
    if rest == "layer_norm":
        return {f"{block}.{own}_ln.{ending}": tensor}
    together = {
        ("attn", "linear_0"): ("query", "key", "value"),
        ("attn", "linear_1"): ("out",),
        ("cross_attn", "linear_0"): ("query",),
        ("cross_attn", "linear_1"): ("key", "value"),
        ("cross_attn", "linear_2"): ("out",),
    }.get((own, rest), (rest,))
    if tensor.shape[0] % len(together):
        raise CorruptFileError(f"{name} has {tensor.shape[0]} rows, which are not {len(together)} equal parts")
    height = tensor.shape[0] // len(together)
    parts = {
        f"{block}.{own}.{target}.{ending}": rows(tensor, place * height, (place + 1) * height)
        for place, target in enumerate(together)
    }
    parts.pop(f"{block}.{own}.key.bias", None)  # zero: keys have none
    return parts
