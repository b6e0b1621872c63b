"""Reading tokenizer.model: the vocabulary of a SentencePiece model, without its library.

Source: ``sentencepiece_model.proto`` of SentencePiece, and the wire format of Protocol Buffers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import CorruptFileError, UnsupportedModelError

MAX_FILE_BYTES = 64 << 20
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_MODEL_TYPE, _DUMMY_PREFIX, _REMOVE_SPACES = 3, 3, 4
_TEXT, _SCORE, _TYPE = 1, 2, 3
UNIGRAM, BPE = 1, 2


@dataclass(frozen=True)
class Pieces:
    """What a model file says.

    Attributes:
        texts: by id.
        scores: by id.
        types: by id; the numbers are those of GGUF's token types.
        kind: UNIGRAM or BPE.
        add_dummy_prefix: a space is put before the text.
        remove_extra_whitespaces: runs of spaces become one.
    """

    texts: list[str]
    scores: list[float]
    types: list[int]
    kind: int
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


def read_sentencepiece(path: Path) -> Pieces | None:
    """The vocabulary of a file; None if it is another format (tiktoken's, under the same name).

    Raises:
        CorruptFileError: the file is damaged.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise CorruptFileError(f"{path.name} has {path.stat().st_size} bytes, {MAX_FILE_BYTES} are allowed")
    content = path.read_bytes()
    if not content.startswith(b"\x0a"):  # field 1, length-delimited: the first piece
        return None
    texts: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, int] = {}
    normalizer: dict[int, int] = {}
    try:
        for field, value in _fields(content):
            if field == _PIECES and isinstance(value, bytes):
                text, score, kind = _piece(value)
                texts.append(text)
                scores.append(score)
                types.append(kind)
            elif field == _TRAINER and isinstance(value, bytes):
                trainer = {number: item for number, item in _fields(value) if isinstance(item, int)}
            elif field == _NORMALIZER and isinstance(value, bytes):
                normalizer = {number: item for number, item in _fields(value) if isinstance(item, int)}
    except (IndexError, ValueError, struct.error) as error:
        raise CorruptFileError(f"{path.name} is no valid SentencePiece model ({error})", "fetch it again") from None
    kind = trainer.get(_MODEL_TYPE, UNIGRAM)
    if kind not in (UNIGRAM, BPE):
        raise UnsupportedModelError(
            f"{path.name} is a SentencePiece model of words or characters", "known: BPE, unigram"
        )
    prefix, spaces = normalizer.get(_DUMMY_PREFIX, 1), normalizer.get(_REMOVE_SPACES, 1)
    return Pieces(texts, scores, types, kind, bool(prefix), bool(spaces))


def _piece(content: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, 1
    for field, value in _fields(content):
        if field == _TEXT and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif field == _SCORE and isinstance(value, float):
            score = value
        elif field == _TYPE and isinstance(value, int):
            kind = value
    if not math.isfinite(score) or not 1 <= kind <= 6:
        raise ValueError(f"piece {text[:20]!a} has score {score} and type {kind}")
    return text, score, kind


def _fields(content: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """The fields of a message: number and value."""
    position = 0
    while position < len(content):
        tag, position = _varint(content, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(content, position)
            yield number, value
        elif wire == 1:
            yield number, struct.unpack_from("<d", content, position)[0]
            position += 8
        elif wire == 2:
            length, position = _varint(content, position)
            if length > len(content) - position:
                raise ValueError("it ends within a field")
            yield number, content[position : position + length]
            position += length
        elif wire == 5:
            yield number, struct.unpack_from("<f", content, position)[0]
            position += 4
        else:
            raise ValueError(f"it has a field of the unknown wire type {wire}")


def _varint(content: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
