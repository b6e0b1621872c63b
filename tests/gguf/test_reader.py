"""Opening well-formed files: metadata, tensors, lazy arrays, split files, giving memory back."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import gguf_bytes
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf_bytes import Parts
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import CorruptFileError, ModelNotFoundError
from edgellm.gguf import StringArray, TensorType, open_gguf

NUMBER_TYPES = {
    GGUFValueType.UINT8: ("u1", st.integers(0, 2**8 - 1)),
    GGUFValueType.INT8: ("i1", st.integers(-(2**7), 2**7 - 1)),
    GGUFValueType.UINT16: ("u2", st.integers(0, 2**16 - 1)),
    GGUFValueType.INT16: ("i2", st.integers(-(2**15), 2**15 - 1)),
    GGUFValueType.UINT32: ("u4", st.integers(0, 2**32 - 1)),
    GGUFValueType.INT32: ("i4", st.integers(-(2**31), 2**31 - 1)),
    GGUFValueType.UINT64: ("u8", st.integers(0, 2**64 - 1)),
    GGUFValueType.INT64: ("i8", st.integers(-(2**63), 2**63 - 1)),
    GGUFValueType.FLOAT32: ("f4", st.floats(width=32)),
    GGUFValueType.FLOAT64: ("f8", st.floats()),
    GGUFValueType.BOOL: ("?", st.booleans()),
}


def _typed(kind: GGUFValueType, several: bool):
    values = NUMBER_TYPES[kind][1]
    return st.tuples(st.just(kind), st.lists(values, min_size=1, max_size=20) if several else values)


ANY_VALUE = st.one_of(
    st.one_of(*[_typed(kind, False) for kind in NUMBER_TYPES]),
    st.one_of(*[_typed(kind, True) for kind in NUMBER_TYPES]),
    st.tuples(st.just(GGUFValueType.STRING), st.text(min_size=1, max_size=300)),
    st.tuples(st.just(GGUFValueType.STRING), st.lists(st.binary(max_size=300), min_size=1, max_size=20)),
)


def _write(path: Path, writer: GGUFWriter) -> Path:
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_model(path: Path, tensors: int = 3, **settings: int) -> Path:
    """Tensors blk.0, blk.1 ... of shape (4, 32), each filled with its number."""
    writer = GGUFWriter(path, "llama", **settings)
    writer.add_uint32("llama.block_count", tensors)
    for index in range(tensors):
        writer.add_tensor(f"blk.{index}", np.full((4, 32), index, np.float32))
    return _write(path, writer)


@given(values=st.dictionaries(st.text(min_size=1, max_size=40), ANY_VALUE, max_size=8))
@settings(deadline=None, max_examples=60)
def test_metadata_comes_back(tmp_path_factory: pytest.TempPathFactory, values: dict) -> None:
    path = tmp_path_factory.mktemp("metadata") / "model.gguf"
    writer = GGUFWriter(path, "llama")
    for key, (kind, value) in values.items():
        if isinstance(value, list):
            writer.add_key_value("test." + key, value, GGUFValueType.ARRAY, kind)
        else:
            writer.add_key_value("test." + key, value, kind)
    with open_gguf(_write(path, writer)) as file:
        assert list(file.metadata) == ["general.architecture", *("test." + key for key in values)]
        assert file.metadata["general.architecture"] == "llama"
        for key, (kind, expected) in values.items():
            value = file.metadata["test." + key]
            if kind is GGUFValueType.STRING:
                assert value.tolist() == expected if isinstance(expected, list) else value == expected
            elif isinstance(expected, list):
                assert value.dtype == np.dtype(NUMBER_TYPES[kind][0])
                np.testing.assert_array_equal(value, np.array(expected, value.dtype))
            else:
                assert type(value) is type(expected)
                assert value == expected or expected != expected


# Mostly short strings with long ones among them: both ways of walking, and the change from one to the other.
STRING_LISTS = st.lists(
    st.one_of(st.binary(max_size=12), st.integers(200, 700).map(lambda length: b"y" * length)), max_size=40
)


@given(groups=st.lists(st.tuples(STRING_LISTS, st.integers(1, 60)), max_size=4))
@settings(deadline=None, max_examples=60)
def test_string_arrays_of_all_lengths(tmp_path_factory: pytest.TempPathFactory, groups: list) -> None:
    expected = [item for items, times in groups for item in items * times]
    path = tmp_path_factory.mktemp("strings") / "model.gguf"
    Parts(keys=[gguf_bytes.strings("a", expected), gguf_bytes.uint32("b", 5)]).write(path)
    with open_gguf(path) as file:
        array = file.metadata["a"]
        assert isinstance(array, StringArray)
        assert array.tolist() == expected
        assert list(array) == expected
        assert file.metadata["b"] == 5


def test_string_array_behaves_as_a_sequence(tmp_path: Path) -> None:
    expected = [b"", b"\xff\xfe", "ü".encode(), b"x" * 256, b"z"]
    path = Parts(keys=[gguf_bytes.strings("a", expected)]).write(tmp_path / "model.gguf")
    with open_gguf(path) as file:
        array = file.metadata["a"]
        assert len(array) == 5
        assert [array[i] for i in range(-5, 5)] == expected * 2
        assert array[1:3] == expected[1:3]
        assert array[::-2] == expected[::-2]
        assert array[4:1] == []
        assert b"z" in array
        for index in (5, -6):
            with pytest.raises(IndexError):
                array[index]
        assert file.metadata["a"] is array


def test_nested_arrays_are_tuples(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_array("numbers", [[1, 2], [3]])
    writer.add_array("texts", [[["a"]], [["b", "c"], ["d"]]])
    with open_gguf(_write(tmp_path / "model.gguf", writer)) as file:
        assert [part.tolist() for part in file.metadata["numbers"]] == [[1, 2], [3]]
        texts = file.metadata["texts"]
        assert [[array.tolist() for array in group] for group in texts] == [[[b"a"]], [[b"b", b"c"], [b"d"]]]


def test_text_that_is_not_utf8_is_replaced(tmp_path: Path) -> None:
    path = Parts(keys=[gguf_bytes.string("a", b"caf\xe9"), gguf_bytes.string("b", b"")]).write(tmp_path / "model.gguf")
    with open_gguf(path) as file:
        assert dict(file.metadata) == {"a": "caf\ufffd", "b": ""}


@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_tensors_come_back(tmp_path: Path, alignment: int) -> None:
    random = np.random.default_rng(1)
    arrays = {f"t{rank}": random.random((2, 3, 4, 5)[-rank:], np.float32) for rank in range(1, 5)}
    quantized = random.integers(0, 256, (3, 2 * 18), dtype=np.uint8)
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_custom_alignment(alignment)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.add_tensor("q", quantized, raw_dtype=GGMLQuantizationType.Q4_0)
    path = _write(tmp_path / "model.gguf", writer)
    with open_gguf(path) as file:
        assert list(file.tensors) == [*arrays, "q"]
        assert file.size_bytes == path.stat().st_size
        for name, array in arrays.items():
            info = file.tensors[name]
            assert (info.shape, info.type, info.row_bytes, info.size_bytes) == (
                array.shape,
                TensorType.F32,
                20,
                array.nbytes,
            )
            assert info.offset % alignment == 0
            assert file.raw(name).shape == (info.rows, info.row_bytes)
            np.testing.assert_array_equal(file.decode(name), array)
            rows = array.reshape(-1, 5)
            np.testing.assert_array_equal(file.decode(name, slice(0, None, 3)), rows[::3])
            chosen = random.integers(0, len(rows), 4)
            np.testing.assert_array_equal(file.decode(name, chosen), rows[chosen])
        assert file.tensors["q"].shape == (3, 64)
        np.testing.assert_array_equal(file.raw("q"), quantized)
        with pytest.raises(IndexError):
            file.decode("q", np.array([3]))
        with pytest.raises(KeyError):
            file.raw("missing")


def test_scalar_tensor(tmp_path: Path) -> None:
    path = Parts(tensors=[gguf_bytes.tensor("s", [])], data=struct.pack("<f", 2.5)).write(tmp_path / "model.gguf")
    with open_gguf(path) as file:
        assert file.tensors["s"].shape == ()
        assert file.decode("s") == np.float32(2.5)


def test_version_2_reads_as_version_3(tmp_path: Path) -> None:
    data = bytearray(_write_model(tmp_path / "three.gguf").read_bytes())
    data[4] = 2
    (tmp_path / "two.gguf").write_bytes(data)
    with open_gguf(tmp_path / "two.gguf") as two, open_gguf(tmp_path / "three.gguf") as three:
        assert dict(two.metadata) == dict(three.metadata)
        assert dict(two.tensors) == dict(three.tensors)


def test_views_are_read_only_and_outlive_the_file(tmp_path: Path) -> None:
    file = open_gguf(_write_model(tmp_path / "model.gguf"))
    view = file.raw("blk.2")
    assert not view.flags.writeable
    expected = view.copy()
    file.release("blk.2")
    file.release()
    np.testing.assert_array_equal(view, expected)
    file.close()
    np.testing.assert_array_equal(view, expected)
    for action in (lambda: file.raw("blk.2"), lambda: file.decode("blk.2"), file.release):
        with pytest.raises(ValueError, match=r"model\.gguf is closed"):
            action()
    file.close()


def test_metadata_after_closing(tmp_path: Path) -> None:
    keys = [gguf_bytes.strings("read", [b"a"]), gguf_bytes.strings("unread", [b"a"]), gguf_bytes.uint32("number", 1)]
    file = open_gguf(Parts(keys=keys).write(tmp_path / "model.gguf"))
    assert len(file.metadata["read"]) == 1
    file.close()
    assert file.metadata["number"] == 1
    with pytest.raises(ValueError, match="'unread' was not read before its file was closed"):
        file.metadata["unread"]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs the memory maps of Linux")
def test_release_gives_pages_back(tmp_path: Path) -> None:
    def resident(path: Path) -> int:
        lines = iter(Path("/proc/self/smaps").read_text().splitlines())
        return sum(
            int(next(line for line in lines if line.startswith("Rss:")).split()[1])
            for line in lines
            if str(path) in line
        )

    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("a", np.ones((512, 1024), np.float32))
    writer.add_tensor("b", np.ones((512, 1024), np.float32))
    path = _write(tmp_path / "model.gguf", writer)
    with open_gguf(path) as file:
        assert file.decode("a").sum() + file.decode("b").sum() == 2 * 512 * 1024
        full = resident(path)
        file.release("a")
        half = resident(path)
        file.release()
        assert full >= 4096
        assert half < 0.6 * full
        assert resident(path) < 0.1 * full
        assert file.decode("a").sum() == 512 * 1024


def _write_split(folder: Path) -> list[Path]:
    _write_model(folder / "model.gguf", tensors=5, split_max_tensors=2)
    return sorted(folder.glob("model-*.gguf"))


@pytest.mark.parametrize("opened", [0, 1, 2])
def test_split_file_opens_from_any_part(tmp_path: Path, opened: int) -> None:
    parts = _write_split(tmp_path)
    assert len(parts) == 3
    with open_gguf(parts[opened]) as file:
        assert file.path == parts[0]
        assert list(file.paths) == parts
        assert file.size_bytes == sum(part.stat().st_size for part in parts)
        assert file.metadata["llama.block_count"] == 5
        assert [file.tensors[f"blk.{index}"].part for index in range(5)] == [0, 0, 1, 1, 2]
        for index in range(5):
            np.testing.assert_array_equal(file.decode(f"blk.{index}"), np.full((4, 32), index, np.float32))
            file.release(f"blk.{index}")


def test_missing_part_is_named(tmp_path: Path) -> None:
    parts = _write_split(tmp_path)
    parts[1].unlink()
    with pytest.raises(CorruptFileError, match=r"of its 3 parts these are missing: model-00002-of-00003\.gguf"):
        open_gguf(parts[2])


def test_renamed_part_is_refused(tmp_path: Path) -> None:
    parts = _write_split(tmp_path)
    parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(
        CorruptFileError, match=r"is one of 3 parts, but its name does not end in -0000N-of-00003\.gguf"
    ):
        open_gguf(tmp_path / "renamed.gguf")


def test_exchanged_parts_are_refused(tmp_path: Path) -> None:
    parts = _write_split(tmp_path)
    shutil.copy(parts[2], parts[1])
    with pytest.raises(CorruptFileError, match="says that it is part 3 of 3, expected part 2 of 3"):
        open_gguf(parts[0])


def _part(number: int, count: int, tensors: list[bytes], total: int) -> Parts:
    keys = [gguf_bytes.uint16("split.no", number), gguf_bytes.uint16("split.count", count)]
    keys.append(gguf_bytes.key("split.tensors.count", gguf_bytes.INT32, struct.pack("<i", total)))
    return Parts(keys=keys, tensors=tensors, data=bytes(64))


def test_parts_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf"
    _part(0, 2, [gguf_bytes.tensor("a", [4])], 2).write(first)
    _part(1, 2, [gguf_bytes.tensor("a", [4])], 2).write(second)
    with pytest.raises(CorruptFileError, match=r"tensor 'a' is also in m-00001-of-00002\.gguf"):
        open_gguf(first)
    _part(1, 2, [], 2).write(second)
    with pytest.raises(CorruptFileError, match="its parts hold 1 tensors, expected 2"):
        open_gguf(first)
    second.write_bytes(b"GGUF")
    with pytest.raises(CorruptFileError, match=r"m-00002-of-00002\.gguf: 4 bytes are too few"):
        open_gguf(first)


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no file"):
        open_gguf(tmp_path / "missing.gguf")
    with pytest.raises(ModelNotFoundError, match="cannot be read"):
        open_gguf(str(tmp_path / "nul\0byte.gguf"))
    with pytest.raises(CorruptFileError, match="is not a regular file"):
        open_gguf(tmp_path)


def test_nothing_heavy_is_imported_to_open_a_file(tmp_path: Path) -> None:
    """Neither the gguf package, which only i-quants need, nor Numba."""
    path = _write_model(tmp_path / "model.gguf")
    code = "import sys; from edgellm.gguf import open_gguf; open_gguf(sys.argv[1]).decode('blk.1'); "
    code += "print([name for name in ('gguf', 'numba', 'jinja2') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_published_vocabulary_equals_the_package(shared: Path) -> None:
    path = min((shared / "vocab").glob("*.gguf"), key=lambda path: path.stat().st_size)
    reader = GGUFReader(path)
    with open_gguf(path) as file:
        assert len(file.metadata["tokenizer.ggml.tokens"]) > 10_000
        for key, reader_field in reader.fields.items():
            if key.startswith("GGUF."):
                continue
            value, expected = file.metadata[key], reader_field.contents()
            if isinstance(value, StringArray):
                assert value.tolist() == [item.encode() for item in expected]
            elif isinstance(value, np.ndarray):
                assert value.tolist() == expected
            else:
                assert value == expected


def test_large_vocabulary(gemma3_path: Path) -> None:
    with open_gguf(gemma3_path) as file:
        tokens = file.metadata["tokenizer.ggml.tokens"]
        everything = tokens.tolist()
        assert len(tokens) == len(everything) == 262144
        assert tokens[0] == everything[0] == b"<pad>"
        assert everything[-1] == tokens[-1]
        assert tokens[100_000:100_003] == everything[100_000:100_003]
        assert len(file.metadata["tokenizer.ggml.scores"]) == 262144
