"""Reading the tokenizer's keys of a GGUF file: every value is checked, since files come from anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import CorruptFileError

PREFIX = "tokenizer.ggml."

_HINT = "the file is damaged or was converted wrongly: get it again or convert it again"


def corrupt(message: str) -> CorruptFileError:
    """The error for a file whose tokenizer cannot be used."""
    return CorruptFileError(message, _HINT)


def shown(token: bytes) -> str:
    """A token as it may stand in a message: printable, at most 40 characters."""
    text = ascii(token.decode("utf-8", "backslashreplace"))
    return text if len(text) <= 40 else text[:37] + "..."


def read_text(metadata: Mapping[str, Any], key: str, default: str = "") -> str:
    """A string, or ``default`` where the key is absent."""
    value = metadata.get(key, default)
    if not isinstance(value, str):
        raise corrupt(f"key {key} should be a string, it is {type(value).__name__}")
    return value


def read_flag(metadata: Mapping[str, Any], name: str) -> bool | None:
    """A boolean ``tokenizer.ggml.NAME``, or None where it is absent."""
    value = metadata.get(PREFIX + name)
    if value is None or isinstance(value, bool):
        return value
    raise corrupt(f"key {PREFIX + name} should be true or false, it is {type(value).__name__}")


def read_id(metadata: Mapping[str, Any], name: str) -> int | None:
    """A token id ``tokenizer.ggml.NAME``; None where it is absent or says "none" (-1, also when stored unsigned)."""
    value = metadata.get(PREFIX + name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise corrupt(f"key {PREFIX + name} should be a token id, it is {type(value).__name__}")
    return None if value in (-1, 0xFFFFFFFF) else value


def read_strings(metadata: Mapping[str, Any], name: str) -> list[bytes] | None:
    """A list of byte strings ``tokenizer.ggml.NAME``, or None where it is absent."""
    value = metadata.get(PREFIX + name)
    if value is None:
        return None
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        listed = value.tolist() if hasattr(value, "tolist") else list(value)
        if not listed or isinstance(listed[0], bytes):
            return cast(list[bytes], listed)
    raise corrupt(f"key {PREFIX + name} should be a list of strings, it is {type(value).__name__}")


def read_numbers(metadata: Mapping[str, Any], name: str, count: int | None = None) -> NDArray[np.generic] | None:
    """A list of numbers ``tokenizer.ggml.NAME``, shape (count,), or None where it is absent."""
    value = metadata.get(PREFIX + name)
    if value is None:
        return None
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf" or value.ndim != 1:
        raise corrupt(f"key {PREFIX + name} should be a list of numbers, it is {type(value).__name__}")
    if count is not None and len(value) != count:
        raise corrupt(f"key {PREFIX + name} holds {len(value)} values for {count} tokens")
    return cast("NDArray[np.generic]", value)
