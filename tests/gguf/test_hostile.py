"""Files that break the rules: one line that names what is wrong and where, before anything is allocated for it."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import gguf_bytes
import pytest
from gguf_bytes import ARRAY, BOOL, FLOAT32, STRING, UINT8, UINT32, Parts, key, string, strings, tensor, uint32

from edgellm.errors import CorruptFileError, EdgeLLMError, UnsupportedModelError
from edgellm.gguf import header, open_gguf

HUGE = 2**63


def _array(item_type: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", item_type, count) + data


def _nested(depth: int) -> bytes:
    return _array(ARRAY, 1) * depth + _array(UINT8, 0)


def _one(tensor_bytes: bytes, size: int = 4096) -> Parts:
    return Parts(tensors=[tensor_bytes], data=bytes(size))


CASES: dict[str, tuple[Parts, str]] = {
    "signature": (Parts(magic=b"GGML"), r"the signature at byte 0: is b'GGML' where a GGUF file has b'GGUF'"),
    "tensor count": (Parts(tensor_count=2**40), r"the number of tensors at byte 8: is 1099511627776, more than"),
    "tensor count, near": (Parts(tensor_count=9), r"the number of tensors at byte 8: is 9, which the \d+ bytes"),
    "key count": (Parts(key_count=2**64 - 1), r"the number of keys at byte 16: is 18446744073709551615, more than"),
    "key count, near": (Parts(key_count=9), r"the number of keys at byte 16: is 9, which the \d+ bytes"),
    "key length": (
        Parts(keys=[struct.pack("<Q", HUGE) + bytes(20)]),
        r"the name of key 0 at byte 24: has a length of \d+ bytes",
    ),
    "empty key": (Parts(keys=[uint32("", 1)]), r"the name of key 0 at byte 24: has a length of 0 bytes"),
    "key not UTF-8": (Parts(keys=[uint32("a", 1).replace(b"a", b"\xff", 1)]), r"the name of key 0 .* not valid UTF-8"),
    "key twice": (Parts(keys=[uint32("a", 1), uint32("a", 2)]), r"key 'a' at byte 41: appears twice"),
    "value type": (Parts(keys=[key("a", 13, bytes(8))]), r"key 'a' at byte 33: has the unknown value type 13"),
    "value cut": (
        Parts(keys=[key("ab", UINT32, b"")]),
        r"key 'ab' at byte 38: needs 4 bytes, but the file of 38 bytes",
    ),
    "string length": (
        Parts(keys=[key("a", STRING, struct.pack("<Q", HUGE))]),
        r"key 'a' at byte 45: needs 9223372036854775808 bytes",
    ),
    "truth value": (Parts(keys=[key("a", BOOL, b"\2")]), r"key 'a' at byte 37: is the truth value 2, expected 0 or 1"),
    "truth values": (
        Parts(keys=[key("a", ARRAY, _array(BOOL, 3, b"\0\1\xff"))]),
        r"key 'a' at byte 51: has the truth value 255, expected 0 or 1",
    ),
    "array length": (Parts(keys=[key("a", ARRAY, _array(FLOAT32, HUGE))]), r"key 'a' at byte 49: needs \d+ bytes"),
    "array of truth values": (
        Parts(keys=[key("a", ARRAY, _array(BOOL, HUGE))]),
        r"key 'a' at byte 49: needs \d+ bytes",
    ),
    "array type": (
        Parts(keys=[key("a", ARRAY, _array(99, 1))]),
        r"key 'a' at byte 37: is an array of the unknown value",
    ),
    "string count": (Parts(keys=[key("a", ARRAY, _array(STRING, 2**60))]), r"key 'a' at byte 49: needs \d+ bytes"),
    "string in array": (
        Parts(keys=[key("a", ARRAY, _array(STRING, 2, gguf_bytes.text("ok") + struct.pack("<Q", 1000)))]),
        r"key 'a', string 1 at byte 59: needs 1008 bytes",
    ),
    "huge string in array": (
        Parts(keys=[key("a", ARRAY, _array(STRING, 2, gguf_bytes.text("ok") + struct.pack("<Q", 2**64 - 8)))]),
        r"key 'a', string 1 at byte 59: needs 18446744073709551616 bytes",
    ),
    "nesting": (Parts(keys=[key("a", ARRAY, _nested(100_000))]), r"key 'a' at byte \d+: has arrays nested more than 8"),
    "nested count": (Parts(keys=[key("a", ARRAY, _array(ARRAY, 2**60))]), r"key 'a' .* claims \d+ arrays, but only 0"),
    "many nested": (
        Parts(keys=[key("a", ARRAY, _array(ARRAY, 70_000, _array(UINT8, 0) * 70_000))]),
        r"key 'a' .* brings the nested arrays of all keys above 65536",
    ),
    "alignment 0": (Parts(keys=[uint32("general.alignment", 0)]), r"'general.alignment' .* is 0, expected a power of"),
    "alignment 48": (Parts(keys=[uint32("general.alignment", 48)]), r"'general.alignment' .* is 48, expected a power"),
    "alignment 2^31": (Parts(keys=[uint32("general.alignment", 2**31)]), r"'general.alignment' .* power of two of at"),
    "alignment type": (Parts(keys=[string("general.alignment", "32")]), r"'general.alignment' .* is not an integer"),
    "tensor name": (_one(struct.pack("<Q", HUGE) + bytes(40)), r"the name of tensor 0 at byte 24: has a length of"),
    "tensor not UTF-8": (_one(tensor(b"\xc3(", [4])), r"the name of tensor 0 at byte 24: .* is not valid UTF-8"),
    "tensor twice": (
        Parts(tensors=[tensor("a", [4]), tensor("a", [4], offset=32)], data=bytes(64)),
        r"tensor 'a' at byte 57: appears twice",
    ),
    "dimensions": (_one(tensor("a", [1] * 5)), r"tensor 'a' at byte 33: has 5 dimensions, at most 4 are allowed"),
    "many dimensions": (
        _one(gguf_bytes.text("a") + struct.pack("<I", 2**32 - 1) + bytes(40)),
        r"has 4294967295 dimensions",
    ),
    "dimension 0": (_one(tensor("a", [4, 0])), r"tensor 'a' at byte 37: has a dimension of 0 in \[4, 0\]"),
    "size": (_one(tensor("a", [1024, 1024])), r"tensor 'a' .* of shape \[1024, 1024\] takes 4194304 bytes"),
    "product": (_one(tensor("a", [2**32, 2**32])), r"tensor 'a' .* takes 73786976294838206464 bytes, more than"),
    "product modulo 2^64": (_one(tensor("a", [2**62, 4, 1, 1])), r"tensor 'a' .* more than the file's"),
    "partial block": (
        _one(tensor("a", [33], 2)),
        r"tensor 'a' .* rows of 33 values, which are not whole Q4_0 blocks of 32",
    ),
    "offset": (_one(tensor("a", [4], offset=2**63)), r"tensor 'a' at byte 92233720368547758\d\d: takes 16 bytes there"),
    "offset near the end": (_one(tensor("a", [9], offset=32), 64), r"tensor 'a' at byte \d+: takes 36 bytes there"),
    "offset alignment": (
        _one(tensor("a", [4], offset=16)),
        r"tensor 'a' .* data at 16, which is not a multiple of the",
    ),
    "overlap": (
        Parts(tensors=[tensor("a", [16]), tensor("b", [4], offset=32)], data=bytes(64)),
        r"tensor 'b' at byte 128: overlaps tensor 'a' at byte 96",
    ),
    "same place": (
        Parts(tensors=[tensor("a", [4]), tensor("b", [4])], data=bytes(64)),
        r"tensor '[ab]' at byte 96: overlaps tensor '[ab]' at byte 96",
    ),
    "split count type": (Parts(keys=[string("split.count", "2")]), r"key 'split.count' is not a count"),
}

UNSUPPORTED: dict[str, tuple[Parts, str]] = {
    "version 1": (Parts(version=1), r"GGUF version 1; convert the original model again"),
    "version 4": (Parts(version=4), r"GGUF version 4; versions 2 and 3 are read"),
    "big-endian": (Parts(version=3 << 24), r"the file is big-endian; convert it to little-endian"),
    "unknown type": (_one(tensor("a", [4], 999)), r"tensor 'a' at byte 45: has the type 999: which this version"),
    "withdrawn type": (_one(tensor("a", [32], 31)), r"tensor 'a' .* has the type 31: Q4_0_4_4"),
    "BitNet's type": (_one(tensor("a", [128], 37)), r"tensor 'a' .* has the type 37: I8_S of BitNet's own fork"),
}


def _assert_error(path: Path, kind: type[EdgeLLMError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        open_gguf(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(path.name + ": ")


@pytest.mark.parametrize("name", CASES)
def test_corrupt(tmp_path: Path, name: str) -> None:
    parts, message = CASES[name]
    _assert_error(parts.write(tmp_path / "model.gguf"), CorruptFileError, message)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported(tmp_path: Path, name: str) -> None:
    parts, message = UNSUPPORTED[name]
    _assert_error(parts.write(tmp_path / "model.gguf"), UnsupportedModelError, message)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    """However the file is cut, up to its last byte."""
    keys = [uint32("a", 1), strings("b", [b"x", b"y" * 300]), key("c", ARRAY, _array(FLOAT32, 3, bytes(12)))]
    whole = Parts(keys=keys, tensors=[tensor("t", [8])], data=b"\1" * 32).to_bytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(whole)
    open_gguf(path).close()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFileError) as caught:
            open_gguf(path)
        assert caught.value.hint


def test_names_in_messages_are_one_short_line(tmp_path: Path) -> None:
    name = "line\nbreak\x1b[31m" + "x" * 5000
    path = Parts(keys=[uint32(name, 1), uint32(name, 1)]).write(tmp_path / "model.gguf")
    with pytest.raises(CorruptFileError) as caught:
        open_gguf(path)
    text = str(caught.value)
    assert "\n" not in text
    assert "\x1b" not in text
    assert len(text) < 200


@pytest.mark.parametrize(
    ("limit", "value", "keys", "message"),
    [
        (
            "MAX_STRINGS",
            5,
            [strings("a", [b""] * 3), strings("b", [b""] * 3)],
            "key 'b' .* strings of all keys above 5",
        ),
        (
            "MAX_TEXT_BYTES",
            9,
            [string("a", "12345"), string("b", "12345")],
            "key 'b' .* text of all keys above 9 bytes",
        ),
        ("MAX_KEYS", 1, [uint32("a", 1), uint32("b", 1)], "the number of keys at byte 16: is 2, more than the 1"),
    ],
)
def test_totals_are_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, keys: list[bytes], message: str
) -> None:
    path = Parts(keys=keys).write(tmp_path / "model.gguf")
    open_gguf(path).close()
    monkeypatch.setattr(header, limit, value)
    _assert_error(path, CorruptFileError, message)


@pytest.mark.parametrize(
    "parts",
    [
        Parts(keys=[key("a", ARRAY, _array(STRING, 2**33, bytes(8000)))]),
        Parts(keys=[key("a", ARRAY, _array(BOOL, 2**33, bytes(8000)))]),
        Parts(keys=[key("a", STRING, struct.pack("<Q", 2**33) + bytes(8000))]),
        Parts(keys=[key("a", ARRAY, _array(ARRAY, 2**33, bytes(8000)))]),
        _one(tensor("a", [2**31, 4]), 8000),
        Parts(keys=[bytes(8000)], key_count=60_000, tensor_count=60_000),
    ],
)
def test_lies_allocate_nothing(tmp_path: Path, parts: Parts) -> None:
    path = parts.write(tmp_path / "model.gguf")
    tracemalloc.start()
    try:
        with pytest.raises(CorruptFileError):
            open_gguf(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    from edgellm.gguf.cursor import Cursor
    from edgellm.gguf.header import read_header

    path = Parts(keys=[uint32("a", 1)], tensors=[tensor("t", [8])], data=bytes(32)).write(tmp_path / "model.gguf")
    with path.open("rb", buffering=0) as file:
        cursor = Cursor(file, path, path.stat().st_size)
        with path.open("r+b") as other:
            other.truncate(30)
        with pytest.raises(CorruptFileError, match="became shorter while it was read"):
            read_header(cursor)
