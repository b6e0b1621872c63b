"""What is in a model file, without loading the model: a summary, keys, tensors, hashes, the chat template at work."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import CorruptFileError, EdgeLLMError, TemplateError
from edgellm.gguf import GGUFFile, StringArray, TensorInfo

if TYPE_CHECKING:
    from edgellm.chat_template import ChatTemplate

Progress = Callable[[str, int, int], None]
"""Called with the stage ("hash"), bytes done and bytes in all."""

EXAMPLE: tuple[Mapping[str, str], ...] = (
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hello! What can I do for you?"},
    {"role": "user", "content": "Name three rivers."},
)
"""The conversation that a chat template is tried on."""

_PIECE = 4 << 20
_MOST_LAYERS = 4096
_ARRAY, _FLOAT32 = 9, 6
_TYPE_NAMES = {
    0: "uint8",
    1: "int8",
    2: "uint16",
    3: "int16",
    4: "uint32",
    5: "int32",
    _FLOAT32: "float32",
    7: "bool",
    8: "string",
    _ARRAY: "array",
    10: "uint64",
    11: "int64",
    12: "float64",
}


@dataclass(frozen=True)
class TypeShare:
    """How much of a file has one tensor type: tensors, the weights in them, and their bytes."""

    type: str
    tensors: int
    weights: int
    size_bytes: int


@dataclass(frozen=True)
class Summary:
    """What a file says of itself and what its tensors add up to. None: the file does not tell.

    Attributes:
        paths: the file, or all shards.
        size_bytes: of all of them.
        name: of the model.
        kind: "model", "adapter" and so on.
        architecture: as ``general.architecture`` has it.
        quantization: what the file calls its mix of types, such as Q4_K_M.
        parameters: values in all tensors.
        bits_per_weight: bits that a value takes on average, scales included; 0 without tensors.
        types: the tensor types, the one with most bytes first.
        context_length: in tokens, what the model was made for.
        layers: blocks.
        width: length of the vector of a token.
        heads: of attention; a tuple where layers differ.
        kv_heads: heads of keys and values; the same.
        vocabulary: number of tokens.
        tokenizer: its kind and the way it cuts text into words.
        templates: names of the chat templates.
        license: the licence's name.
    """

    paths: tuple[Path, ...]
    size_bytes: int
    name: str | None
    kind: str | None
    architecture: str | None
    quantization: str | None
    parameters: int
    bits_per_weight: float
    types: tuple[TypeShare, ...]
    context_length: int | None
    layers: int | None
    width: int | None
    heads: int | tuple[int, ...] | None
    kv_heads: int | tuple[int, ...] | None
    vocabulary: int | None
    tokenizer: str | None
    templates: tuple[str, ...]
    license: str | None


@dataclass(frozen=True)
class KeyValue:
    """A key of a file.

    Attributes:
        name: the key.
        type: as the format names it; "array of string" and so on.
        length: of an array, otherwise None.
        value: the value as Python's own types; of a long array the first values.
    """

    name: str
    type: str
    length: int | None
    value: Any


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a file.

    Attributes:
        name: its name.
        type: how its values are stored.
        shape: slowest dimension first; the last is the length of a row.
        weights: how many values.
        size_bytes: of its data.
        bits_per_weight: bits a value takes, scales included.
        path: the file that holds it.
        offset: of its data in that file.
        sha256: of its data, in hexadecimal, if it was asked for.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    weights: int
    size_bytes: int
    bits_per_weight: float
    path: Path
    offset: int
    sha256: str | None


@dataclass(frozen=True)
class Hashes:
    """SHA-256 in hexadecimal: of each file as a whole, and of the data of each tensor by name."""

    files: tuple[str, ...]
    tensors: Mapping[str, str]


@dataclass(frozen=True)
class TemplateExample:
    """A chat template and what it makes of a conversation.

    Attributes:
        name: of the template.
        names: of all that there are.
        source: in Jinja.
        warning: why it is not the file's own; None if it is.
        messages: the conversation; without the system message if the template takes none.
        text: the prompt, up to where the model answers.
    """

    name: str
    names: tuple[str, ...]
    source: str
    warning: str | None
    messages: tuple[Mapping[str, str], ...]
    text: str


def summarize(file: GGUFFile) -> Summary:
    """The most important facts. A key of an unexpected type counts as absent."""
    from edgellm.chat_template import templates_of

    architecture = _text(file, "general.architecture")
    prefix = f"{architecture}."
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    types = type_shares(file)
    parameters = sum(share.weights for share in types)
    data_bytes = sum(share.size_bytes for share in types)
    kinds = [_text(file, f"tokenizer.ggml.{name}") for name in ("model", "pre")]
    return Summary(
        paths=file.paths,
        size_bytes=file.size_bytes,
        name=_text(file, "general.name"),
        kind=_text(file, "general.type"),
        architecture=architecture,
        quantization=_quantization(file),
        parameters=parameters,
        bits_per_weight=8 * data_bytes / parameters if parameters else 0.0,
        types=types,
        context_length=_count(file, prefix + "context_length"),
        layers=_count(file, prefix + "block_count"),
        width=_count(file, prefix + "embedding_length"),
        heads=_counts(file, prefix + "attention.head_count"),
        kv_heads=_counts(file, prefix + "attention.head_count_kv"),
        vocabulary=len(tokens) if isinstance(tokens, StringArray) else None,
        tokenizer=" ".join(kind for kind in kinds if kind) or None,
        templates=tuple(templates_of(file.metadata)),
        license=_text(file, "general.license"),
    )


def type_shares(file: GGUFFile) -> tuple[TypeShare, ...]:
    """The tensor types in a file, the one with most bytes first."""
    found: dict[str, list[TensorInfo]] = {}
    for tensor in file.tensors.values():
        found.setdefault(tensor.type.name, []).append(tensor)
    shares = [
        TypeShare(name, len(group), sum(map(_weights, group)), sum(tensor.size_bytes for tensor in group))
        for name, group in found.items()
    ]
    return tuple(sorted(shares, key=lambda share: -share.size_bytes))


def keys(file: GGUFFile, most: int = 8) -> Iterator[KeyValue]:
    """All keys in the order of the file, with the first ``most`` values of arrays."""
    for name, value in file.metadata.items():
        stored = file.stored_key(name)
        start = 8 + struct.unpack_from("<Q", stored)[0]
        (kind,) = struct.unpack_from("<I", stored, start)
        type_name = _TYPE_NAMES[kind]
        length = None
        if kind == _ARRAY:
            type_name += f" of {_TYPE_NAMES[struct.unpack_from('<I', stored, start + 4)[0]]}"
            length = len(value)  # type: ignore[arg-type]
        yield KeyValue(name, type_name, length, _plain(value, most, kind == _FLOAT32))


def tensors(file: GGUFFile, hashes: Hashes | None = None) -> Iterator[TensorEntry]:
    """All tensors in the order of the file."""
    for tensor in file.tensors.values():
        weights = _weights(tensor)
        yield TensorEntry(
            tensor.name,
            tensor.type.name,
            tensor.shape,
            weights,
            tensor.size_bytes,
            8 * tensor.size_bytes / weights,
            file.paths[tensor.part],
            tensor.offset,
            hashes.tensors[tensor.name] if hashes else None,
        )


def hash_data(file: GGUFFile, progress: Progress | None = None) -> Hashes:
    """Read all of a file once, some megabytes at a time, and hash it.

    Raises:
        CorruptFileError: it became shorter meanwhile.
    """
    whole, found, done = [], {}, 0
    buffer = memoryview(bytearray(_PIECE))
    for part, path in enumerate(file.paths):
        of_file = hashlib.sha256()
        with path.open("rb", buffering=0) as source:
            for name, count in _stretches(file, part, path.stat().st_size):
                of_tensor = hashlib.sha256()
                while count:
                    length = source.readinto(buffer[: min(count, _PIECE)])
                    if not length:
                        raise CorruptFileError(f"{path.name} became shorter while it was read")
                    of_file.update(buffer[:length])
                    if name is not None:
                        of_tensor.update(buffer[:length])
                    count, done = count - length, done + length
                    if progress is not None:
                        progress("hash", done, file.size_bytes)
                if name is not None:
                    found[name] = of_tensor.hexdigest()
        whole.append(of_file.hexdigest())
    return Hashes(tuple(whole), found)


def _stretches(file: GGUFFile, part: int, size: int) -> Iterator[tuple[str | None, int]]:
    """What a file consists of from beginning to end: the tensor's name, or None for what is none, and bytes."""
    position = 0
    inside = [tensor for tensor in file.tensors.values() if tensor.part == part]
    for tensor in sorted(inside, key=lambda tensor: tensor.offset):
        yield None, tensor.offset - position
        yield tensor.name, tensor.size_bytes
        position = tensor.offset + tensor.size_bytes
    yield None, max(0, size - position)


def template_example(file: GGUFFile, messages: Sequence[Mapping[str, str]] = EXAMPLE) -> TemplateExample:
    """The chat template of a file, as chatting uses it, and what it makes of a conversation.

    Raises:
        TemplateError: the template fails, also without the system message.
    """
    from edgellm.chat_template import ChatTemplate

    template = ChatTemplate.from_metadata(file.metadata, *_token_texts(file))
    used, text = _render(template, messages)
    return TemplateExample(template.name, template.names, template.source, template.warning, used, text)


def _render(template: ChatTemplate, messages: Sequence[Mapping[str, str]]) -> tuple[tuple[Mapping[str, str], ...], str]:
    try:
        return tuple(messages), template.render(messages)
    except TemplateError as error:
        # Some models were trained without system messages, and their templates refuse them.
        shorter = tuple(message for message in messages if message["role"] != "system")
        try:
            return shorter, template.render(shorter)
        except TemplateError:
            raise error from None


def _token_texts(file: GGUFFile) -> tuple[str, str]:
    """The texts of the tokens that begin and end a text, as loading the model finds them."""
    from edgellm.tokenizer import Tokenizer

    try:
        tokenizer = Tokenizer.load(file)
    except EdgeLLMError:  # a tokenizer that cannot be run does not keep the template from being looked at
        return _token_text(file, "bos"), _token_text(file, "eos")
    ids = (tokenizer.bos_id, tokenizer.eos_id)
    texts = ["" if token is None else tokenizer.token_bytes(token).decode("utf-8", "replace") for token in ids]
    return texts[0], texts[1]


def _token_text(file: GGUFFile, name: str) -> str:
    tokens, token = file.metadata.get("tokenizer.ggml.tokens"), _count(file, f"tokenizer.ggml.{name}_token_id")
    if not isinstance(tokens, StringArray) or token is None or token >= len(tokens):
        return ""
    return tokens[token].decode("utf-8", "replace")


def _weights(tensor: TensorInfo) -> int:
    return math.prod(tensor.shape)


def _quantization(file: GGUFFile) -> str | None:
    """The name that llama.cpp gives to the mix of types whose number the file has."""
    number = _count(file, "general.file_type")
    if number is None:
        return None
    from gguf import LlamaFileType

    try:
        return LlamaFileType(number).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        return f"file type {number}"


def _text(file: GGUFFile, key: str) -> str | None:
    value = file.metadata.get(key)
    return value if isinstance(value, str) and value else None


def _count(file: GGUFFile, key: str) -> int | None:
    value = file.metadata.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _counts(file: GGUFFile, key: str) -> int | tuple[int, ...] | None:
    """A number, or one for each layer."""
    value = file.metadata.get(key)
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and 0 < len(value) <= _MOST_LAYERS:
        return tuple(value.tolist())
    return _count(file, key)


def _plain(value: Any, most: int, single: bool = False) -> Any:
    """A value as Python's own types, arrays cut to ``most`` values; ``single``: the shortest decimals of a float32."""
    if hasattr(value, "dtype"):
        return [_plain(item, most) for item in _shortest(value[:most])]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, StringArray | tuple):
        return [_plain(item, most) for item in value[:most]]
    if single:
        return _shortest(np.array([value], np.float32))[0]
    return value


def _shortest(values: Any) -> list[Any]:
    """The values of an array; those of a float32 with the fewest decimals that mean the same."""
    if values.dtype.name == "float32":
        return [float(str(item)) for item in values]
    listed: list[Any] = values.tolist()
    return listed
